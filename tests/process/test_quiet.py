"""Whether real processes that woke, in frozen cgroups of both versions, are as they were."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from turnkeep.process.memory import CannotTell, fingerprint, first_difference, own_pages
from turnkeep.process.quiet import TreePrint, Verdict, same, take
from turnkeep.process.registers import Registers
from turnkeep.process.trees import Tree, partition

from tests.unit.cgroups import PATIENCE_S, Group, Tenant, hierarchy

PLENTY = 1 << 40
FREEZE_S = 20.0
SETTLED_BY = 5
"""After so many freezes, one that only freezes wake has left all traces that it will."""


@pytest.fixture(scope="module")
def registers() -> Iterator[Registers]:
    """What reads registers, on a machine where that can be done."""
    try:
        reader = Registers()
    except CannotTell as error:
        pytest.skip(str(error))
    with reader:
        yield reader


@dataclass(slots=True)
class Subject:
    """A program in a cgroup of its own."""

    group: Group
    process: subprocess.Popen[bytes]
    registers: Registers

    @property
    def pid(self) -> int:
        return self.process.pid

    def tree(self) -> Tree:
        """Return it as a tree, with what descends from it."""
        return partition([self.pid], self.pid, lambda pid: False).trees[0]

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Freeze it, once it has come to rest by itself."""
        until(self.is_at_rest)
        self.group.cgroup.freeze(FREEZE_S)
        try:
            yield
        finally:
            self.group.cgroup.thaw()

    def is_at_rest(self) -> bool:
        """Whether all its threads wait for something."""
        stats = Path(f"/proc/{self.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] in "SZ" for stat in stats)

    def take(self, budget_bytes: int = PLENTY) -> TreePrint:
        """Take its print."""
        with self.standing_still():
            return take(self.tree(), self.registers, budget_bytes=budget_bytes)

    def same(self, earlier: TreePrint, budget_bytes: int = PLENTY, *, blind: bool = False) -> Verdict:
        """Hold it against a print."""
        with self.standing_still():
            return same(self.tree(), earlier, None if blind else self.registers, budget_bytes)

    def turns(self) -> int:
        """Return how often its main thread got a processor."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[2])

    def let_run(self) -> None:
        """Wait until it has had a processor again, and given it back."""
        before = self.turns()
        until(lambda: self.turns() > before + 1)

    def settled(self) -> TreePrint:
        """Return a print of it once its first wakings have left their traces."""
        earlier = self.take()
        for _ in range(SETTLED_BY):
            if not self.same(earlier).same:
                earlier = self.take()
        return earlier

    def ask(self, word: bytes = b".") -> None:
        """Have it do its work once; it has answered when this returns."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(word)
        assert self.process.stdout.read(1) == b"!"


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that comes true without our doing."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def start(request: pytest.FixtureRequest, registers: Registers) -> Iterator[Callable[..., Subject]]:
    """Starts programs in cgroups; they are ended afterwards."""
    if hierarchy(request.param) is None:
        pytest.skip(f"cgroup v{request.param} is not mounted, or not writable")
    groups: list[Group] = []

    def begin(*command: str | Path) -> Subject:
        groups.append(Group.make(request.param))
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, bufsize=0)
        groups[-1].tenants.append(Tenant(process))
        for folder in groups[-1].folders:
            (folder / "cgroup.procs").write_text(str(process.pid))
        return Subject(groups[-1], process, registers)

    yield begin
    for group in groups:
        for pid in group.cgroup.pids():
            os.kill(pid, signal.SIGKILL)
        group.close()


# Works when it is asked, and says so.
ASKED = """
import ctypes, mmap, os, signal, socket, sys, threading
libc = ctypes.CDLL(None)
counter, cell = 0, bytearray(1)
file = open("/proc/self/maps", "rb")
{setup}
os.write(1, b"!")
while word := os.read(0, 1):
    {work}
    os.write(1, b"!")
"""


