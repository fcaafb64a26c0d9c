"""What leads from trees to the outside of the sandbox: stdio of an exec's client or of the engine's log.

The other end of such a pipe or terminal is held by the process that started the
tree, the engine's shim. It is the only process outside that is looked at; for
the rest the kernel is asked whether a pipe without another end in the sandbox is
still connected.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from turnkeep.process.descriptors import Held, Key, Survey
from turnkeep.process.findings import Kind, Tie
from turnkeep.process.proc import GONE, Folder
from turnkeep.process.syscalls import Node, borrowed
from turnkeep.process.trees import Tree

_PIPE = re.compile(r"pipe:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Outside:
    """The pipes that the processes which started the trees hold."""

    pipes: frozenset[int]
    init_pid: int

    @classmethod
    def of(cls, trees: Sequence[Tree], init_pid: int) -> Outside:
        """Look at the processes that started the trees."""
        members = {pid for tree in trees for pid in tree.pids}
        pipes: set[int] = set()
        for parent in {tree.root.parent for tree in trees} - members - {0, 1}:
            with contextlib.suppress(*GONE), Folder(parent) as folder:
                pipes |= set(_pipes(folder))
        return cls(frozenset(pipes), init_pid)

    def holds_pipe(self, inode: object, holds: Sequence[Held]) -> bool:
        """Whether somebody outside holds an end of a pipe that these hold."""
        if inode in self.pipes:
            return True
        if any(held.reads for held in holds) and any(held.writes for held in holds):
            return False
        return _connected(holds[0])


def _pipes(folder: Folder) -> Iterator[int]:
    fds = folder.open_folder("fd")
    try:
        for name in os.listdir(fds):
            with contextlib.suppress(*GONE):
                found = _PIPE.fullmatch(os.readlink(name, dir_fd=fds))
                if found:
                    yield int(found[1])
    finally:
        os.close(fds)


def _connected(held: Held) -> bool:
    """Whether the other end of a pipe is open; if it cannot be told, yes."""
    try:
        with borrowed(held.process.pid, held.fd) as fd:
            poll = select.poll()
            poll.register(fd, 0)
            return not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
    except OSError:
        return True


def pipe_ties(survey: Survey, trees: Sequence[Tree], outside: Outside) -> Iterator[Tie]:
    """Find the pipes that lead out of the sandbox, a tie for each tree that has one."""
    for key, holds in survey.holders.items():
        if key[0] == "pipe" and _dumped(holds, trees) and outside.holds_pipe(key[1], holds):
            yield from _ties(Kind.PIPE, key, holds, trees, outside, f"pipe:[{key[1]}]")


def terminal_ties(survey: Survey, trees: Sequence[Tree], outside: Outside) -> Iterator[Tie]:
    """Find the terminals that are served from outside."""
    for key, holders in survey.holders.items():
        holds = [held for held in holders if held.fd >= 0]
        if key[0] != "slave" or not _dumped(holds, trees) or ("master", key[1]) in survey.holders:
            continue
        node = survey.nodes[holds[0].process.pid, holds[0].fd]
        name = f"tty[{os.makedev(*node.special):x}:{os.makedev(*node.device):x}]"
        yield from _ties(Kind.TERMINAL, key, holds, trees, outside, name, name)


def file_ties(survey: Survey, trees: Sequence[Tree]) -> Iterator[Tie]:
    """Find files on mounts that the sandbox does not have.

    The engine gives the host's own /dev/null to what it starts detached.
    """
    found: dict[tuple[int, str], list[tuple[Held, Node]]] = {}
    for held, node, _ in survey.foreign:
        if trees[held.tree].to_dump:
            name = f"file[{node.mount:x}:{node.inode:x}]"
            found.setdefault((held.tree, name), []).append((held, node))
    for (number, name), group in found.items():
        yield Tie(
            kind=Kind.OUTSIDE_FILE,
            tree=trees[number].root_pid,
            descriptors=tuple((held.process.pid, held.fd) for held, _ in group),
            inherit=name,
            external=name,
            reads=True,
            writes=True,
            null=all(node.is_null for _, node in group),
        )


def _dumped(holds: Sequence[Held], trees: Sequence[Tree]) -> bool:
    return any(trees[held.tree].to_dump for held in holds)


def _ties(
    kind: Kind,
    key: Key,
    holds: Sequence[Held],
    trees: Sequence[Tree],
    outside: Outside,
    inherit: str,
    external: str = "",
) -> Iterator[Tie]:
    init = next((held.fd for held in holds if held.process.pid == outside.init_pid), None)
    for number in sorted({held.tree for held in holds if trees[held.tree].to_dump}):
        own = [held for held in holds if held.tree == number]
        yield Tie(
            kind=kind,
            tree=trees[number].root_pid,
            descriptors=tuple((held.process.pid, held.fd) for held in own),
            inherit=inherit,
            external=external,
            reads=any(held.reads for held in own) or kind is Kind.TERMINAL,
            writes=any(held.writes for held in own) or kind is Kind.TERMINAL,
            init_fd=init,
        )
