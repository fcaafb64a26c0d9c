"""Reading content that is written next while what came before it is being written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, Future

from turnkeep_store.blobs import BulkSource
from turnkeep_store.ids import BlobId
from turnkeep_store.tree import Extent, ExtentKind

_BATCH_BYTES = 2 * 1024 * 1024
_BATCH_BLOBS = 4096


class ReadAhead:
    """A source of blobs that has been told in which order they will be asked for.

    It holds one batch and reads the next in another thread: about 4 MiB in all. The
    order is a hint; a blob that is asked for out of it is read on its own.
    """

    def __init__(self, source: BulkSource, pool: Executor) -> None:
        self._source = source
        self._pool = pool
        self._coming: Iterator[Extent] = iter(())
        self._held: Mapping[BlobId, bytes] = {}
        self._next: Mapping[BlobId, int] = {}
        self._read: Future[dict[BlobId, bytes]] | None = None

    def follow(self, coming: Iterator[Extent]) -> None:
        """Read from now on what `coming` says. It is asked for more when a batch has been used up."""
        self._coming = coming
        self._begin()

    def get(self, blob: BlobId) -> bytes:
        """Return a blob (see `BlobSource.get`)."""
        found = self._held.get(blob)
        if found is None and blob in self._next and self._read is not None:
            self._held = self._read.result()
            self._begin()
            found = self._held.get(blob)
        return found if found is not None else self._source.get(blob)

    def _begin(self) -> None:
        batch: dict[BlobId, int] = {}
        size = 0
        for extent in self._coming:
            if extent.kind is not ExtentKind.DATA:
                continue
            batch[extent.blob] = extent.length
            size += extent.length
            if size >= _BATCH_BYTES or len(batch) >= _BATCH_BLOBS:
                break
        self._next = batch
        self._read = self._pool.submit(self._source.get_many, batch) if batch else None
