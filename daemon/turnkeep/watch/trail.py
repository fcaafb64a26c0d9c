"""What was touched since a moment, as far as that is known without a gap."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from turnkeep.watch.table import folder_of
from turnkeep.watch.tracker import Touched, Tracker, Watch


@dataclass(frozen=True, slots=True)
class Collected:
    """One collection of a folder's events. `number` grows by one with each; from 1."""

    number: int
    touched: Touched


@dataclass(slots=True)
class Trail:
    """The paths of a folder touched since a state of it was recorded.

    `number` is that of the last collection that it took in, 0 if none is known.
    `deep` are folders beneath which everything may have changed, `inodes` those
    of files that did. They may name more than was touched, never less.
    """

    number: int = 0
    paths: set[bytes] = field(default_factory=set)
    deep: set[bytes] = field(default_factory=set)
    inodes: set[int] = field(default_factory=set)

    def follow(self, collected: Collected | None) -> bool:
        """Take in the next collection; return whether the trail is without a gap.

        Where it is not, only a scan can tell what changed.
        """
        unbroken = (
            collected is not None
            and collected.touched.complete
            and self.number > 0
            and collected.number == self.number + 1
        )
        if not unbroken or collected is None:
            self.number = 0
            self.paths.clear()
            self.deep.clear()
            self.inodes.clear()
            return False
        self.number = collected.number
        self.paths |= collected.touched.paths
        self.deep |= collected.touched.deep
        self.inodes |= collected.touched.inodes
        return True

    def may_have_touched(self, path: bytes, inode: int) -> bool:
        """Whether a path is among what was touched, or a folder whose names were."""
        if path in self.paths or inode in self.inodes or path in map(folder_of, self.paths):
            return True
        while path:
            if path in self.deep:
                return True
            path = folder_of(path)
        return False

    def copy(self) -> Trail:
        """Return one that goes on by itself."""
        return Trail(self.number, set(self.paths), set(self.deep), set(self.inodes))


@dataclass(slots=True)
class Figures:
    """What following came to since the start, for people to look at."""

    followed: int = 0
    scanned: int = 0
    audits: int = 0
    missed: int = 0


class TrackedFolders:
    """The tracked folders by path. Used from any thread.

    `audit` is the share of the looks that are compared with a scan.
    """

    def __init__(self, tracker: Tracker, audit: float = 0.0) -> None:
        self.tracker = tracker
        self.figures = Figures()
        self.audit = audit
        self._lock = threading.Lock()
        self._watches: dict[str, Watch | None] = {}
        self._numbers: dict[str, int] = {}

    def is_due(self) -> bool:
        """Whether what a look finds is to be compared with a scan, this time."""
        return random.random() < self.audit

    def collect(self, path: str) -> Collected | None:
        """Return what was touched in a folder since the last call; None where that is not tracked.

        Inside a freeze this holds all that was done before it. Who else asks for
        the same folder meanwhile leaves a gap in the numbers.
        """
        with self._lock:
            watch = self._watches.get(path)
            if watch is not None and watch.ended:
                watch.close()
                del self._watches[path]
            if path not in self._watches:
                self._watches[path] = self.tracker.watch(path)
            watch = self._watches[path]
            if watch is None:
                return None
            number = self._numbers[path] = self._numbers.get(path, 0) + 1
            return Collected(number, watch.collect())

    def forget(self, paths: Iterable[str]) -> None:
        """Stop tracking folders."""
        for path in paths:
            with self._lock:
                watch = self._watches.pop(path, None)
            if watch is not None:
                watch.close()

    def close(self) -> None:
        """Stop tracking all."""
        self.forget(list(self._watches))
        self.tracker.close()