@pytest.fixture
def asked(start: Callable[..., Subject]) -> Callable[..., Subject]:
    """Starts a program that works when it is asked, see ASKED."""

    def begin(work: str = "pass", setup: str = "") -> Subject:
        subject = start(sys.executable, "-c", ASKED.format(setup=setup, work=work))
        assert subject.process.stdout is not None
        assert subject.process.stdout.read(1) == b"!"
        return subject

    return begin


ASYNCIO = """
import asyncio, os
async def main():
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    os.write(1, b"!")
    await server.serve_forever()
asyncio.run(main())
"""


def test_an_idle_server_that_only_freezes_wake_is_the_same(start: Callable[..., Subject]) -> None:
    subject = start(sys.executable, "-c", ASYNCIO)
    assert subject.process.stdout is not None
    subject.process.stdout.read(1)
    earlier = subject.settled()
    for _ in range(5):
        assert subject.same(earlier) == Verdict(True)
    assert subject.process.poll() is None


def _program(path: Path, code: str) -> Path:
    """Write a program for x86-64 that does this, then `poll(NULL, 0, 1)`, again and again."""
    loop = bytes.fromhex(code) + bytes.fromhex("b807000000 31ff 31f6 ba01000000 0f05")
    first = bytes.fromhex("b801000000 66480f6ec8")  # xmm1 = 1
    text = first + loop + b"\xeb" + (-len(loop) - 2).to_bytes(1, "little", signed=True)
    header = b"\x7fELF\2\1\1".ljust(16, b"\0") + bytes.fromhex(
        "02003e000100000078004000000000004000000000000000000000000000000000000000400038000100000000000000"
    )
    segment = bytes.fromhex("0100000005000000000000000000000000004000000000000000400000000000")
    size = (len(header) + 56 + len(text)).to_bytes(8, "little")
    path.write_bytes(header + segment + size + size + (4096).to_bytes(8, "little") + text)
    path.chmod(0o755)
    return path


def test_a_timer_that_changes_nothing_is_no_change(start: Callable[..., Subject], tmp_path: Path) -> None:
    subject = start(_program(tmp_path / "idle", ""))
    earlier = subject.settled()
    for _ in range(5):
        subject.let_run()
        assert subject.same(earlier) == Verdict(True)


@pytest.mark.parametrize("code", ["48ffc3", "660fd4c1"], ids=["rbx", "xmm0"])
def test_a_count_in_a_register_is_a_change(start: Callable[..., Subject], tmp_path: Path, code: str) -> None:
    subject = start(_program(tmp_path / "counter", code))
    subject.let_run()
    earlier = subject.take()
    subject.let_run()
    verdict = subject.same(earlier)
    assert "registers" in verdict.why
    assert not verdict.same
    memory = earlier.processes[subject.pid].memory
    assert memory is not None
    assert first_difference(subject.pid, memory, PLENTY) is None


def test_without_registers_only_what_did_not_run_is_the_same(
    start: Callable[..., Subject], tmp_path: Path
) -> None:
    subject = start(_program(tmp_path / "idle", ""))
    earlier = subject.settled()
    subject.let_run()
    verdict = subject.same(earlier, blind=True)
    assert verdict == Verdict(False, verdict.why)
    assert "registers cannot be read" in verdict.why


CHANGES = {
    "memory": "counter += 1",
    "one byte of memory": "cell[0] ^= 1",
    "a mapping": "counter = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE)",
    "a descriptor": "os.dup(0)",
    "an offset": "file.seek(1, 1)",
    "a folder": "os.chdir('/tmp' if os.getcwd() == '/' else '/')",
    "a handler": "signal.signal(signal.SIGUSR1, lambda *_: None)",
    "a limit": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))",
    "a name": "libc.prctl(15, b'other', 0, 0, 0)",
    "a child": "os.fork() or signal.pause()",
    "a dead child": "os.fork() or os._exit(0)",
    "a thread": "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "a blocked signal": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])",
    "a user": "os.setgroups([7])",
    "another program": "os.execvp('sh', ['sh', '-c', 'printf !; read x'])",
}


