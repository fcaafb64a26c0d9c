"""Rules for what each thread is and may do. See `vet` for what they are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from turnkeep.process.allowance import Allowance, profile, require, shown
from turnkeep.process.confinement import Credentials
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import Images
from turnkeep.process.vet_tree import live_tasks, name_of, seen, vet_signals

_SETS = {
    "inheritable": "cap_inh",
    "permitted": "cap_prm",
    "effective": "cap_eff",
    "bounding": "cap_bnd",
    "ambient": "cap_amb",
}
_WORDS_OF_A_SET = 2
_REGISTERS: Mapping[int, Literal["thread_info_x86", "thread_info_aarch64"]] = {
    1: "thread_info_x86",
    3: "thread_info_aarch64",
}
"""Where the registers are, by the machine that they are of."""
_NO_SECCOMP, _STRICT, _FILTERS = 0, 1, 2
_RANK = {_NO_SECCOMP: 0, _FILTERS: 1, _STRICT: 2}
_FOR_ALL_THREADS = 1
_FILTER_FLAGS = _FOR_ALL_THREADS | 2 | 4
"""For all threads at once, log, allow speculation. Not: a listener that another process answers for."""
_INSTRUCTION_BYTES, _MAX_INSTRUCTIONS = 8, 4096
_USUAL_POLICIES = (0, 3, 5)
_MAX_SIGNAL = 64


def vet_threads(images: Images, allowed: Allowance) -> None:
    """Check every thread of every live process."""
    for task in live_tasks(images):
        before = seen(images, allowed, task)
        for number in task.threads:
            core = images.cores.get(number)
            where = name_of(task) if number == task.pid else f"{name_of(task)}, thread {number}"
            require(core is not None, where, "no image of its state", "one")
            assert core is not None
            _vet_registers(where, core, allowed)
            thread = core.thread_core
            require(thread.HasField("creds"), where, "no credentials", "its own")
            had = None if before is None else before.thread(number)
            _vet_identity(where, thread.creds, had)
            _vet_capabilities(where, thread.creds, allowed, had)
            _vet_label(where, thread.creds, allowed, had)
            first = images.cores[task.pid].thread_core
            _vet_no_new_privs(where, thread.creds, allowed, had)
            _vet_seccomp(where, _with_filters(thread, first, images.filters), images.filters, allowed, had)
            _vet_scheduling(where, thread, allowed)
            vet_signals(task, thread.signals_p)


def _vet_registers(where: str, core: pb.Core, allowed: Allowance) -> None:
    require(core.mtype == allowed.machine, where, f"machine {core.mtype}", f"{allowed.machine}")
    fields = {machine for machine, field in _REGISTERS.items() if core.HasField(field)}
    require(fields == {core.mtype}, where, f"registers of machines {sorted(fields)}", f"{core.mtype}")


def _vet_identity(where: str, creds: pb.Creds, had: Credentials | None) -> None:
    if had is None:
        return
    uids = (creds.uid, creds.euid, creds.suid, creds.fsuid)
    gids = (creds.gid, creds.egid, creds.sgid, creds.fsgid)
    require(uids == had.uids, where, f"uids {uids}", f"{had.uids}")
    require(gids == had.gids, where, f"gids {gids}", f"{had.gids}")
    groups = tuple(creds.groups)
    require(sorted(groups) == sorted(had.groups), where, f"groups {groups}", f"{had.groups}")


def _vet_capabilities(where: str, creds: pb.Creds, allowed: Allowance, had: Credentials | None) -> None:
    for name, field in _SETS.items():
        found = _mask(where, name, getattr(creds, field))
        most = allowed.capabilities if had is None else allowed.capabilities & getattr(had, name)
        require(not found & ~most, where, f"{name} capabilities {found:#x}", f"within {most:#x}")


def _mask(where: str, name: str, words: Sequence[int]) -> int:
    empty = name == "ambient" and not words
    require(empty or len(words) == _WORDS_OF_A_SET, where, f"{len(words)} words of {name} set", "2")
    return sum(word << 32 * index for index, word in enumerate(words))


def _vet_label(where: str, creds: pb.Creds, allowed: Allowance, had: Credentials | None) -> None:
    found = shown(creds.lsm_profile)
    require(found == profile(allowed.lsm_label), where, f"label {found!r}", f"{allowed.lsm_label!r}")
    if had is not None:
        same = found == profile(had.lsm_label) or (not found and had.lsm_label == "unconfined")
        require(same, where, f"label {found!r}", f"{had.lsm_label!r}")
    require(not creds.HasField("lsm_sockcreate"), where, "a label for sockets", "none")
    require(not creds.HasField("apparmor_data"), where, "AppArmor data of its own", "none")


def _vet_no_new_privs(where: str, creds: pb.Creds, allowed: Allowance, had: Credentials | None) -> None:
    bound = allowed.no_new_privs or (had is not None and had.no_new_privs)
    require(bool(creds.no_new_privs) or not bound, where, "no no_new_privs", "with it")


def _with_filters(thread: pb.Thread, first: pb.Thread, filters: Sequence[pb.SeccompFilter]) -> pb.Thread:
    """Return the thread whose filters a thread gets: its own, or the first one's, if those are for all."""
    if thread.HasField("seccomp_mode") or first.seccomp_mode != _FILTERS:
        return thread
    chain = list(_chain("process", first, filters))
    return first if all(each.flags & _FOR_ALL_THREADS for each in chain) else thread


