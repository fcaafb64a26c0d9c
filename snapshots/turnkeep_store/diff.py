"""Walking a tree, and walking what differs between two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from turnkeep_store.errors import LimitExceeded
from turnkeep_store.ids import TreeId
from turnkeep_store.tree import Directory, Entries, Entry

MAX_DEPTH = 20_000


class Directories(Protocol):
    """Where directories are read: a repository, a writer or a hash-only sink."""

    def read_directory(self, tree: TreeId) -> Directory: ...


@dataclass(frozen=True, slots=True)
class Delta:
    """One path that differs. What is not there is None."""

    path: bytes
    before: Entry | None
    after: Entry | None


Pair = tuple[Entry | None, Entry | None]


def diff(source: Directories, a: TreeId | None, b: TreeId | None) -> Iterator[Delta]:
    """Yield what differs, parents before children, siblings in the order of their names.

    Equal subtrees are not read. A directory appears when its own attributes
    (modification time included) differ, or when one side lacks it; then all of
    its children follow.

    Raises:
        LimitExceeded: a tree is deeper than `MAX_DEPTH`.
    """
    if a == b:
        return
    names: list[bytes] = []
    stack = [_pairs(source, a, b)]
    while stack:
        pair = next(stack[-1], None)
        if pair is None:
            stack.pop()
            if names:
                names.pop()
            continue
        before, after = pair
        entry = after or before
        assert entry is not None
        names.append(entry.name)
        if before is None or after is None or attributes(before) != attributes(after):
            yield Delta(b"/".join(names), before, after)
        old = before.subtree if before else None
        new = after.subtree if after else None
        if old == new:
            names.pop()
            continue
        _check_depth(stack, names)
        stack.append(_pairs(source, old, new))


def walk(source: Directories, tree: TreeId) -> Iterator[tuple[bytes, Entry]]:
    """Yield every path and its entry, parents before children, in the order of names.

    Raises:
        LimitExceeded: the tree is deeper than `MAX_DEPTH`.
    """
    for delta in diff(source, None, tree):
        assert delta.after is not None
        yield delta.path, delta.after


def _pairs(source: Directories, a: TreeId | None, b: TreeId | None) -> Iterator[Pair]:
    """Yield the entries of two directories side by side, where they are not equal."""
    before = source.read_directory(a).entries if a is not None else Entries()
    after = source.read_directory(b).entries if b is not None else Entries()
    for name in before.differing(after):
        yield before.get(name), after.get(name)


def attributes(entry: Entry) -> tuple[object, ...]:
    """Return all that an entry says, but its name and what lies beneath it."""
    return (
        entry.type,
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.size,
        entry.rdev,
        entry.xattrs,
        entry.target,
        entry.content,
    )


def _check_depth(stack: list[Iterator[Pair]], names: list[bytes]) -> None:
    # Each level keeps its directory in memory.
    if len(stack) >= MAX_DEPTH:
        raise LimitExceeded(f"tree deeper than {MAX_DEPTH} folders at {b'/'.join(names[:8])!r}…")
