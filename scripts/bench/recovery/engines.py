"""The engine that a case runs on: the machine's, or one that may be killed."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker
from demo.stage import Failed

from bench.replay.traces import ROOT

_LIMIT_S = 120.0


class Engine:
    """The machine's engine. `environment` is for what is to find it by itself."""

    def __init__(self) -> None:
        self.environment: Mapping[str, str] = os.environ
        self.client = docker.from_env()

    def close(self) -> None:
        """Hang up."""
        self.client.close()


class OwnEngine(Engine):
    """A second dockerd with all that it has in one folder, in a network of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.environment = {
            **os.environ,
            "TURNKEEP_ENGINE_ROOT": str(folder),
            "DOCKER_HOST": f"unix://{folder}/docker.sock",
        }
        self.start()
        self._call("image")
        self.client = docker.DockerClient(self.environment["DOCKER_HOST"])

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._call("host")

    def kill(self) -> None:
        """End it with SIGKILL; its containers do not notice."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it, and remove what it mounted."""
        with contextlib.suppress(FileNotFoundError):
            self._end(signal.SIGTERM)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            target = line.split()[1]
            if target.startswith(f"{self._folder}/"):
                subprocess.run(["umount", "--lazy", target], check=False)

    def _end(self, number: signal.Signals) -> None:
        try:
            pidfd = os.pidfd_open(int((self._folder / "dockerd.pid").read_text()))
        except ProcessLookupError:
            return
        try:
            signal.pidfd_send_signal(pidfd, number)
            if not select.select([pidfd], [], [], _LIMIT_S)[0]:
                raise Failed(f"the engine in {self._folder} does not end")
        finally:
            os.close(pidfd)

    def _call(self, script: str) -> None:
        done = subprocess.run(
            [ROOT / "scripts" / script],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()
            raise Failed(f"an engine of the benchmark's own could not be started:\n{said}")


@contextlib.contextmanager
def machines() -> Iterator[Engine]:
    """Yield the machine's engine."""
    with contextlib.closing(Engine()) as engine:
        yield engine


@contextlib.contextmanager
def own() -> Iterator[OwnEngine]:
    """Yield an engine that may be killed; it and all that it had is gone afterwards."""
    # A short path: that of a socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="tk-engine-", dir="/var/tmp"))
    try:
        engine = OwnEngine(folder)
        try:
            yield engine
        finally:
            for container in engine.client.containers.list(all=True, ignore_removed=True):
                container.remove(force=True, v=True)
            engine.close()
            engine.stop()
    finally:
        shutil.rmtree(folder)
