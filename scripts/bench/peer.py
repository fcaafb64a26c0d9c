"""What Docker alone offers: commit a container, and replace it by one made of the committed image.

Called through the engine's API, so that the start of the `docker` program is
not counted against it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import docker
from demo.stage import Failed
from docker.errors import ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.images import Image

COMMAND = ["sleep", "infinity"]


class Peer:
    """Images and containers whose names begin with `name`."""

    def __init__(self, engine: docker.DockerClient, name: str) -> None:
        self.engine = engine
        self.name = name

    def commit(self, container: Container, tag: str, *, pause: bool) -> Image:
        """Commit as `docker commit` does."""
        return container.commit(repository=self.name, tag=tag, pause=pause)

    def paused_ns(self, container: Container, since_ns: int) -> int:
        """Return for how long the engine says it paused the container since then.

        Raises:
            Failed: it did not, or not once.
        """
        # The types know only whole seconds.
        events = self.engine.events(  # type: ignore[call-overload]
            since=_seconds(since_ns),
            until=_seconds(time.time_ns()),
            filters={"container": container.id, "event": ["pause", "unpause"]},
            decode=True,
        )
        times = [(event["Action"], event["timeNano"]) for event in events]
        if [action for action, _ in times] != ["pause", "unpause"]:
            raise Failed(f"docker commit was to pause the container once; the engine says: {times}")
        return int(times[1][1]) - int(times[0][1])

    def run(self, image: str) -> Container:
        """Start a sandbox of its own from an image, as `docker run --detach` does."""
        return self.engine.containers.run(
            image, COMMAND, name=f"{self.name}-peer", init=True, network_mode="none", detach=True
        )

    def forget(self, tag: str) -> None:
        """Remove a committed image."""
        with contextlib.suppress(ImageNotFound):
            self.engine.images.remove(f"{self.name}:{tag}", force=True)

    @contextlib.contextmanager
    def removed(self) -> Iterator[None]:
        """Take away, after the block, every container and image of this name."""
        try:
            yield
        finally:
            for container in self.engine.containers.list(all=True, filters={"name": self.name}):
                with contextlib.suppress(NotFound):
                    container.remove(force=True, v=True)
            for image in self.engine.images.list(name=self.name):
                for tag in image.tags:
                    if tag.startswith(f"{self.name}:"):
                        self.forget(tag.partition(":")[2])


def layer_bytes(image: Image) -> int:
    """Return the size of the layer that a commit added, as `docker history` shows it."""
    return int(image.history()[0]["Size"])


def _seconds(moment_ns: int) -> str:
    return f"{moment_ns // 10**9}.{moment_ns % 10**9:09}"
