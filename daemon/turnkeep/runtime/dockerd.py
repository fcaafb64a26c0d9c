"""The engine's process: finding it, having it read its configuration again."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from turnkeep.errors import EngineUnavailable

_DEFAULT_SOCKET = "/var/run/docker.sock"
_DEFAULT_PID_FILE = Path("/var/run/docker.pid")
DEFAULT_HOST = f"unix://{_DEFAULT_SOCKET}"
_NAME = "dockerd"
_POLL_S = 0.02
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerd:
    """A running engine: its configuration file, the runtimes its command line names, its PATH."""

    pid: int
    config_file: Path | None
    added_runtimes: tuple[str, ...]
    path: str


def find_dockerd(host: str = "", pid_file: Path | None = None) -> Dockerd | None:
    """Find the process of the engine that listens at `host`; None if there is none here.

    It is whoever listens on the socket. Where a service manager does that for it,
    its pid stands in a pid file: the given one, or the default one for the default
    socket. In any case it has to be a dockerd.
    """
    for pid in _candidates(host or os.environ.get("DOCKER_HOST", "") or DEFAULT_HOST, pid_file):
        found = _look_at(pid)
        if found is not None:
            return found
    return None


def _candidates(host: str, pid_file: Path | None) -> Iterator[int]:
    if not host.startswith("unix://"):
        return
    files: tuple[Path, ...] = (pid_file,) if pid_file is not None else ()
    if pid_file is None:
        listener = _listener(host.removeprefix("unix://"))
        yield listener
        # The pid file of another engine than the one that was asked for would lead to that.
        is_default = os.path.realpath(host.removeprefix("unix://")) == os.path.realpath(_DEFAULT_SOCKET)
        files = (_DEFAULT_PID_FILE,) if listener and is_default else ()
    for path in files:
        try:
            yield int(path.read_text())
        except (OSError, ValueError):
            continue


def _listener(path: str) -> int:
    """Return the pid of the process that listens on a socket; 0 if none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:
            return 0
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid


def _look_at(pid: int) -> Dockerd | None:
    if not _is_dockerd(pid):
        return None
    try:
        words = [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        cwd = Path(os.readlink(f"/proc/{pid}/cwd"))
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    values = dict(os.fsdecode(each).partition("=")[::2] for each in environment)
    config = _option(words, "--config-file")
    return Dockerd(
        pid=pid,
        config_file=cwd / config[-1] if config else None,
        added_runtimes=tuple(_option(words, "--add-runtime")),
        path=values.get("PATH", os.defpath),
    )


def _is_dockerd(pid: int) -> bool:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        program = os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")  # after an upgrade
    except OSError:
        return False
    return pid > 1 and name == _NAME and os.path.basename(program) == _NAME


def _option(words: list[str], name: str) -> list[str]:
    found = [word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")]
    return found + [words[index + 1] for index, word in enumerate(words[:-1]) if word == name]


def reload(dockerd: Dockerd, done: Callable[[], bool], timeout_s: float) -> bool:
    """Have the engine read its configuration again; return whether `done` then came true in time.

    Raises:
        EngineUnavailable: it ended.
    """
    pidfd = _open(dockerd.pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGHUP)
        deadline = time.monotonic() + timeout_s
        while not done():
            if select.select([pidfd], [], [], _POLL_S)[0]:
                raise EngineUnavailable("the engine ended while it read its configuration", object=_NAME)
            if time.monotonic() > deadline:
                return False
        return True
    finally:
        os.close(pidfd)


def _open(pid: int) -> int:
    """Return a pidfd of an engine; what has taken its number meanwhile would die of the signal."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise EngineUnavailable("the engine has ended", object=_NAME) from error
    if _is_dockerd(pid):
        return pidfd
    os.close(pidfd)
    raise EngineUnavailable("the engine has ended", object=_NAME)
