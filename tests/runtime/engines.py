"""An engine of the tests' own, which they may reconfigure and break."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import docker

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
LIMIT_S = 120.0


class OwnEngine:
    """A second dockerd, in a network namespace of its own, with the sandbox image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.daemon_json = folder / "daemon.json"
        self.environment = {**os.environ, "TURNKEEP_ENGINE_ROOT": str(folder)}
        self.environment.pop("DOCKER_HOST", None)

    def start(self, *, programs: str = "") -> None:
        """Start it, and wait until it answers and has the image.

        `programs` is a folder to look in for the dockerd before PATH.
        """
        if programs:
            self.environment["PATH"] = f"{programs}:{os.environ['PATH']}"
        for name in ("host", "image"):
            command = [SCRIPTS / name]
            done = subprocess.run(
                command, env=self.environment, check=False, capture_output=True, text=True, timeout=LIMIT_S
            )
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stdout}{done.stderr}")
        # CRIU looks what the kernel's network can do, wherever it runs.
        subprocess.run(self.inside("ip", "link", "set", "lo", "up"), check=True)
        self.connect()

    def connect(self) -> None:
        """Connect to it."""
        self.client = docker.DockerClient(self.host)

    @property
    def pid(self) -> int:
        """The dockerd's."""
        return int((self.folder / "dockerd.pid").read_text())

    def inside(self, *words: str) -> list[str]:
        """Return a command that runs in its network."""
        return ["nsenter", "--net", f"--target={self.pid}", *words]

    def stop(self) -> None:
        """Stop it, and remove all that it had."""
        with contextlib.suppress(FileNotFoundError):
            _end(self.pid)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            target = line.split()[1]
            if target.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", target], check=False)
        shutil.rmtree(self.folder)


def _end(pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        assert select.select([pidfd], [], [], LIMIT_S)[0], "the engine does not stop"
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def own_engine(*, programs: str = "") -> Iterator[OwnEngine]:
    """Run an engine for a `with` block."""
    # Not among pytest's folders, which other runs clean up. And short: a socket's
    # path has at most 107 bytes.
    made = OwnEngine(Path(tempfile.mkdtemp(prefix="tk-engine-")))
    try:
        made.start(programs=programs)
        yield made
    finally:
        if hasattr(made, "client"):
            for container in made.client.containers.list(all=True, ignore_removed=True):
                container.remove(force=True, v=True)
            made.client.close()
        made.stop()