def _vet_seccomp(
    where: str,
    thread: pb.Thread,
    filters: Sequence[pb.SeccompFilter],
    allowed: Allowance,
    had: Credentials | None,
) -> None:
    mode = thread.seccomp_mode
    require(mode in _RANK, where, f"seccomp mode {mode}", "0 to 2")
    least = _FILTERS if allowed.seccomp else _NO_SECCOMP
    if had is not None and had.seccomp_mode in _RANK:
        least = max(least, had.seccomp_mode, key=_RANK.__getitem__)
    require(_RANK[mode] >= _RANK[least], where, f"seccomp mode {mode}", f"{least}, or stricter")
    if mode != _FILTERS:
        return
    count = len(list(_chain(where, thread, filters)))
    fewest = had.seccomp_filters if had is not None and had.seccomp_mode == _FILTERS else 1
    require(count >= fewest, where, f"{count} seccomp filters", f"{fewest}, or more")


def _chain(where: str, thread: pb.Thread, filters: Sequence[pb.SeccompFilter]) -> Iterator[pb.SeccompFilter]:
    """Yield a thread's filters, the oldest first."""
    require(thread.HasField("seccomp_filter"), where, "no seccomp filter", "one")
    number = thread.seccomp_filter
    while True:
        require(number < len(filters), where, f"seccomp filter {number}", f"{len(filters)} are there")
        found = filters[number]
        size, rest = divmod(len(found.filter), _INSTRUCTION_BYTES)
        fits = not rest and 0 < size <= _MAX_INSTRUCTIONS
        require(fits, where, f"a seccomp filter of {len(found.filter)} bytes", "whole instructions")
        require(not found.flags & ~_FILTER_FLAGS, where, f"filter flags {found.flags:#x}", "no listener")
        yield found
        if not found.HasField("prev"):
            return
        # The next one stands before it in images: so a chain comes to its end.
        require(found.prev < number, where, f"filter {found.prev} after {number}", "one before it")
        number = found.prev


def _vet_scheduling(where: str, thread: pb.Thread, allowed: Allowance) -> None:
    nice = allowed.has("SYS_NICE")
    usual = thread.sched_policy in _USUAL_POLICIES and not thread.sched_prio
    require(usual or nice, where, f"scheduling policy {thread.sched_policy}", "an ordinary one")
    least = allowed.nice
    require(thread.sched_nice >= least or nice, where, f"niceness {thread.sched_nice}", f"{least} or more")
    require(thread.pdeath_sig <= _MAX_SIGNAL, where, f"signal {thread.pdeath_sig}", f"up to {_MAX_SIGNAL}")
