"""Whether processes can be dumped and restored here: by doing it to a small one of our own.

A version says little about it: a kernel, a security module or a capability that the
daemon lacks may all be in the way. So a server is started in a small sandbox
(`selftest_box`), dumped by the engine that is used for real ones, killed, restored,
and asked whether it goes on from where it was. Blocking: use threads.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from turnkeep.errors import CriuFailed, TurnkeepError
from turnkeep.process import selftest_box
from turnkeep.process.confinement import Confinement, compare
from turnkeep.process.images import open_images
from turnkeep.process.launch import Place, ready
from turnkeep.process.observe import observe
from turnkeep.process.sandboxed import Dumped, Images, InSandbox
from turnkeep.process.table import read_table

NOBODY = 65534
"""A user that is not root, and that owns nothing."""

_CLOCKS = "timens-0.img"
_LIMIT_S = 30.0


class Group(Protocol):
    """A cgroup that the small sandbox is put into."""

    @property
    def freezer_folder(self) -> str: ...

    def procs_files(self) -> list[str]: ...

    def pids(self) -> list[int]: ...

    def frozen(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How it went for a process of one user. `error` says why it failed, `hint` what to do."""

    uid: int
    error: str = ""
    hint: str = ""
    stopped_ns: int = 0
    total_ns: int = 0

    @property
    def passed(self) -> bool:
        """Whether the process went on."""
        return not self.error


def try_out(engine: InSandbox, group: Group, uid: int) -> Trial:
    """Dump and restore a process of one user. Nothing of it is left, whatever happens.

    The group is empty, and is so again.
    """
    started = time.monotonic_ns()
    try:
        with _box(group) as box:
            stopped_us = _round_trip(engine, group, box, uid)
    except TurnkeepError as error:
        return Trial(uid=uid, error=error.message, hint=error.hint)
    except OSError as error:
        return Trial(uid=uid, error=f"the self-test could not be done: {error}")
    return Trial(uid=uid, stopped_ns=stopped_us * 1000, total_ns=time.monotonic_ns() - started)


@dataclass(slots=True)
class _Box:
    """The small sandbox: its init, and the server in it."""

    channel: socket.socket
    init_pid: int
    init: int
    server: int = 0
    port: int = 0

    def start(self, uid: int) -> None:
        """Start the server."""
        answer = _ask(self.channel, {"start": uid})
        self.server, self.port = answer["pid"], answer["port"]

    def expect(self, count: int, when: str) -> None:
        """Make sure that the server says this number.

        Raises:
            CriuFailed: it says something else.
        """
        said = _ask(self.channel, {"ask": self.port})["said"]
        if said != count:
            raise CriuFailed(f"the process does not go on {when}: it says {said}, not {count}")

    def kill(self) -> None:
        """End the server; its number is free afterwards."""
        _ask(self.channel, {"end": self.server})

    def on_host(self, group: Group) -> int:
        """Return the server's pid on the host.

        Raises:
            CriuFailed: it is not in the group.
        """
        for row in read_table(group.pids(), self.init_pid).rows:
            if row.pid == self.server:
                return row.host
        raise CriuFailed(f"process {self.server} is not in its cgroup")


@contextlib.contextmanager
def _box(group: Group) -> Iterator[_Box]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, contextlib.ExitStack() as stack:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", selftest_box.__file__],
                stdin=theirs.fileno(),
                start_new_session=True,
            )
        stack.callback(process.wait)
        # Its init ends when this is closed; what waits for that ends then.
        stack.callback(ours.close)
        init_pid = int(_read(ours)["init"])
        init = os.pidfd_open(init_pid)
        stack.callback(os.close, init)
        stack.callback(_kill, init)
        for path in group.procs_files():
            with open(path, "w") as file:
                file.write(str(init_pid))
        yield _Box(ours, init_pid, init)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)


def _ask(channel: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    channel.send(json.dumps(request).encode())
    return _read(channel)


def _read(channel: socket.socket) -> dict[str, Any]:
    data = channel.recv(4096) if ready(channel, _LIMIT_S) else b""
    answer: dict[str, Any] = json.loads(data) if data else {"error": "it does not answer"}
    if "error" in answer:
        raise CriuFailed(f"the self-test's own process: {answer['error']}")
    return answer


def _round_trip(engine: InSandbox, group: Group, box: _Box, uid: int) -> int:
    """Dump, kill and restore a server; return for how many microseconds it was stopped."""
    box.start(uid)
    box.expect(1, "before the dump")
    before, around = observe(box.on_host(group)), observe(box.init_pid)
    place = Place(init=box.init, freezer=group.freezer_folder)
    with engine.waiting(place) as waiting, group.frozen():
        dumped = engine.dump(waiting, box.server)
    try:
        # What is restored for real is read and checked by us first.
        open_images(dumped.images.folder)
        images = _copied(engine, dumped)
    finally:
        dumped.images.close()
    box.expect(2, "after the dump")
    box.kill()
    try:
        _restore(engine, group, box, images, before, around)
    finally:
        images.close()
    box.expect(2, "after the restore")
    return dumped.stats.frozen_us


def _copied(engine: InSandbox, dumped: Dumped) -> Images:
    images = engine.new_images()
    try:
        for name in dumped.images.names():
            # On the boot that it was dumped on, its clocks simply went on.
            if name != _CLOCKS:
                images.write(name, dumped.images.read(name))
    except BaseException:
        images.close()
        raise
    return images


def _restore(
    engine: InSandbox, group: Group, box: _Box, images: Images, before: Confinement, around: Confinement
) -> None:
    def check() -> None:
        restored = observe(box.on_host(group))
        weaker = [str(each) for each in compare(before, restored, init=around) if each.weaker]
        if weaker:
            raise CriuFailed(f"the process came back less confined: {'; '.join(weaker)}")

    engine.restore(Place(init=box.init, join=group.procs_files()), images, check)
