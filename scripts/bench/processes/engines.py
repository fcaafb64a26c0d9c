"""Podman, and a Docker Engine with its experimental features: containers checkpointed whole.

Each runs on folders of the benchmark's own, beside the engine that is measured with
Turnkeep, and has one container at a time, without a network.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from demo.stage import IMAGE, Failed
from turnkeep.process.whole import CRIU_BIN

from bench.processes.boxes import COMMAND, Server
from bench.processes.peers import fetch_inside, loopback_up

_LIMIT_S = 180.0
_HOST = Path(__file__).parents[2] / "host"
_CHECKPOINT = "bench"
_LIMIT = 1024


class Engine:
    """Another engine, by its command line."""

    key, title, image = "", "", IMAGE

    def __init__(self, command: Sequence[str], options: Sequence[str], environment: dict[str, str]) -> None:
        self.pid = 0
        self._command = list(command)
        self._options = list(options)
        path = f"{CRIU_BIN}:{os.environ.get('PATH', os.defpath)}"
        self.environment = {**os.environ, "PATH": path, **environment}

    def load(self) -> None:
        """Give it the sandboxes' image."""
        with subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE) as saved:
            self._call("load", "--quiet", stdin=saved.stdout)

    @contextlib.contextmanager
    def container(self, name: str) -> Iterator[None]:
        """Have a container, in which nothing runs but its init; it is removed afterwards."""
        self._name = name
        try:
            self._start(name)
            yield
        finally:
            self._call("rm", "--force", name)

    def try_out(self, name: str, server: Server) -> None:
        """Do once what is going to be measured.

        Raises:
            Failed: it does not work on this host; the message says why.
        """
        with self.container(name):
            server.start(self)
            self.checkpoint(leave_running=True)
            # Docker refuses to start from a checkpoint that equals one before (moby #42900).
            server.touch(self)
            self.checkpoint(leave_running=False)
            self.restore()

    def _start(self, name: str) -> None:
        self._call("run", "--detach", "--name", name, "--network=none", *self._options, self.image, *COMMAND)
        self.look()

    def look(self) -> None:
        """Learn the pid of the container's init, which a restore changes."""
        self.pid = int(self._call("inspect", "--format", "{{.State.Pid}}", self._name))
        # CRIU leaves a network without even that.
        loopback_up(self.pid)

    def run(self, command: list[str]) -> None:
        """Run a command in the container, to its end."""
        self._call("exec", self._name, *command)

    def fetch(self, path: str) -> int:
        """Return what the server in the container answers."""
        return fetch_inside(self.pid, path)

    def checkpoint(self, *, leave_running: bool) -> None:
        """Checkpoint the container, which ends then or goes on."""
        raise NotImplementedError

    def restore(self) -> None:
        """Bring the container back; it ended with its checkpoint."""
        raise NotImplementedError

    def _call(self, *words: str, stdin: int | IO[bytes] | None = subprocess.DEVNULL) -> str:
        """Run a command of the engine's.

        Raises:
            Failed: it failed; the message is what it said last.
        """
        done = subprocess.run(
            [*self._command, *words],
            env=self.environment,
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or [f"exited with {done.returncode}"]
            raise Failed(f"{self.title} {words[0]}: {said[-1]}")
        return done.stdout


class Podman(Engine):
    """Podman with runc."""

    key, title, image = "podman", "podman", f"localhost/{IMAGE}"

    def __init__(self, folder: Path, run: str) -> None:
        folders = [f"--root={folder}", f"--runroot={run}/run", f"--tmpdir={run}/tmp"]
        plain = ["--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc"]
        # Its own defaults may be above what this process may set.
        options = [f"--ulimit={name}={_LIMIT}:{_LIMIT}" for name in ("nofile", "nproc")]
        super().__init__(["podman", *folders, *plain], ["--pull=never", *options], {})

    def checkpoint(self, *, leave_running: bool) -> None:
        going_on = ["--leave-running"] if leave_running else []
        self._call("container", "checkpoint", *going_on, self._name)

    def restore(self) -> None:
        self._call("container", "restore", self._name)

    def forget(self) -> None:
        """Remove what it holds, so that its folders can be deleted."""
        self._call("rm", "--all", "--force", "--time=0")
        self._call("rmi", "--all", "--force")


class ExperimentalDocker(Engine):
    """A second Docker Engine whose experimental features are on."""

    key, title = "docker", "docker"

    def __init__(self, folder: Path) -> None:
        super().__init__(["docker"], [], {"DOCKER_HOST": f"unix://{folder}/docker.sock"})
        self._folder = folder
        self._number = 0

    def begin(self) -> None:
        """Start the engine.

        Raises:
            Failed: it does not start.
        """
        (self._folder / "daemon.json").write_text(json.dumps({"experimental": True}))
        environment = {**self.environment, "TURNKEEP_ENGINE_ROOT": str(self._folder)}
        del environment["DOCKER_HOST"]
        done = subprocess.run(_HOST, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise Failed(f"a second engine: {said[-1] if said else done.returncode}")
        # It runs in a network of its own, in which CRIU needs a loopback to test itself.
        loopback_up(self._pid())

    def end(self) -> None:
        """Stop the engine."""
        with contextlib.suppress(OSError, ValueError):
            ended = os.pidfd_open(self._pid())
            try:
                signal.pidfd_send_signal(ended, signal.SIGTERM)
                _wait(ended)
            finally:
                os.close(ended)

    def checkpoint(self, *, leave_running: bool) -> None:
        self._number += 1
        going_on = ["--leave-running"] if leave_running else []
        self._call("checkpoint", "create", *going_on, self._name, f"{_CHECKPOINT}-{self._number}")

    def restore(self) -> None:
        self._call("start", "--checkpoint", f"{_CHECKPOINT}-{self._number}", self._name)

    def _pid(self) -> int:
        return int((self._folder / "dockerd.pid").read_text())


@contextlib.contextmanager
def podman(folder: Path) -> Iterator[Podman]:
    """Yield a Podman with folders of its own, from which everything is removed afterwards."""
    folder.mkdir()
    # It refuses a path of more than 50 characters for these.
    with tempfile.TemporaryDirectory(prefix="turnkeep-", dir="/run") as run:
        made = Podman(folder, run)
        try:
            made.load()
            yield made
        finally:
            made.forget()
            # A command of it that was interrupted leaves its own mount behind.
            if (folder / "overlay").is_mount():
                subprocess.run(["umount", "--lazy", folder / "overlay"], check=True)


@contextlib.contextmanager
def experimental_docker(folder: Path) -> Iterator[ExperimentalDocker]:
    """Yield a second engine; it has ended afterwards."""
    folder.mkdir()
    made = ExperimentalDocker(folder)
    try:
        made.begin()
        made.load()
        yield made
    finally:
        made.end()


def why_no_podman() -> str:
    """Return why Podman cannot be measured; "" if it can."""
    return "" if shutil.which("podman") else "podman is not installed; scripts/bench-peers does that"


def _wait(ended: int) -> None:
    readable, _, _ = select.select([ended], [], [], _LIMIT_S)
    if not readable:
        raise Failed("the second engine does not end")
