"""Which processes of a sandbox were born, died, or ran.

A thread that runs and sleeps again has switched context; a thread that never
slept has used processor time. Both counters are per thread and exact, where
processor ticks (10 ms) miss small runs. Freezing adds switches of its own: one
for a thread that has to be woken to freeze, and one when it goes back to sleep
after the thaw (measured on cgroup v1, kernel 6.18; two in all on v2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

FREEZE_SWITCHES = 1
THAW_SWITCHES = 1
_RUN_SLACK_NS = 500_000
_USAGE_SLACK_NS = 5_000

_STATE, _PARENT, _STARTED = 0, 1, 19
"""Fields of /proc/PID/stat, counted from the one after the name."""
_NAME_CHARACTERS = 15
_GONE = (FileNotFoundError, ProcessLookupError)
_READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Thread:
    """Counters of one thread: context switches, and time on a processor."""

    switches: int
    run_ns: int


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a sandbox, by its pid on the host; `started` counts clock ticks since boot."""

    pid: int
    started: int
    name: str
    command: tuple[str, ...]
    parent: int
    threads: Mapping[int, Thread]

    @property
    def identity(self) -> tuple[int, int]:
        """What tells it from a later process with the same pid."""
        return self.pid, self.started

    def __str__(self) -> str:
        return f"{self.pid} {self.name}"


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """The processes of a sandbox at one time, and the processor time of its whole cgroup."""

    processes: Mapping[tuple[int, int], Process] = field(default_factory=dict)
    usage_ns: int = 0


def sample(pids: Iterable[int], usage_ns: Callable[[], int]) -> ProcessSample:
    """Look at the given processes. Those that end meanwhile are left out."""
    found = {}
    for pid in pids:
        process = _look_at(pid)
        if process is not None:
            found[process.identity] = process
    return ProcessSample(found, usage_ns())


def _look_at(pid: int) -> Process | None:
    """Read one process from /proc, see proc(5); it is looked at inside freezes, so with few calls."""
    try:
        head, _, tail = _read(f"/proc/{pid}/stat").rpartition(b")")
        fields = tail.split()
        if fields[_STATE] in (b"Z", b"X"):
            return None
        line = _read(f"/proc/{pid}/cmdline")
        command = tuple(map(_text, line.removesuffix(b"\0").split(b"\0"))) if line else ()
        return Process(
            pid=pid,
            started=int(fields[_STARTED]),
            name=_whole_name(_text(head.partition(b"(")[2]), command),
            command=command,
            parent=int(fields[_PARENT]),
            threads=_threads(pid),
        )
    except _GONE:
        return None


def _whole_name(name: str, command: tuple[str, ...]) -> str:
    """Return a name that the kernel has cut as its command line has it."""
    program = command[0].rpartition("/")[2] if command else ""
    return program if len(name) >= _NAME_CHARACTERS and program.startswith(name) else name


def _text(value: bytes) -> str:
    """Return a name as text: a process may call itself anything, UTF-8 or not."""
    return value.decode("utf-8", "backslashreplace")


def _threads(pid: int) -> dict[int, Thread]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/task"):
        try:
            run_ns, _, switches = _read(f"/proc/{pid}/task/{name}/schedstat").split()
        except _GONE:
            continue
        found[int(name)] = Thread(int(switches), int(run_ns))
    return found


def _read(path: str) -> bytes:
    """Return what /proc holds under a path, however long it is."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Activity:
    """What stateful processes did between two samples, and what could not be told."""

    born: tuple[Process, ...] = ()
    died: tuple[Process, ...] = ()
    ran: tuple[Process, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.born or self.died or self.ran)

    def describe(self) -> tuple[str, ...]:
        """Return "pid name (what it did)" for each."""
        kinds = (("born", self.born), ("died", self.died), ("ran", self.ran))
        return tuple(f"{process} ({what})" for what, group in kinds for process in group)


def activity(before: ProcessSample, after: ProcessSample, is_stateful: Callable[[Process], bool]) -> Activity:
    """Compare a sample taken inside a freeze with one taken after the thaw."""
    born, ran = [], []
    for identity, process in after.processes.items():
        if not is_stateful(process):
            continue
        earlier = before.processes.get(identity)
        if earlier is None:
            born.append(process)
        elif _ran(earlier, process):
            ran.append(process)
    died = [
        process
        for identity, process in before.processes.items()
        if identity not in after.processes and is_stateful(process)
    ]
    return Activity(tuple(born), tuple(died), tuple(ran))


def _ran(before: Process, after: Process) -> bool:
    if before.threads.keys() != after.threads.keys():
        return True
    for thread_id, thread in after.threads.items():
        earlier = before.threads[thread_id]
        if (
            thread.switches - earlier.switches > THAW_SWITCHES
            or thread.run_ns - earlier.run_ns > _RUN_SLACK_NS
        ):
            return True
    return False


def quiet_since(before: ProcessSample, frozen: ProcessSample, is_stateful: Callable[[Process], bool]) -> bool:
    """Whether nothing in the sandbox can have written a file between the samples.

    `frozen` was taken inside the freeze. True only if no process came or went,
    every thread of a stateful process stayed off the processors (a thread woken
    to be frozen counts as having run, for it may have), and no process that came
    and went in between used processor time of the cgroup.
    """
    if before.processes.keys() != frozen.processes.keys():
        return False
    accounted = 0
    for identity, process in frozen.processes.items():
        earlier = before.processes[identity]
        if earlier.threads.keys() != process.threads.keys():
            return False
        for thread_id, thread in process.threads.items():
            then = earlier.threads[thread_id]
            allowed = 0 if is_stateful(process) else FREEZE_SWITCHES
            if thread.switches - then.switches > allowed:
                return False
            accounted += thread.run_ns - then.run_ns
    return frozen.usage_ns - before.usage_ns - accounted <= _USAGE_SLACK_NS


def stateful_test(
    init_pid: int,
    command: tuple[str, ...],
    reproducible: Collection[str],
    health_check: tuple[str, ...] = (),
) -> Callable[[Process], bool]:
    """Return the test of a process for state that starting the container again would not bring back.

    Reproducible are the container's init, and below an init shim the container's
    own command, if the program is a known idle one (`sleep`, the shim itself),
    and the engine's own health check. Everything else counts as stateful.
    """

    def is_stateful(process: Process) -> bool:
        if process.pid == init_pid or (process.parent == init_pid and process.command == command):
            return process.name not in reproducible
        return not (health_check and process.command == health_check)

    return is_stateful