@pytest.mark.parametrize("what", CHANGES)
def test_work_is_a_change(asked: Callable[..., Subject], what: str) -> None:
    subject = asked(CHANGES[what])
    earlier = subject.settled()
    assert subject.process.stdin is not None
    subject.ask()
    verdict = subject.same(earlier)
    assert not verdict.same
    assert verdict.why


UNTELLABLE = {
    "shared memory": "kept = mmap.mmap(-1, 4096)",
    "a memory file": "kept = os.memfd_create('x')",
    "a deleted file": "import tempfile; kept = tempfile.TemporaryFile()",
    "a full pipe": "a, b = os.pipe(); os.write(b, b'x')",
    "a full socket": "a, b = socket.socketpair(); b.send(b'x')",
    "a connection that nobody accepted": (
        "a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname())"
    ),
    "a datagram without content": (
        "a = socket.socket(2, 2); a.bind(('127.0.0.1', 0)); a.sendto(b'', a.getsockname())"
    ),
    "a typed line": "a, b = os.openpty(); os.write(a, b'x\\n')",
    "a watched folder": (
        "fd = libc.inotify_init(); libc.inotify_add_watch(fd, b'/tmp', 0x20); os.listdir('/tmp')"
    ),
    "a waiting signal": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); os.kill(os.getpid(), signal.SIGUSR2)"
    ),
}


@pytest.mark.parametrize("what", UNTELLABLE)
def test_what_cannot_be_told_counts_as_a_change(asked: Callable[..., Subject], what: str) -> None:
    subject = asked(setup=UNTELLABLE[what])
    earlier = subject.take()
    assert earlier.unknown
    assert subject.same(earlier) == Verdict(False, earlier.unknown)


def test_what_waits_since_the_print_is_a_change(asked: Callable[..., Subject]) -> None:
    subject = asked(setup="a, b = os.pipe(); os.set_inheritable(b, True)")
    earlier = subject.settled()
    (end,) = (
        fd
        for fd in os.listdir(f"/proc/{subject.pid}/fd")
        if int(fd) > 2 and os.stat(f"/proc/{subject.pid}/fd/{fd}", follow_symlinks=False).st_mode & 0o200
    )
    with open(f"/proc/{subject.pid}/fd/{end}", "wb", buffering=0) as pipe:
        pipe.write(b"x")
    assert "wait" in subject.same(earlier).why


def test_the_end_of_a_process_is_a_change(asked: Callable[..., Subject]) -> None:
    subject = asked(
        "os._exit(0) if os.fork() else signal.pause()", setup="child = os.fork() or signal.pause()"
    )
    earlier = subject.settled()
    (child,) = (pid for pid in earlier.processes if pid != subject.pid)
    os.kill(child, 9)
    until(lambda: Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    assert not subject.same(earlier).same


def test_more_than_the_budget_counts_as_a_change(asked: Callable[..., Subject]) -> None:
    subject = asked()
    earlier = subject.settled()
    assert "MiB" in subject.same(earlier, 1 << 16).why
    assert "MiB" in subject.take(1 << 16).unknown


def test_memory_may_be_added_from_the_dump(asked: Callable[..., Subject]) -> None:
    subject = asked()
    subject.settled()
    bare = subject.take(0)
    assert "nothing is known of its memory" in subject.same(bare).why
    with subject.standing_still():
        full = bare.with_memory(
            {pid: fingerprint(pid, PLENTY, process.scratch) for pid, process in bare.processes.items()}
        )
    assert subject.same(full) == Verdict(True)
    assert own_pages(subject.pid)


def test_registers_of_what_is_gone_cannot_be_told(registers: Registers) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(CannotTell):
        registers.read(process.pid)
