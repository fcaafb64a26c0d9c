"""What was touched in a folder, as it is noted until somebody asks."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Touched:
    """What was touched in a folder since it was last asked.

    `paths` are relative to it; the folder itself is empty. `deep` are those
    of them beneath which everything counts as touched. `inodes` are those of
    files that were written, by whatever name. If `complete` is False, nothing is
    known of what was touched, and `why` says so.
    """

    paths: frozenset[bytes] = frozenset()
    deep: frozenset[bytes] = frozenset()
    inodes: frozenset[int] = frozenset()
    complete: bool = True
    why: str = ""


class Notes:
    """What was touched in one folder. Once it has `ended`, nothing is known of it any more, for good."""

    def __init__(self, path: str, max_touched: int) -> None:
        self.path = path
        self.ended = ""
        self.orphans_seen = 0
        self._max_touched = max_touched
        self._paths: set[bytes] = set()
        self._deep: set[bytes] = set()
        self._inodes: set[int] = set()
        self._why = "it has only begun to be followed"

    def note(self, path: bytes, *, deep: bool = False, inode: int = 0) -> None:
        """Take note of a path, and of the file that was written by it."""
        if self._why:
            return
        self._paths.add(path)
        if deep:
            self._deep.add(path)
        if inode:
            self._inodes.add(inode)
        if len(self._paths) + len(self._inodes) > self._max_touched:
            self.lose("more was touched than is remembered")

    def lose(self, why: str) -> None:
        """Take note that something happened, and not what."""
        self._paths, self._deep, self._inodes = set(), set(), set()
        self._why = why

    def take(self, orphans: list[int]) -> Touched:
        """Return what was noted, with what was touched by no name, and begin anew."""
        why = self.ended or self._why
        if why:
            touched = Touched(complete=False, why=why)
        else:
            inodes = frozenset(self._inodes.union(orphans))
            touched = Touched(frozenset(self._paths), frozenset(self._deep), inodes)
        self.lose("")
        return touched


class Orphans:
    """Inodes of files that were touched by no name, or by one in a folder that is gone.

    They may have other names in any folder. What all who follow a file system
    have to look at is kept once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._forgotten = 0
        self._touched: OrderedDict[int, int] = OrderedDict()

    def add(self, inode: int) -> None:
        """Take note of one; the one that was not touched for longest is forgotten when there are too many."""
        self._count += 1
        self._touched[inode] = self._count
        self._touched.move_to_end(inode)
        if len(self._touched) > self._most:
            _, self._forgotten = self._touched.popitem(last=False)

    def since(self, position: int) -> tuple[int, list[int] | None]:
        """Return the position now, and what was touched since an earlier one; None if that was forgotten."""
        if position < self._forgotten:
            return self._count, None
        later = itertools.takewhile(lambda each: each[1] > position, reversed(self._touched.items()))
        return self._count, [inode for inode, _ in later]
