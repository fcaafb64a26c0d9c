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

import psutil

FREEZE_SWITCHES = 1
THAW_SWITCHES = 1
_RUN_SLACK_NS = 500_000
_USAGE_SLACK_NS = 5_000


@dataclass(frozen=True, slots=True)
class Thread:
    """Counters of one thread: context switches, and time on a processor."""

    switches: int
    run_ns: int


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a sandbox, by its pid on the host."""

    pid: int
    started: float
    name: str
    command: tuple[str, ...]
    parent: int
    threads: Mapping[int, Thread]

    @property
    def identity(self) -> tuple[int, float]:
        """What tells it from a later process with the same pid."""
        return self.pid, self.started

    def __str__(self) -> str:
        return f"{self.pid} {self.name}"


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """The processes of a sandbox at one time, and the processor time of its whole cgroup."""

    processes: Mapping[tuple[int, float], Process] = field(default_factory=dict)
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
    try:
        handle = psutil.Process(pid)
        with handle.oneshot():
            if handle.status() == psutil.STATUS_ZOMBIE:
                return None
            return Process(
                pid=pid,
                started=handle.create_time(),
                name=_text(handle.name()),
                command=tuple(map(_text, handle.cmdline())),
                parent=handle.ppid(),
                threads=_threads(pid),
            )
    except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError, ProcessLookupError):
        return None


def _text(value: str) -> str:
    """Return a name as text: a process may call itself anything, UTF-8 or not."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _threads(pid: int) -> dict[int, Thread]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{name}/schedstat", "rb") as file:
                run_ns, _, switches = (int(part) for part in file.read().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(name)] = Thread(switches, run_ns)
    return found


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
