"""A sandbox's processes as trees, each of which is one dump.

The tree of the sandbox's init holds init and all its descendants; whatever
outlives its parent in the sandbox becomes init's child and belongs there. Every
process whose parent lies outside the sandbox (`docker exec` starts it) is the
root of a tree of its own, in no tree under init.

A cgroup does not list its dead processes, so that trees are found by walking the
children. For the same reason nothing is a member merely because it is listed: a
child that left the cgroup would be dumped with its parent all the same.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from turnkeep.errors import SandboxGone
from turnkeep.process.proc import GONE, Folder, Process

MAX_PROCESSES = 32_768
"""More are not looked at: walking them would take longer than any freeze may."""

_STARTING = "runc:["


class TreeKind(enum.StrEnum):
    """Whose tree it is."""

    INIT = "init"
    EXEC = "exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A process with its descendants, parents before children.

    `stateful` are the pids of those that starting the container again would not
    bring back. `problems` say why it cannot be dumped on account of its shape.
    """

    kind: TreeKind
    processes: tuple[Process, ...]
    stateful: frozenset[int]
    problems: tuple[str, ...] = ()

    @property
    def root(self) -> Process:
        """The process that all others descend from."""
        return self.processes[0]

    @property
    def root_pid(self) -> int:
        """The root's pid on the host."""
        return self.root.pid

    @property
    def inner_root_pid(self) -> int:
        """The root's pid inside the sandbox."""
        return self.root.inner[-1] if self.root.inner else self.root.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """The members' pids on the host, parents before children."""
        return tuple(process.pid for process in self.processes)

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, in the same order."""
        return tuple(process.name for process in self.processes)

    @property
    def to_dump(self) -> bool:
        """Whether it holds anything that a restart would not bring back."""
        return bool(self.stateful)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """All processes of a sandbox.

    `starting` are processes that the engine is just putting into the sandbox: no
    dump may hold them, since they still run the engine's own program. Thaw, and
    look again. `outside` are descendants that left the sandbox's cgroup, and so
    are not frozen with it.
    """

    trees: tuple[Tree, ...]
    starting: tuple[Process, ...] = ()
    outside: tuple[Process, ...] = ()
    gone: tuple[int, ...] = ()

    @property
    def to_dump(self) -> tuple[Tree, ...]:
        """The trees that hold state."""
        return tuple(tree for tree in self.trees if tree.to_dump)


def partition(pids: Iterable[int], init_pid: int, is_reproducible: Callable[[int], bool]) -> Forest:
    """Divide the processes of a sandbox's cgroup into trees, init's first.

    The sandbox is frozen; a process that ends all the same (a dead one whose
    parent outside takes notice of it) is left out. Pids are the host's.

    Raises:
        SandboxGone: there is no init.
        OverflowError: there are more than MAX_PROCESSES.
    """
    walk = _Walk(set(pids) | {init_pid})
    walk.read_all()
    init = walk.processes.get(init_pid)
    if init is None or init.dead:
        raise SandboxGone("its init has ended", object=f"process {init_pid}")
    roots = [pid for pid, process in walk.processes.items() if process.parent not in walk.processes]
    ordered = [init_pid, *sorted(pid for pid in roots if pid != init_pid)]
    trees, starting = [], []
    for root in ordered:
        members = walk.members(root)
        if root != init_pid and _is_starting(members, init):
            starting.extend(members)
            continue
        kind = TreeKind.INIT if root == init_pid else TreeKind.EXEC
        trees.append(_tree(kind, members, init, walk.listed, is_reproducible))
    outside = [walk.processes[pid] for pid in walk.processes if pid not in walk.listed]
    return Forest(
        trees=tuple(trees),
        starting=tuple(starting),
        outside=tuple(process for process in outside if not process.dead),
        gone=tuple(sorted(walk.gone)),
    )


def _tree(
    kind: TreeKind,
    members: list[Process],
    init: Process,
    listed: set[int],
    is_reproducible: Callable[[int], bool],
) -> Tree:
    # A dead process keeps nothing but its exit code, and that only for a parent
    # which asks: with a parent that holds no state, it is none.
    stateful = {each.pid for each in members if not each.dead and not is_reproducible(each.pid)}
    return Tree(
        kind=kind,
        processes=tuple(members),
        stateful=frozenset(stateful),
        problems=tuple(_problems(members, init, listed)),
    )


def _problems(members: list[Process], init: Process, listed: set[int]) -> Iterable[str]:
    depth = len(init.inner)
    nested = [each for each in members if len(each.inner) > depth]
    if nested:
        yield f"pid namespaces inside the sandbox: {_some(nested)}"
    foreign = [each for each in members if len(each.inner) < depth]
    if foreign:
        yield f"not in the sandbox's pid namespace: {_some(foreign)}"
    ended = [each for each in members if each.zombie and not each.dead]
    if ended:
        yield f"the main thread has ended, others run on: {_some(ended)}"
    left = [each for each in members if each.pid not in listed and not each.dead]
    if left:
        yield f"not in the sandbox's cgroup, so not frozen with it: {_some(left)}"


def _is_starting(members: list[Process], init: Process) -> bool:
    """Whether the engine has not handed this over to the sandbox's program yet.

    A sandbox may give its own processes such names; they are then not captured,
    which is all it achieves.
    """
    return any(
        each.name.startswith(_STARTING) or (not each.dead and len(each.inner) < len(init.inner))
        for each in members
    )


def _some(processes: list[Process], limit: int = 8) -> str:
    """Name processes for people, the first few of them."""
    shown = ", ".join(map(str, processes[:limit]))
    left = len(processes) - limit
    return f"{shown} and {left} more" if left > 0 else shown


@dataclass(slots=True)
class _Walk:
    """Reads the processes that are listed, and what descends from them."""

    listed: set[int]
    processes: dict[int, Process] = field(default_factory=dict)
    children: dict[int, list[int]] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)

    def read_all(self) -> None:
        """Read everything; fills `processes`, `children` and `gone`."""
        pending = sorted(self.listed)
        while pending:
            pid = pending.pop()
            if pid in self.processes or pid in self.gone:
                continue
            if len(self.processes) >= MAX_PROCESSES:
                raise OverflowError(f"a sandbox with more than {MAX_PROCESSES} processes")
            self._read(pid)
            pending += self.children.get(pid, ())
        # Where a child's parent and a parent's children disagree (one was read
        # before the other moved), the child is right.
        self.children.clear()
        for process in self.processes.values():
            self.children.setdefault(process.parent, []).append(process.pid)

    def _read(self, pid: int) -> None:
        try:
            with Folder(pid) as folder:
                self.processes[pid] = folder.process()
                self.children[pid] = folder.children()
        except GONE:
            self.processes.pop(pid, None)
            self.gone.add(pid)

    def members(self, root: int) -> list[Process]:
        """Return a process and what descends from it, depth first."""
        found: dict[int, Process] = {}
        pending = [root]
        while pending:
            process = self.processes[pending.pop()]
            # Pids that were used again meanwhile could make a circle.
            if process.pid not in found:
                found[process.pid] = process
                pending += sorted(self.children.get(process.pid, ()), reverse=True)
        return list(found.values())
