"""The daemon's side of the launcher: a process that starts CRIU in sandboxes' namespaces."""

from __future__ import annotations

import array
import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from turnkeep.errors import CriuFailed
from turnkeep.process import launcher
from turnkeep.process.criu import ENVIRONMENT, Criu, command, make_tools

_FIRST_HANDED_DOWN = 3
_MOST_RANGES = 1000
"""So that a request fits into one datagram."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where CRIU is to run: beside a sandbox's init.

    `freezer` is the cgroup to freeze meanwhile; `join` are the `cgroup.procs` of
    those that CRIU, and so all that it restores, is to be in. `avoid` are pids, in
    the sandbox, that CRIU must not take for itself: those it is to bring back.
    """

    init: int
    freezer: str | None = None
    join: Sequence[str] = ()
    avoid: Collection[int] = ()


class Run:
    """A CRIU that was started. Its requests and answers go over `socket`."""

    def __init__(self, number: int, channel: socket.socket, launcher_: Launcher) -> None:
        self.socket = channel
        self._number = number
        self._launcher = launcher_

    def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        return self._launcher.wait(self._number)


class Launcher:
    """Starts CRIU. One process for all sandboxes; used from any thread.

    When this daemon dies it lives until what it started has ended.
    """

    def __init__(self, criu: Criu, stage: Path) -> None:
        self._criu = criu
        self._stage = stage
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._numbers = itertools.count(1)
        self._ended: dict[int, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            if self._process is not None:
                self._process.wait()
            self._process = self._channel = None

    def start(self, place: Place, images: int | str, log: int, handed_down: Sequence[int] = ()) -> Run:
        """Start CRIU beside a sandbox's init; it has the descriptors from 4 on.

        `images` is a detached mount, which it gets for good, or a folder.

        Raises:
            CriuFailed: the launcher does not run.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = next(self._numbers)
            request = {
                "id": number,
                "argv": command(_FIRST_HANDED_DOWN),
                "environment": ENVIRONMENT,
                "freezer": place.freezer,
                "images": images if isinstance(images, str) else None,
                "join": list(place.join),
                "avoid": ranges(place.avoid),
            }
            mount = images if isinstance(images, int) else log
            fds = array.array("i", [place.init, mount, log, theirs.fileno(), *handed_down])
            self._send(json.dumps(request).encode(), fds)
        return Run(number, ours, self)

    def wait(self, number: int) -> int:
        """Wait for the end of a run; return its exit code."""
        while True:
            with self._reading:
                if number in self._ended:
                    return self._ended.pop(number)
                channel = self._channel
                data = b""
                if channel is not None:
                    with contextlib.suppress(OSError):
                        data = channel.recv(4096)
                if not data:
                    raise CriuFailed("the process that starts CRIU has ended", hint="see the daemon's log")
                answer = json.loads(data)
                self._ended[answer["id"]] = answer["status"]

    def _send(self, request: bytes, fds: array.array[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
        with self._lock:
            for _ in range(2):
                if self._process is None or self._process.poll() is not None:
                    self._start()
                assert self._channel is not None
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._channel.sendmsg([request], rights)
                    return
        raise CriuFailed("the process that starts CRIU does not run and cannot be started")

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stage.mkdir(exist_ok=True, mode=0o700)
        tools = make_tools(self._criu)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", launcher.__file__, str(self._stage), str(tools)],
                    stdin=theirs.fileno(),
                    pass_fds=[tools],
                    start_new_session=True,
                )
        finally:
            os.close(tools)
        if self._channel is not None:
            self._channel.close()
        self._channel = ours


def ranges(pids: Iterable[int], most: int = _MOST_RANGES) -> list[tuple[int, int]]:
    """Return (first, last) of ranges that hold these pids, and few others; at most so many."""
    gap = 1
    ordered = sorted(set(pids))
    while True:
        found: list[tuple[int, int]] = []
        for pid in ordered:
            if found and pid - found[-1][1] <= gap:
                found[-1] = (found[-1][0], pid)
            else:
                found.append((pid, pid))
        if len(found) <= most:
            return found
        gap *= 2


def ready(channel: socket.socket, timeout_s: float) -> bool:
    """Whether CRIU says something, or has ended, within a time."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
