"""The Docker Engine, as far as Turnkeep needs it. Every call blocks: use threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import docker
import requests
from docker.errors import APIError, DockerException, NotFound

from turnkeep.errors import Conflict, ContainerNotFound, EngineUnavailable, RestoreFailed
from turnkeep.model import ContainerState

ENABLE_LABEL = "turnkeep.enable"
OWNER_LABEL = "turnkeep.harness"
"""Names the harness that a container belongs to."""
BINDS_LABEL = "turnkeep.binds"
PIN_REPOSITORY = "turnkeep/pinned"

_HINT = "is dockerd running, and may this user reach its socket?"


@dataclass(frozen=True, slots=True)
class ContainerEvent:
    """Something that happened to a container: "start", "die", "destroy", "rename", …"""

    container_id: str
    action: str
    labels: Mapping[str, str]


class Engine:
    """A connection to one Docker Engine."""

    def __init__(self, docker_host: str = "", timeout_s: int = 60) -> None:
        self._host = docker_host
        self._timeout_s = timeout_s
        self._connected: docker.DockerClient | None = None

    @property
    def _client(self) -> docker.DockerClient:
        # Connecting asks the engine for its version: not before the first use,
        # so that the daemon starts (and says so) while the engine is down.
        if self._connected is None:
            with _errors("engine"):
                if self._host:
                    self._connected = docker.DockerClient(self._host, timeout=self._timeout_s)
                else:
                    self._connected = docker.from_env(timeout=self._timeout_s)
        return self._connected

    def close(self) -> None:
        """Close the connection, which ends `events`, too."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    def version(self) -> dict[str, Any]:
        """Return the engine's version information."""
        with _errors("engine"):
            return self._client.version()

    def info(self) -> dict[str, Any]:
        """Return the engine's system information."""
        with _errors("engine"):
            return self._client.info()

    def inspect(self, container: str) -> dict[str, Any]:
        """Return what the engine knows of a container.

        Raises:
            ContainerNotFound: it knows none of this name or id.
        """
        with _errors(container):
            return cast("dict[str, Any]", self._client.api.inspect_container(container))

    def image(self, image_id: str) -> dict[str, Any]:
        """Return what the engine knows of an image."""
        with _errors(f"image {image_id[:19]}"):
            return cast("dict[str, Any]", self._client.api.inspect_image(image_id))  # type: ignore[no-untyped-call]

    def enabled(self) -> list[str]:
        """Return the ids of running containers that ask to be attached by their label."""
        with _errors("engine"):
            found = self._client.api.containers(filters={"label": f"{ENABLE_LABEL}=true"})
        return [each["Id"] for each in found]

    def volume(self, name: str) -> dict[str, Any]:
        """Return what the engine knows of a volume."""
        with _errors(f"volume {name}"):
            return self._client.api.inspect_volume(name)

    def volume_users(self, name: str) -> list[str]:
        """Return the ids of all containers, stopped ones included, that mount a volume."""
        with _errors(f"volume {name}"):
            found = self._client.api.containers(all=True, filters={"volume": name})
        return [each["Id"] for each in found]

    def start(self, container_id: str) -> None:
        """Start a container. Does nothing if it runs."""
        with _errors(container_id[:12]):
            self._client.api.start(container_id)

    def stop(self, container_id: str, timeout_s: int = 0) -> None:
        """Stop a container. Does nothing if it is stopped."""
        with _errors(container_id[:12]):
            self._client.api.stop(container_id, timeout=timeout_s)

    def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container from a configuration of the engine's own form; return its id.

        Raises:
            Conflict: the name is taken.
        """
        # The SDK builds configurations from its own arguments; what the engine
        # gave us is taken as it is. The stubs do not list these methods.
        api: Any = self._client.api
        with _errors(name):
            answer = api._post_json(api._url("/containers/create"), params={"name": name}, data=dict(config))
            return cast("str", api._result(answer, True)["Id"])

    def rename(self, container_id: str, name: str) -> None:
        """Give a container another name.

        Raises:
            Conflict: the name is taken.
        """
        with _errors(container_id[:12]):
            self._client.api.rename(container_id, name)

    def never_restart(self, container_id: str) -> None:
        """Have the engine start a container only when it is told to."""
        with _errors(container_id[:12]):
            policy: Any = {"Name": "no"}
            self._client.api.update_container(container_id, restart_policy=policy)

    def containers_with_label(self, label: str) -> list[str]:
        """Return the ids of all containers that carry a label ("key=value")."""
        with _errors("engine"):
            found = self._client.api.containers(all=True, filters={"label": label})
        return [each["Id"] for each in found]

    def remove(self, container_id: str) -> None:
        """Remove a container with its anonymous volumes. Does nothing if it is gone."""
        with _errors(container_id[:12]), contextlib.suppress(NotFound):
            self._client.api.remove_container(container_id, v=True, force=True)

    def create_volume(self, name: str, labels: Mapping[str, str]) -> str:
        """Create a local volume; return where its files are."""
        with _errors(f"volume {name}"):
            return cast("str", self._client.api.create_volume(name, labels=dict(labels))["Mountpoint"])

    def volumes_with_label(self, label: str) -> list[str]:
        """Return the names of volumes that carry a label ("key=value")."""
        with _errors("engine"):
            found = self._client.api.volumes(filters={"label": label})
        return [each["Name"] for each in found.get("Volumes") or ()]

    def remove_volume(self, name: str) -> None:
        """Remove a volume. Does nothing if it is gone."""
        with _errors(f"volume {name}"), contextlib.suppress(NotFound):
            self._client.api.remove_volume(name)

    def pin_image(self, image_id: str) -> None:
        """Give an image a tag of ours, so that no prune of images takes it."""
        with _errors(f"image {image_id[:19]}"):
            self._client.api.tag(image_id, PIN_REPOSITORY, tag=_pin_tag(image_id), force=True)

    def unpin_image(self, image_id: str) -> None:
        """Take our tag away. Does nothing if it is gone."""
        with _errors(f"image {image_id[:19]}"), contextlib.suppress(NotFound):
            self._client.api.remove_image(f"{PIN_REPOSITORY}:{_pin_tag(image_id)}", noprune=True)

    def events(self) -> Iterator[ContainerEvent]:
        """Yield container events until the connection ends.

        Raises:
            EngineUnavailable: it ended, or the engine does not answer.
        """
        # A client of its own: the stream has no time limit, and closing it must
        # not disturb calls in flight.
        with _errors("engine"):
            # The stubs do not know that None means no limit.
            unlimited: Any = None
            if self._host:
                client = docker.DockerClient(self._host, timeout=unlimited)
            else:
                client = docker.from_env(timeout=unlimited)
            for event in client.api.events(decode=True, filters={"type": "container"}):
                actor = event.get("Actor", {})
                yield ContainerEvent(
                    container_id=actor.get("ID", event.get("id", "")),
                    action=str(event.get("Action", "")).partition(":")[0],
                    labels=actor.get("Attributes", {}),
                )
        raise EngineUnavailable("the engine closed its event stream", object="engine", hint=_HINT)


def state_of(inspected: Mapping[str, Any]) -> ContainerState:
    """Return how a container fares, from what `Engine.inspect` returned."""
    state = inspected["State"]
    if state.get("Paused"):
        return ContainerState.PAUSED
    return ContainerState.RUNNING if state.get("Running") else ContainerState.STOPPED


def _pin_tag(image_id: str) -> str:
    return image_id.rpartition(":")[2][:32]


def no_such_container(what: str) -> ContainerNotFound:
    """Return the error that says so."""
    return ContainerNotFound(
        "the engine knows no such container", object=what, hint="docker ps -a lists them"
    )


def owner_of(labels: Mapping[str, str] | None) -> str:
    """Return the harness that a container's labels name; empty if they name none."""
    return (labels or {}).get(OWNER_LABEL, "")


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn the SDK's errors into ours."""
    try:
        yield
    except NotFound as error:
        if "No such image" in str(error.explanation):
            raise RestoreFailed(
                "the engine does not have this image", object=what, hint="docker pull or docker load it"
            ) from error
        raise no_such_container(what) from error
    except APIError as error:
        message = str(error.explanation or error)
        if error.status_code == 409:
            raise Conflict(message, object=what) from error
        raise EngineUnavailable(f"the engine refused: {message}", object=what) from error
    except (DockerException, requests.RequestException, OSError) as error:
        raise EngineUnavailable(
            f"the Docker Engine does not answer: {_short(error)}", object=what, hint=_HINT
        ) from error


def _short(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0][:200] if text else type(error).__name__


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def kernel_release() -> str:
    """Return the running kernel's release."""
    return os.uname().release
