"""What the demo starts. Each thing ends, and is gone, with its block."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import docker
from docker.errors import ImageNotFound, NotFound
from docker.models.containers import Container

IMAGE = "turnkeep/sandbox:test"
BIN = Path(sys.executable).parent

_PINNED = "turnkeep/pinned:"
_START_S, _STOP_S = 60.0, 60.0
_LOG_LINES = 15


class Failed(Exception):
    """The demo did not show what it is to show."""


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="turnkeep-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def private_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which nothing of Turnkeep is the system's."""
    config = folder / "turnkeep.toml"
    # The containers of this machine that ask for it by their label are not the demo's.
    config.write_text("auto_attach = false\n")
    ours = {
        "TURNKEEP_CONFIG": str(config),
        "TURNKEEP_STATE_DIR": str(folder / "state"),
        "TURNKEEP_ADDRESS": f"unix://{folder}/turnkeep.sock",
    }
    return {**os.environ, **ours}


def stored_files(folder: Path) -> tuple[int, int]:
    """Return the bytes of the store's packs and records, and of the state's other files."""
    kept = other = 0
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            if path.parent.name in ("packs", "snapshots"):
                kept += path.stat().st_size
            else:
                other += path.stat().st_size
    return kept, other


@contextlib.contextmanager
def daemon(folder: Path, environment: Mapping[str, str]) -> Iterator[int]:
    """Run `turnkeep serve` on the folder. Yields its pid once it serves."""
    log = folder / "daemon.log"
    # A session of its own: Ctrl-C is for the demo, which then stops it in order.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("wb") as output:
        ready.bind(str(folder / "notify"))
        process = subprocess.Popen(
            [BIN / "turnkeep", "serve", "--log-format", "json"],
            env={**environment, "NOTIFY_SOCKET": str(folder / "notify")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, ready)
            yield process.pid
        except Exception:
            sys.stderr.writelines(log.read_text().splitlines(keepends=True)[-_LOG_LINES:])
            raise
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], ready: socket.socket) -> None:
    """Wait for what the daemon tells systemd, too, or for its end (sd_notify(3))."""
    ended = os.pidfd_open(process.pid)
    try:
        readable, _, _ = select.select([ready.fileno(), ended], [], [], _START_S)
    finally:
        os.close(ended)
    if ready.fileno() not in readable or b"READY=1" not in ready.recv(4096):
        late = f"the daemon was not ready within {_START_S:.0f} s"
        raise Failed("the daemon ended while it started" if readable else late)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def container(engine: docker.DockerClient, name: str) -> Iterator[Container]:
    try:
        yield engine.containers.run(
            IMAGE, ["sleep", "infinity"], name=name, init=True, network_mode="none", detach=True
        )
    finally:
        with contextlib.suppress(NotFound):
            engine.api.remove_container(name, force=True, v=True)


@contextlib.contextmanager
def pin_removed(engine: docker.DockerClient) -> Iterator[None]:
    """Take away the tag that the daemon gives the image, unless it was there before."""
    image = engine.images.get(IMAGE)
    before = set(image.tags)
    try:
        yield
    finally:
        image.reload()
        for tag in set(image.tags) - before:
            if tag.startswith(_PINNED):
                with contextlib.suppress(ImageNotFound):
                    engine.images.remove(tag, noprune=True)


@contextlib.contextmanager
def removed(name: str) -> Iterator[Container]:
    """Yield a container by its name; it is removed in the end."""
    with contextlib.closing(docker.from_env()) as engine:
        container = engine.containers.get(name)
        try:
            yield container
        finally:
            container.remove(force=True, v=True)
