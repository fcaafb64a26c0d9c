"""Whether processes that woke are still as they were dumped.

A timer, a freeze or a stray signal wakes a server that then does nothing. The
counters say that it ran; only its state says whether anything changed. So at a
dump a print is taken of everything that makes up a tree, and later, inside a
freeze, the tree is held against it: what the kernel keeps for the processes,
their threads' registers, and last, because it costs most, their memory.

The answer "same" means that a dump would hold the same. Whatever cannot be told
counts as a change. What is no change: how much time is left of a timer, on which
processor a thread is, and a system call that was begun anew after a freeze.

Most servers that wake for timers of their own do change: a deadline on the stack,
a cached time. Those that only a freeze wakes (in `epoll_wait`, say) do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from turnkeep.process.kernelside import descriptors, process_state, thread_state
from turnkeep.process.memory import CannotTell, MemoryPrint, fingerprint, first_difference
from turnkeep.process.proc import GONE, Folder, Process
from turnkeep.process.registers import Registers, Saved
from turnkeep.process.trees import Tree


@dataclass(frozen=True, slots=True)
class ThreadPrint:
    """One thread: time and turns on a processor, what the kernel keeps for it, registers if known."""

    turns: tuple[int, int]
    state: tuple[bytes, ...]
    saved: Saved | None


@dataclass(frozen=True, slots=True)
class ProcessPrint:
    """One process; of a dead one nothing is known but that it is dead."""

    identity: tuple[int, int, bool]
    state: tuple[bytes, ...] = ()
    threads: Mapping[int, ThreadPrint] = field(default_factory=dict)
    descriptors: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)
    memory: MemoryPrint | None = None

    @property
    def scratch(self) -> tuple[int, ...]:
        """The places in its memory that the kernel writes to, for `MemoryPrint.of_pages`."""
        return tuple(thread.saved.scratch for thread in self.threads.values() if thread.saved)


@dataclass(frozen=True, slots=True)
class TreePrint:
    """A tree as it stood when it was dumped. `unknown` says why nothing can ever equal it."""

    processes: Mapping[int, ProcessPrint] = field(default_factory=dict)
    unknown: str = ""

    def with_memory(self, memory: Mapping[int, MemoryPrint]) -> TreePrint:
        """Return it with prints of memory that were made from the dump, by pid on the host."""
        processes = {
            pid: replace(process, memory=memory.get(pid, process.memory))
            for pid, process in self.processes.items()
        }
        return replace(self, processes=processes)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a tree is as it was, and if not, why it does not count as that."""

    same: bool
    why: str = ""


def take(tree: Tree, registers: Registers | None, *, budget_bytes: int = 0) -> TreePrint:
    """Take the print of a frozen tree, inside the freeze of its dump.

    Its memory is read if a budget is given; without, add it from the dump
    (`TreePrint.with_memory`), outside of the freeze.
    """
    try:
        processes = {process.pid: _look(process, registers) for process in tree.processes}
        if budget_bytes:
            processes = dict(_with_memory(processes, budget_bytes))
        return TreePrint(processes)
    except CannotTell as error:
        return TreePrint(unknown=str(error))


def _with_memory(
    processes: Mapping[int, ProcessPrint], budget_bytes: int
) -> Iterable[tuple[int, ProcessPrint]]:
    for pid, process in processes.items():
        if not process.threads:
            yield pid, process
            continue
        memory = fingerprint(pid, budget_bytes, process.scratch)
        budget_bytes -= memory.size
        yield pid, replace(process, memory=memory)


def same(tree: Tree, earlier: TreePrint, registers: Registers | None, budget_bytes: int) -> Verdict:
    """Hold a frozen tree against its print, reading at most so much memory."""
    if earlier.unknown:
        return Verdict(False, earlier.unknown)
    if earlier.processes.keys() != set(tree.pids):
        return Verdict(False, "processes came or went")
    try:
        for process in tree.processes:
            why = _difference(earlier.processes[process.pid], _look(process, registers))
            if why:
                return Verdict(False, f"{process}: {why}")
        return _same_memory(tree, earlier, budget_bytes)
    except CannotTell as error:
        return Verdict(False, str(error))


def _same_memory(tree: Tree, earlier: TreePrint, budget_bytes: int) -> Verdict:
    for process in tree.processes:
        then = earlier.processes[process.pid]
        if not then.threads:
            continue
        if then.memory is None:
            return Verdict(False, f"{process}: nothing is known of its memory")
        where = first_difference(process.pid, then.memory, budget_bytes, then.scratch)
        if where is not None:
            return Verdict(False, f"{process}: its memory changed at {where:x}")
        budget_bytes -= then.memory.size
    return Verdict(True)


def _look(process: Process, registers: Registers | None) -> ProcessPrint:
    identity = process.pid, process.started, process.dead
    if process.dead:
        return ProcessPrint(identity)
    if process.zombie:
        raise CannotTell(f"{process}: its main thread has ended")
    try:
        with Folder(process.pid) as folder:
            threads = {int(name): _thread(folder, int(name), registers) for name in folder.names("task")}
            return ProcessPrint(identity, process_state(folder), threads, descriptors(folder))
    except (*GONE, OverflowError) as error:
        raise CannotTell(f"{process}: {error}") from error


def _thread(folder: Folder, thread: int, registers: Registers | None) -> ThreadPrint:
    run_ns, _, switches = folder.read(f"task/{thread}/schedstat").split()
    saved = registers.read(thread) if registers is not None else None
    return ThreadPrint((int(run_ns), int(switches)), thread_state(folder, thread), saved)


def _difference(then: ProcessPrint, now: ProcessPrint) -> str:
    """Return what differs between two looks at a process, memory aside; empty if nothing does."""
    if then.identity != now.identity:
        return "it ended, or is another"
    if then.threads.keys() != now.threads.keys():
        return "threads came or went"
    for thread in now.threads:
        why = _thread_difference(then.threads[thread], now.threads[thread])
        if why:
            return f"thread {thread}: {why}"
    if then.state != now.state:
        return "its mappings, credentials, limits, folders or signal handlers changed"
    if then.descriptors.keys() != now.descriptors.keys():
        return "descriptors were opened or closed"
    changed = [fd for fd, held in now.descriptors.items() if held != then.descriptors[fd]]
    return f"descriptor {changed[0]} changed" if changed else ""


def _thread_difference(then: ThreadPrint, now: ThreadPrint) -> str:
    if then.state != now.state:
        return "its children, credentials or signals changed"
    if then.turns == now.turns:
        # It never left the place where it stood.
        return ""
    if then.saved is None or now.saved is None:
        return "it ran, and its registers cannot be read"
    return "" if now.saved.same(then.saved) else "it is at another place, or its registers changed"
