"""What CRIU does not dump, said before it fails: each process by itself, and the sandbox's IPC."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from turnkeep.process.descriptors import SLAVES, Refused, Survey
from turnkeep.process.findings import Blocks, Finding, Kind
from turnkeep.process.inside import Inside
from turnkeep.process.proc import GONE, Folder, Process, printable
from turnkeep.process.trees import Tree

_NAMESPACES = ("mnt", "net", "ipc", "uts", "user", "cgroup")
_STOPPED = b"do_signal_stop"
"""What the kernel says a stopped process waits in. The freezer of cgroup v1 makes its state "D"."""
_GPUS = ("/dev/nvidia", "/dev/dri", "/dev/kfd")
_SYSV_HINT = "the whole-container engine takes it"
_WORDS = {
    "io_uring": (
        Kind.IO_URING,
        "uses io_uring",
        "many programs have a switch against it (node: UV_USE_IO_URING=0)",
    ),
    "userfaultfd": (Kind.USERFAULTFD, "uses userfaultfd", ""),
    "mqueue": (Kind.MESSAGE_QUEUE, "has a POSIX message queue open", ""),
    "sysv": (Kind.SYSV_IPC, "has System V shared memory attached", _SYSV_HINT),
    "secretmem": (Kind.DESCRIPTOR, "uses secret memory (memfd_secret)", ""),
}
_SHOWN = 4


def process_findings(trees: Sequence[Tree], init_pid: int) -> Iterator[Finding]:
    """Find what keeps single processes from being dumped."""
    try:
        with Folder(init_pid) as folder:
            own = _namespaces(folder)
    except GONE:
        return
    for tree in trees:
        if not tree.to_dump:
            continue
        for problem in tree.problems:
            yield Finding(kind=Kind.SHAPE, what=problem, trees=(tree.root_pid,), pids=(tree.root_pid,))
        for process in tree.processes:
            if not process.zombie:
                with contextlib.suppress(*GONE):
                    yield from _of_process(process, tree, own)


def _of_process(process: Process, tree: Tree, own: dict[str, str]) -> Iterator[Finding]:
    def finding(kind: Kind, what: str, hint: str = "") -> Finding:
        return Finding(
            kind=kind, what=f"{process} {what}", trees=(tree.root_pid,), pids=(process.pid,), hint=hint
        )

    with Folder(process.pid) as folder:
        theirs = _namespaces(folder)
        strange = [name for name, namespace in theirs.items() if namespace != own.get(name)]
        if strange:
            yield finding(Kind.NAMESPACE, f"has namespaces of its own ({', '.join(strange)})")
        if process.state == "D" and folder.read("wchan") == _STOPPED:
            hint = "continue or end it; where cgroups are of version 2 it is no obstacle"
            yield finding(
                Kind.STOPPED, "is stopped (job control) and frozen, so that CRIU cannot seize it", hint
            )
    if process.tracer:
        yield finding(Kind.TRACED, f"is traced by process {process.tracer}", "end the debugger first")
    if process.inner_session == 0:
        yield finding(Kind.SESSION, "belongs to a session from outside of the sandbox")


def _namespaces(folder: Folder) -> dict[str, str]:
    found = {}
    for name in _NAMESPACES:
        # A process that just ended has none any more; a kernel may lack a kind of them.
        with contextlib.suppress(*GONE):
            found[name] = folder.link(f"ns/{name}")
    return found


def refused_findings(survey: Survey, trees: Sequence[Tree]) -> Iterator[Finding]:
    """Find descriptors and mappings that CRIU does not dump, one finding for each kind and tree."""
    by_kind: dict[tuple[int, str], list[Refused]] = {}
    for refused in survey.refused:
        if trees[refused.held.tree].to_dump:
            by_kind.setdefault((refused.held.tree, refused.word), []).append(refused)
    for (number, word), group in by_kind.items():
        yield _refused(trees[number], word, group)


def _refused(tree: Tree, word: str, group: list[Refused]) -> Finding:
    names = sorted({printable(each.what) for each in group})
    if word == "device":
        gpu = any(name.startswith(_GPUS) for name in names)
        kind, what, hint = (
            Kind.GPU if gpu else Kind.DEVICE,
            f"has a device open: {', '.join(names[:_SHOWN])}",
            "",
        )
    elif word == "32-bit":
        kind, what, hint = Kind.ADDRESS_SIZE, "is a 32-bit program", "CRIU must be built with support for it"
    elif word in _WORDS:
        kind, what, hint = _WORDS[word]
    else:
        kind, what, hint = Kind.DESCRIPTOR, f"holds what CRIU does not know: {', '.join(names[:_SHOWN])}", ""
    blocks = {"sysv": Blocks.IN_SANDBOX, "32-bit": Blocks.NONE}.get(word, Blocks.BOTH)
    processes = {each.held.process.pid: each.held.process for each in group}
    return Finding(
        kind=kind,
        what=f"{', '.join(map(str, list(processes.values())[:_SHOWN]))} {what}",
        trees=(tree.root_pid,),
        pids=tuple(processes)[:_SHOWN],
        blocks=blocks,
        hint=hint,
    )


def foreign_findings(survey: Survey, trees: Sequence[Tree]) -> Iterator[Finding]:
    """Find files that a restore will not find again; /dev/null it need not find."""
    for held, node, link in survey.foreign:
        if trees[held.tree].to_dump and not node.is_null and node.special[0] not in SLAVES:
            yield Finding(
                kind=Kind.OUTSIDE_FILE,
                what=f"{held} is a file on no mount of the sandbox: {printable(link)}",
                trees=(trees[held.tree].root_pid,),
                pids=(held.process.pid,),
            )


def inside_findings(inside: Inside, trees: Sequence[Tree]) -> Iterator[Finding]:
    """Find IPC that belongs to the sandbox as a whole, to no process."""
    if not any(tree.to_dump for tree in trees):
        return
    counts = (
        (inside.shared_segments, "shared memory segments"),
        (inside.semaphores, "semaphore sets"),
        (inside.message_queues, "message queues"),
    )
    there = [f"{count} {what}" for count, what in counts if count > 0]
    if there:
        yield Finding(
            kind=Kind.SYSV_IPC,
            what=f"the sandbox has System V IPC: {', '.join(there)}",
            trees=(),
            blocks=Blocks.IN_SANDBOX,
            hint=_SYSV_HINT,
        )
    if inside.posix_queues:
        names = ", ".join(map(printable, sorted(inside.posix_queues)[:_SHOWN]))
        yield Finding(
            kind=Kind.MESSAGE_QUEUE,
            what=f"the sandbox has POSIX message queues, which no dump holds: {names}",
            trees=(),
            hint="remove them (they are files in /dev/mqueue)",
        )


def unseen_findings(survey: Survey, trees: Sequence[Tree]) -> Iterator[Finding]:
    """Say which processes were too large to be looked at."""
    unseen = {process.pid: process for process in survey.unseen}
    concerned = [tree.root_pid for tree in trees if tree.to_dump and unseen.keys() & set(tree.pids)]
    if unseen:
        shown = ", ".join(map(str, list(unseen.values())[:_SHOWN]))
        yield Finding(
            kind=Kind.UNKNOWN,
            what=f"too many descriptors or mappings to be looked at: {shown}",
            trees=tuple(concerned),
            pids=tuple(unseen)[:_SHOWN],
        )
