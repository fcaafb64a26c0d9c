"""What runc, Docker and Podman do with the same processes, past Turnkeep."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
from demo.stage import IMAGE, Failed
from turnkeep.process.whole import CRIU_BIN, DumpStats, read_stats
from turnkeep.runtime.bundle import find_bundle

from bench.processes.boxes import COMMAND, PORT, Box

_IMAGES, _WORK = "images", "work"
_LIMIT_S = 120.0


@contextlib.contextmanager
def in_memory() -> Iterator[Path]:
    """Yield a folder on a tmpfs."""
    with tempfile.TemporaryDirectory(prefix="turnkeep-bench-", dir="/dev/shm") as folder:
        yield Path(folder)


class Checkpoints:
    """`runc checkpoint --leave-running` of Docker's containers, into a folder in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make room for the next one."""
        for name in (_IMAGES, _WORK):
            shutil.rmtree(self._folder / name, ignore_errors=True)
            (self._folder / name).mkdir()

    def take(self, box: Box) -> None:
        """Dump all that descends from the container's init."""
        found = find_bundle(box.pid, box.container.id or "")
        runc(
            found.runc_root, "checkpoint", "--leave-running", *_folders(self._folder), box.container.id or ""
        )

    def stats(self) -> DumpStats:
        """Return CRIU's own figures of the last one."""
        return read_stats((self._folder / _WORK / "stats-dump").read_bytes())

    def image_bytes(self) -> int:
        """Return the size of the last one's images."""
        return sum(each.stat().st_blocks * 512 for each in (self._folder / _IMAGES).iterdir())


class PlainContainer:
    """A container of runc's own, without Docker, that is dumped once and restored as often as wanted."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.pid = 0
        self._folder = folder
        self._images = images
        self._name = folder.name

    def run(self, command: list[str]) -> None:
        """Run a command in it, to its end."""
        self._runc("exec", self._name, *command)

    def fetch(self, path: str) -> int:
        """Return what the server in it answers, as soon as it does."""
        return fetch_inside(self.pid, path)

    def start(self) -> None:
        """Start it."""
        self._runc("run", "--detach", *self._files(), self._name)
        self._started()

    def dump(self) -> None:
        """Dump it; this ends it."""
        (self._images / _WORK).mkdir()
        self._runc("checkpoint", *_folders(self._images), self._name)

    def restore(self) -> None:
        """Bring it back; it must not be there."""
        self._runc("restore", "--detach", *_folders(self._images), *self._files(), self._name)

    def look(self) -> None:
        """Learn its pid after a restore; runc leaves its network without even a loopback."""
        self._started()
        loopback_up(self.pid)

    def remove(self) -> None:
        """Kill it."""
        self._runc("delete", "--force", self._name)

    def _started(self) -> None:
        self.pid = int((self._folder / "pid").read_text())

    def _files(self) -> list[str]:
        return ["--bundle", str(self._folder), "--pid-file", str(self._folder / "pid")]

    def _runc(self, *words: str) -> None:
        runc(self._folder / "runc", *words)


def loopback_up(pid: int) -> None:
    """Give the network of a process its loopback."""
    subprocess.run(["nsenter", "--target", str(pid), "--net", "ip", "link", "set", "lo", "up"], check=True)


def fetch_inside(pid: int, path: str) -> int:
    """Return what a server answers that only the network of a process reaches, as soon as it does.

    Raises:
        Failed: it does not.
    """
    command = ["nsenter", "--target", str(pid), "--net", "curl", "--silent"]
    command += ["--retry", "100", "--retry-connrefused", "--retry-delay", "1"]
    done = _run([*command, f"http://127.0.0.1:{PORT}{path}"])
    if done.returncode != 0:
        raise Failed(f"a server in another engine's container does not answer: {done.stdout.strip()}")
    return int(done.stdout)


@contextlib.contextmanager
def plain_container(engine: docker.DockerClient, folder: Path, name: str) -> Iterator[PlainContainer]:
    """Yield a container of the sandboxes' image that only runc knows; it does not run yet."""
    bundle = folder / name
    for each in ("rootfs", "upper", "work"):
        (bundle / each).mkdir(parents=True)
    layers = engine.images.get(IMAGE).attrs["GraphDriver"]["Data"]
    lower = ":".join(filter(None, (layers["UpperDir"], layers.get("LowerDir"))))
    options = f"lowerdir={lower},upperdir={bundle}/upper,workdir={bundle}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, bundle / "rootfs"], check=True)
    try:
        _specify(bundle)
        with in_memory() as images:
            container = PlainContainer(bundle, images)
            try:
                yield container
            finally:
                container.remove()
    finally:
        subprocess.run(["umount", bundle / "rootfs"], check=True)


def _specify(bundle: Path) -> None:
    """Write the bundle's config.json: runc's own example, without a terminal."""
    subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
    path = bundle / "config.json"
    spec: dict[str, Any] = json.loads(path.read_text())
    spec["process"].update(terminal=False, args=COMMAND)
    spec["root"]["readonly"] = False
    path.write_text(json.dumps(spec))


def runc(root: Path, *words: str) -> None:
    """Run runc, with the CRIU that Turnkeep uses first in its PATH.

    Raises:
        Failed: it failed.
    """
    environment = {**os.environ, "PATH": f"{CRIU_BIN}:{os.environ.get('PATH', os.defpath)}"}
    # A container that is started keeps runc's standard output, so that is nothing of ours.
    with tempfile.NamedTemporaryFile("r") as log:
        command = ["runc", "--root", str(root), "--log", log.name, *words]
        nowhere = subprocess.DEVNULL
        done = subprocess.run(
            command,
            env=environment,
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
            timeout=_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            raise Failed(f"runc {words[0]} failed: {log.read().strip()}")


def docker_checkpoint(box: Box) -> str:
    """Try `docker checkpoint create`; return why it is of no use here, "" if it works."""
    done = _run(["docker", "checkpoint", "create", "--leave-running", box.name, "bench"])
    return "" if done.returncode == 0 else done.stdout.strip().splitlines()[-1]


def versions() -> dict[str, str]:
    """Return what runc and CRIU say of themselves."""
    criu = shutil.which("criu", path=f"{CRIU_BIN}:{os.environ.get('PATH', os.defpath)}")
    found = {"runc": _first_line(["runc", "--version"]).removeprefix("runc version ")}
    found["criu"] = _first_line([criu, "--version"]).removeprefix("Version: ") if criu else "none"
    return found


def _first_line(command: list[str]) -> str:
    return _run(command).stdout.partition("\n")[0]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )


def _folders(folder: Path) -> list[str]:
    return ["--image-path", str(folder / _IMAGES), "--work-path", str(folder / _WORK)]
