"""Reading content that is written next while what came before it is being written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Executor, Future
from itertools import islice

from turnkeep_store.blobs import BulkSource
from turnkeep_store.ids import BlobId
from turnkeep_store.tree import Extent, ExtentKind

_BATCH_BYTES = 2 * 1024 * 1024

_LOOK = 4096
"""So many extents are looked at for a batch, however little content they have."""


class ReadAhead:
    """A source of blobs that has been told in which order they will be asked for.

    It holds one batch and reads the next in another thread: at most 8 MiB in all. The
    order is a hint; a blob that is asked for out of it is read on its own.
    """

    def __init__(self, source: BulkSource, pool: Executor) -> None:
        self._source = source
        self._pool = pool
        self._coming: Iterator[Extent] = iter(())
        self._held: Mapping[BlobId, bytes] = {}
        self._next: Collection[BlobId] = ()
        self._read: Future[dict[BlobId, bytes]] | None = None

    def follow(self, coming: Iterator[Extent]) -> None:
        """Read from now on what `coming` says. It is asked for more when a batch has been used up."""
        self._coming = coming
        self._begin()

    def get(self, blob: BlobId) -> bytes:
        """Return a blob (see `BlobSource.get`)."""
        found = self._held.get(blob)
        if found is not None:
            return found
        if self._read is None:
            # As far as was looked nothing came.
            self._begin()
        if self._read is not None and blob in self._next:
            self._held = self._read.result()
            self._begin()
        found = self._held.get(blob)
        return found if found is not None else self._source.get(blob)

    def _begin(self) -> None:
        self._next = self._batch()
        self._read = self._pool.submit(self._source.get_many, self._next) if self._next else None

    def _batch(self) -> Collection[BlobId]:
        """Return what is read next: with something new in it, since else nobody would ask for it."""
        batch: dict[BlobId, bool] = {}
        size = fresh = 0
        for extent in islice(self._coming, _LOOK):
            if extent.kind is not ExtentKind.DATA or extent.blob in batch:
                continue
            batch[extent.blob] = is_new = extent.blob not in self._held
            size += extent.length
            fresh += extent.length if is_new else 0
            if fresh >= _BATCH_BYTES or (fresh and size >= 2 * _BATCH_BYTES):
                break
        return batch if fresh else ()
