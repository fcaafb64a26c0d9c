"""What separate dumps would silently cut, and what CRIU cannot dump at all.

Each tree is a dump of its own. CRIU takes no notice of a pipe whose other end is
in another tree: the dump succeeds, and what comes back is cut. So, before trees
are dumped, everything that two of them share is looked for, what leads out of
the sandbox, and what CRIU refuses. The sandbox is frozen meanwhile; nothing here
needs its processes to do anything, and what they chose themselves (names, the
number of their descriptors) costs bounded time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from turnkeep.process.between import between, one_and_the_same, same_objects, shared, still_there
from turnkeep.process.connections import connection_findings, socket_findings
from turnkeep.process.descriptors import Held, Key, Survey
from turnkeep.process.findings import Finding, Findings, Kind
from turnkeep.process.inside import Inside, look_inside, read_mounts
from turnkeep.process.outside import Outside, file_ties, pipe_ties, terminal_ties
from turnkeep.process.refusals import (
    foreign_findings,
    inside_findings,
    process_findings,
    refused_findings,
    unseen_findings,
)
from turnkeep.process.syscalls import KCMP_FILE, KCMP_FILES, KCMP_FS, KCMP_VM
from turnkeep.process.trees import Tree


def examine(trees: Sequence[Tree], init_pid: int) -> Findings:
    """Look at the trees of a frozen sandbox, those without state included.

    Findings concern the trees that hold state; the others are looked at as far
    as these share something with them. Processes that end meanwhile are left out.

    Raises:
        SandboxGone: the sandbox's init has ended.
    """
    survey = Survey(mounts=read_mounts(init_pid))
    for number, tree in enumerate(trees):
        for process in tree.processes:
            if not process.zombie:
                survey.add(number, process, with_maps=tree.to_dump)
    outside = Outside.of(trees, init_pid)
    inside, unknown = _inside(survey, trees, init_pid)
    findings = [
        *unknown,
        *_pipes(survey, trees, outside),
        *_terminals(survey, trees),
        *_memory(survey, trees),
        *socket_findings(survey, trees, inside),
        *_open_files(survey, trees),
        *_watched(survey, trees),
        *_sessions(trees),
        *_address_spaces(survey, trees),
        *process_findings(trees, init_pid),
        *refused_findings(survey, trees),
        *foreign_findings(survey, trees),
        *inside_findings(inside, trees),
        *unseen_findings(survey, trees),
        *connection_findings(survey, trees),
    ]
    ties = (
        *pipe_ties(survey, trees, outside),
        *terminal_ties(survey, trees, outside),
        *file_ties(survey, trees),
    )
    return Findings(findings=tuple(findings), ties=ties)


def _inside(survey: Survey, trees: Sequence[Tree], init_pid: int) -> tuple[Inside, list[Finding]]:
    try:
        return look_inside(init_pid, unix=any(key[0] == "socket" for key in survey.holders)), []
    except (OSError, OverflowError) as error:
        what = f"its sockets and System V IPC cannot be looked at: {error}"
        roots = tuple(tree.root_pid for tree in trees if tree.to_dump)
        return Inside(), [Finding(kind=Kind.UNKNOWN, what=what, trees=roots)]


def _of(survey: Survey, what: str) -> Iterator[tuple[Key, list[Held]]]:
    return ((key, holds) for key, holds in survey.holders.items() if key[0] == what)


def _pipes(survey: Survey, trees: Sequence[Tree], outside: Outside) -> Iterator[Finding]:
    for key, holds in _of(survey, "pipe"):
        if not shared(holds, trees):
            continue
        # Several trees that write what somebody outside reads are each cut off
        # from that reader, not from one another.
        one_way = not (any(held.reads for held in holds) and any(held.writes for held in holds))
        if not (one_way and outside.holds_pipe(key[1], holds)):
            yield between(Kind.PIPE, "a pipe", holds, trees)


def _terminals(survey: Survey, trees: Sequence[Tree]) -> Iterator[Finding]:
    for key, masters in _of(survey, "master"):
        holds = [*masters, *survey.holders.get(("slave", key[1]), [])]
        if shared(holds, trees):
            yield between(Kind.TERMINAL, f"terminal /dev/pts/{key[1]}", holds, trees)


def _memory(survey: Survey, trees: Sequence[Tree]) -> Iterator[Finding]:
    said: set[Held] = set()
    # One file may be known both by name and by inode, the first to more of its holders.
    for what in ("name", "inode"):
        for _, holds in _of(survey, what):
            if not shared(holds, trees) or said.issuperset(holds):
                continue
            said.update(holds)
            if any(held.reads or held.writes for held in holds):
                yield between(Kind.PIPE, "a named pipe", holds, trees)
            elif what == "name" or all(held.fd >= 0 for held in holds):
                yield between(Kind.DELETED_FILE, "a deleted file", holds, trees)
            else:
                yield between(Kind.SHARED_MEMORY, "shared memory", holds, trees)


def _open_files(survey: Survey, trees: Sequence[Tree]) -> Iterator[Finding]:
    """Find descriptors in several trees that are one open file: one offset, one set of events."""
    for name, holds in survey.groups.items():
        if shared(holds, trees):
            yield from same_objects(KCMP_FILE, f"the open file {name!r}", holds, trees, Kind.OPEN_FILE)


def _watched(survey: Survey, trees: Sequence[Tree]) -> Iterator[Finding]:
    numbers = {pid: number for number, tree in enumerate(trees) for pid in tree.pids}
    for held, pid in survey.watched:
        if trees[held.tree].to_dump and pid > 0 and numbers.get(pid) != held.tree:
            yield Finding(
                kind=Kind.WATCHED,
                what=f"{held} watches process {pid}, which is not in its tree",
                trees=(trees[held.tree].root_pid,),
                pids=(held.process.pid,),
            )


def _sessions(trees: Sequence[Tree]) -> Iterator[Finding]:
    """Find sessions and process groups that live in several trees."""
    sessions: dict[int, list[Held]] = {}
    groups: dict[int, list[Held]] = {}
    for number, tree in enumerate(trees):
        for process in tree.processes:
            held = Held(number, process, -1)
            sessions.setdefault(process.session, []).append(held)
            groups.setdefault(process.group, []).append(held)
    for identifier, holds in sessions.items():
        if identifier and shared(holds, trees):
            yield between(Kind.SESSION, "a session", holds, trees)
    for identifier, holds in groups.items():
        # A group lies within a session: what was said of that need not be said again.
        if identifier and shared(holds, trees) and not shared(sessions[holds[0].process.session], trees):
            yield between(Kind.SESSION, "a process group", holds, trees)


def _address_spaces(survey: Survey, trees: Sequence[Tree]) -> Iterator[Finding]:
    """Find processes that share memory, descriptors or working folder without being threads."""
    everyone = [
        Held(number, process, -1)
        for number, tree in enumerate(trees)
        for process in tree.processes
        if not process.zombie
    ]
    for holds in _grouped(everyone, lambda held: held.process.size):
        yield from _one_memory(holds, trees)
    if not shared(everyone, trees):
        return
    for holds in _grouped(everyone, lambda held: survey.tables.get(held.process.pid)):
        if shared(holds, trees):
            yield from same_objects(KCMP_FILES, "a table of descriptors", holds, trees, Kind.ADDRESS_SPACE)
    for holds in _grouped(everyone, lambda held: held.process.umask):
        if shared(holds, trees):
            yield from same_objects(KCMP_FS, "a working folder", holds, trees, Kind.ADDRESS_SPACE)


def _grouped(holds: Iterable[Held], key: Callable[[Held], object]) -> Iterable[list[Held]]:
    """Divide holds by what they must agree in to be of one kernel object."""
    found: dict[object, list[Held]] = {}
    for held in holds:
        found.setdefault(key(held), []).append(held)
    return found.values()


def _one_memory(holds: list[Held], trees: Sequence[Tree]) -> Iterator[Finding]:
    """Find processes of one memory, also within a tree.

    A program that is just being started is such (vfork): its parent cannot be
    stopped before that has happened, and CRIU waits for it, in vain while all is
    frozen, until its own time is over.
    """
    if len(holds) < 2 or not any(trees[held.tree].to_dump for held in holds):
        return
    try:
        for same in one_and_the_same(KCMP_VM, still_there(KCMP_VM, holds)):
            if len(same) > 1:
                concerned = {trees[held.tree].root_pid for held in same if trees[held.tree].to_dump}
                yield Finding(
                    kind=Kind.ADDRESS_SPACE,
                    what=f"{same[0]} and {same[1]} have one memory",
                    trees=tuple(sorted(concerned)),
                    pids=tuple(held.process.pid for held in same[:2]),
                    hint="one of them may just be starting a program",
                    passing=True,
                )
    except (OSError, OverflowError) as error:
        yield between(Kind.UNKNOWN, f"perhaps memory ({error})", holds, trees)
