"""Rules for the inventory, the tree and its processes. See `vet` for what they are for."""

from __future__ import annotations

from collections.abc import Iterator

from turnkeep.process.allowance import Allowance, require
from turnkeep.process.confinement import RLIMITS, UNLIMITED, Confinement
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import Images, Task, TaskState

_IMAGE_VERSION = 2
_NO_FIREWALL_PROGRAM = (0, 2, 3)
"""Ways to lock the network that start no program: none yet, nftables by its library, none at all."""
_LSM_TYPES = (0, 1, 2)
_NAMESPACES = ("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time")
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008)
"""What Docker's seccomp filter lets a process choose."""
_COMM_BYTES, _SIGINFO_BYTES, _MAX_SIGNALS = 15, 128, 100_000
_ALARM_CLOCKS = (8, 9)
_INIT = 1


def live_tasks(images: Images) -> Iterator[Task]:
    """Yield the processes that run again; a zombie is nothing but its exit code."""
    return (task for task in images.tasks() if task.state is not TaskState.DEAD)


def name_of(task: Task) -> str:
    """Return how a process is called in a refusal."""
    return f"process {task.pid} {task.name}"


def seen(images: Images, allowed: Allowance, task: Task) -> Confinement | None:
    """Return what the kernel said of a process at the capture; None if nobody looked.

    The root may stand for init under another number.

    Raises:
        ImagesRefused: the process was not there.
    """
    if allowed.processes is None:
        return None
    found = allowed.processes.get(task.pid)
    if found is None and task.pid == images.root.pid:
        found = allowed.processes.get(_INIT)
    if found is None:
        require(False, name_of(task), "it was not there at the capture", "processes that were")
    return found


def vet_inventory(images: Images, allowed: Allowance) -> None:
    """Check what the images say of themselves."""
    inventory, where = images.inventory, "inventory"
    require(inventory.img_version == _IMAGE_VERSION, where, f"format {inventory.img_version}", "format 2")
    require(inventory.fdinfo_per_id and inventory.ns_per_id, where, "an old layout", "one table an id")
    require(inventory.HasField("root_ids"), where, "no namespaces", "those that CRIU is in")
    require(not inventory.plugins_entry.plugins, where, "plugins", "none")
    require(not inventory.allow_uprobes, where, "uprobes", "none")
    require(not inventory.pre_dump_mode, where, "a dump in parts", "a whole one")
    lock = inventory.network_lock_method
    require(lock in _NO_FIREWALL_PROGRAM, where, f"network lock {lock}", "those that start no program")
    require(inventory.lsmtype in _LSM_TYPES, where, f"security module {inventory.lsmtype}", "those known")
    require(allowed.open_connections or not images.streams, where, "open TCP connections", "none")


def vet_tree(images: Images, allowed: Allowance) -> None:
    """Check that the tree is one, and that its numbers are possible and each thread's own."""
    known: set[int] = set()
    threads: set[int] = set()
    for task in images.tasks():
        where = name_of(task)
        is_root = task.pid == images.root.pid
        require(task.parent == 0 if is_root else task.parent in known, where, "no parent before it", "one")
        known.add(task.pid)
        for number in (task.pid, *task.threads):
            require(1 <= number <= allowed.pid_max, where, f"number {number}", f"1 to {allowed.pid_max}")
        for number in (task.group, task.session):
            require(0 <= number <= allowed.pid_max, where, f"number {number}", f"0 to {allowed.pid_max}")
        require(bool(task.threads) and task.threads[0] == task.pid, where, "no first thread", "itself")
        own = set(task.threads)
        require(len(own) == len(task.threads) and not own & threads, where, "a thread twice", "each once")
        threads |= own


def vet_processes(images: Images, allowed: Allowance) -> None:
    """Check each process as a whole: namespaces, limits, scores, timers, signals."""
    for task in images.tasks():
        core = images.cores[task.pid]
        where = name_of(task)
        require(len(core.tc.comm) <= _COMM_BYTES, where, "a long name", f"{_COMM_BYTES} bytes")
        require(not core.HasField("ids"), where, "ids of CRIU's old format", "none")
        old = core.tc.HasField("old_seccomp_mode") or core.tc.HasField("old_seccomp_filter")
        require(not old, where, "seccomp of CRIU's old format", "none")
    for task in live_tasks(images):
        _vet_namespaces(images, task)
        core = images.cores[task.pid]
        before = seen(images, allowed, task)
        _vet_limits(task, core, allowed, before)
        _vet_scores(task, core, allowed, before)
        _vet_timers(task, core, allowed)
        vet_signals(task, core.tc.signals_s)


def _vet_namespaces(images: Images, task: Task) -> None:
    ids = images.ids.get(task.pid)
    require(ids is not None, name_of(task), "no image of its ids", "one")
    assert ids is not None
    for kind in _NAMESPACES:
        field = f"{kind}_ns_id"
        same = getattr(ids, field) == getattr(images.inventory.root_ids, field)
        require(same, name_of(task), f"a {kind} namespace of its own", "the sandbox's")


def _vet_limits(task: Task, core: pb.Core, allowed: Allowance, before: Confinement | None) -> None:
    limits = core.tc.rlimits.rlimits
    require(len(limits) == len(RLIMITS), name_of(task), f"{len(limits)} limits", f"{len(RLIMITS)}")
    for number, limit in enumerate(limits):
        where = f"{name_of(task)}, limit {RLIMITS[number]}"
        most = allowed.hard_limits[number]
        require(limit.cur <= limit.max <= most, where, _limit(limit.max), f"up to {_limit(most)}")
        if before is not None and number < len(before.rlimits):
            had = before.rlimits[number]
            kept = limit.cur <= had.soft and limit.max <= had.hard
            require(kept, where, f"{_limit(limit.cur)}/{_limit(limit.max)}", "what it had at the capture")


def _limit(value: int) -> str:
    return "unlimited" if value == UNLIMITED else str(value)


def _vet_scores(task: Task, core: pb.Core, allowed: Allowance, before: Confinement | None) -> None:
    where, tc = name_of(task), core.tc
    least = allowed.oom_score_adj if before is None else max(allowed.oom_score_adj, before.oom_score_adj)
    require(tc.oom_score_adj >= least, where, f"oom_score_adj {tc.oom_score_adj}", f"{least} or more")
    require(tc.HasField("oom_score_adj"), where, "no oom_score_adj", "one")
    require(tc.loginuid == allowed.login_uid, where, f"login uid {tc.loginuid}", f"{allowed.login_uid}")
    plain = not allowed.seccomp or tc.personality in _PERSONALITIES
    require(plain, where, f"personality {tc.personality:#x}", "what the seccomp filter lets it choose")


def _vet_timers(task: Task, core: pb.Core, allowed: Allowance) -> None:
    for timer in core.tc.timers.posix:
        fits = timer.clock_id not in _ALARM_CLOCKS or allowed.has("WAKE_ALARM")
        require(fits, name_of(task), f"a timer of clock {timer.clock_id}", "clocks that wake no machine")


def vet_signals(task: Task, queue: pb.Signals) -> None:
    """Check the signals that wait for a process or thread."""
    require(len(queue.signals) <= _MAX_SIGNALS, name_of(task), "too many signals", f"{_MAX_SIGNALS}")
    for signal in queue.signals:
        size = len(signal.siginfo)
        require(size == _SIGINFO_BYTES, name_of(task), f"a signal of {size} bytes", f"{_SIGINFO_BYTES}")
