"""Leases: what must not be swept yet.

A lease stands for work in progress. While it lives, a prune keeps

- every pack that was written under it, and every pack in which a writer under
  it found a blob it therefore did not store again;
- everything that snapshots held when the lease began, also of snapshots that
  were deleted since.

So a lease is taken first, and then the snapshot to read, or to build on, is
looked up. A prune never waits for a lease; it leaves what is leased for the
next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from turnkeep_store.errors import StoreError
from turnkeep_store.ids import TreeId


class Abortable(Protocol):
    """What a lease puts an end to when it ends itself."""

    def abort(self) -> None: ...


class Lease:
    """A claim on what is read and written until `release`; a context manager.

    Releasing aborts the writers opened under it: what they flushed stays until
    the next prune, what they did not flush is dropped.
    """

    def __init__(self, purpose: str, end: Callable[[Lease], None]) -> None:
        self.purpose = purpose
        self.packs: set[str] = set()
        self.active = True
        self._end = end
        self._writers: list[Abortable] = []

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """End the lease. Ending it twice does nothing."""
        for writer in self._writers:
            writer.abort()
        self._writers.clear()
        self._end(self)

    def attach(self, writer: Abortable) -> None:
        """Let `writer` end with this lease."""
        self.require()
        self._writers.append(writer)

    def require(self) -> None:
        """Refuse to work under a lease that has ended.

        Raises:
            StoreError: it has.
        """
        if not self.active:
            raise StoreError(f"lease {self.purpose!r} has ended; take a new one and begin again")


class Leases:
    """All leases of an open repository. Safe for use by many threads at once.

    `guard` orders everything that decides whether a blob is there with
    everything that makes blobs disappear.
    """

    def __init__(self) -> None:
        self.guard = threading.RLock()
        self._live: set[Lease] = set()
        self._deleted: list[tuple[TreeId, set[Lease]]] = []

    def begin(self, purpose: str) -> Lease:
        lease = Lease(purpose, self._end)
        with self.guard:
            self._live.add(lease)
        return lease

    def release_all(self) -> None:
        """End all leases: the repository is being closed."""
        with self.guard:
            live = list(self._live)
        for lease in live:
            lease.release()

    def remember_deleted(self, tree: TreeId) -> None:
        """Keep the tree of a snapshot that is being deleted for those who may be using it."""
        with self.guard:
            if self._live:
                self._deleted.append((tree, set(self._live)))

    def deleted_trees(self) -> list[TreeId]:
        """Return the trees of deleted snapshots that are still leased."""
        with self.guard:
            return [tree for tree, _ in self._deleted]

    def packs(self) -> set[str]:
        """Return the packs that are leased."""
        with self.guard:
            return set().union(*(lease.packs for lease in self._live))

    def purposes(self) -> list[str]:
        with self.guard:
            return sorted(lease.purpose for lease in self._live)

    def _end(self, lease: Lease) -> None:
        with self.guard:
            lease.active = False
            self._live.discard(lease)
            for _, holders in self._deleted:
                holders.discard(lease)
            self._deleted = [each for each in self._deleted if each[1]]
