"""Content that was stored or read lately in memory, so that going back to it reads no disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable

from turnkeep_store.blobs import BlobSink, BulkSource
from turnkeep_store.durable import Bytes
from turnkeep_store.ids import BlobId
from turnkeep_store.kinds import BlobKind


class BlobCache:
    """Blobs by their ids, at most so many bytes, the least used going first. Used from any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._blobs: OrderedDict[BlobId, bytes] = OrderedDict()
        self._size = 0

    def add(self, blob: BlobId, data: bytes) -> None:
        """Keep a blob."""
        if len(data) > self._limit:
            return
        with self._lock:
            if blob in self._blobs:
                self._blobs.move_to_end(blob)
                return
            self._blobs[blob] = data
            self._size += len(data)
            while self._size > self._limit:
                _, dropped = self._blobs.popitem(last=False)
                self._size -= len(dropped)

    def find(self, blob: BlobId) -> bytes | None:
        """Return a blob, if it is kept."""
        with self._lock:
            data = self._blobs.get(blob)
            if data is not None:
                self._blobs.move_to_end(blob)
            return data

    def __contains__(self, blob: BlobId) -> bool:
        """Whether a blob is kept now."""
        return blob in self._blobs


class CachingSink:
    """Puts blobs into a sink, and keeps them."""

    def __init__(self, sink: BlobSink, cache: BlobCache) -> None:
        self._sink = sink
        self._cache = cache

    def put(self, data: Bytes, kind: BlobKind) -> BlobId:
        """Take `data` in (see `BlobSink.put`)."""
        blob = self._sink.put(data, kind)
        self._cache.add(blob, bytes(data))
        return blob

    def get(self, blob: BlobId) -> bytes:
        """Return a blob (see `BlobSource.get`)."""
        found = self._cache.find(blob)
        return found if found is not None else self._sink.get(blob)


class CachingSource:
    """Reads blobs from a source, unless they are kept. What is kept was verified when it was taken."""

    def __init__(self, source: BulkSource, cache: BlobCache) -> None:
        self._source = source
        self._cache = cache

    def get(self, blob: BlobId) -> bytes:
        """Return a blob (see `BlobSource.get`)."""
        found = self._cache.find(blob)
        if found is None:
            found = self._source.get(blob)
            self._cache.add(blob, found)
        return found

    def get_many(self, blobs: Iterable[BlobId], room: int | None = None) -> dict[BlobId, bytes]:
        """Read many blobs, and keep them (see `BulkSource.get_many`)."""
        found = self._source.get_many(blobs, room)
        for blob, data in found.items():
            self._cache.add(blob, data)
        return found
