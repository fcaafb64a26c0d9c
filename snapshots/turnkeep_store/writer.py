"""Putting blobs into packs."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from turnkeep_store.blobs import BlobSource
from turnkeep_store.blobstore import BlobStore
from turnkeep_store.codec import check_length
from turnkeep_store.durable import Bytes
from turnkeep_store.errors import StoreError
from turnkeep_store.ids import BlobId, TreeId, blob_id
from turnkeep_store.kinds import BlobKind
from turnkeep_store.lease import Lease
from turnkeep_store.pack import BlobHeader, Located, PackWriter
from turnkeep_store.tree import Directory

_BATCH_BYTES = 1024 * 1024
"""So much is compressed at one go, by a worker. What a turn changes is mostly less."""

_BATCHES = 4
"""So many batches of one writer wait for workers at most."""


class _Raw(NamedTuple):
    """A blob to be compressed."""

    id: BlobId
    kind: BlobKind
    data: bytes


@dataclass(slots=True)
class WriterStats:
    """What a writer did so far."""

    new_blobs: int = 0
    new_raw_bytes: int = 0
    stored_bytes: int = 0
    reused_blobs: int = 0


class BlobWriter:
    """Writes blobs into a pack of its own, one pack after the other.

    Many threads may put into one writer. Hashing happens in the calling thread;
    compressing does too, where it is little, and otherwise in the store's
    workers, while the caller reads on. At most some MiB wait for them. After an
    error of the disk the writer has lost what it had not flushed, and refuses
    everything else: begin again with a new one.
    """

    def __init__(self, store: BlobStore, lease: Lease, *, pack_bytes: int, pack_blobs: int) -> None:
        self.lease = lease
        self._stats = WriterStats()
        self._store = store
        self._pack_bytes = pack_bytes
        self._pack_blobs = pack_blobs
        self._lock = threading.RLock()
        self._settling = threading.Lock()
        self._pack: PackWriter | None = None
        self._pending: dict[BlobId, Located] = {}
        self._waiting: dict[BlobId, bytes] = {}
        self._batch: list[_Raw] = []
        self._batch_bytes = 0
        self._running: deque[Future[None]] = deque()
        self._ended: StoreError | None = None
        lease.attach(self)

    @property
    def stats(self) -> WriterStats:
        """What was done so far, with all that was put. Raises as `put`."""
        self._settle()
        return self._stats

    def put(self, data: Bytes, kind: BlobKind) -> BlobId:
        """Take `data` in unless it is stored already; return its id.

        It is durable after the next `flush`, and part of a snapshot once a tree
        that refers to it is committed.

        Raises:
            StoreFull: the disk is full, perhaps since an earlier call; this writer is done for.
            LimitExceeded: `data` is longer than a blob may be.
        """
        check_length(data)
        blob = blob_id(data)
        with self._lock:
            self._require()
            if blob in self._waiting or blob in self._pending or self._store.reuse(blob, self.lease):
                self._stats.reused_blobs += 1
                return blob
            raw = _Raw(blob, kind, bytes(data))
            self._waiting[blob] = raw.data
            self._batch.append(raw)
            self._batch_bytes += len(data)
            if self._batch_bytes < _BATCH_BYTES:
                return blob
            while self._running and self._running[0].done():
                self._running.popleft()  # if it failed, this writer has ended
            self._running.append(self._store.workers.submit(self._write, self._take_batch()))
            late = self._running[0] if len(self._running) > _BATCHES else None
        if late is not None:
            late.result()
        return blob

    def get(self, blob: BlobId) -> bytes:
        """Return a blob, also one that was put here and is not durable yet."""
        with self._lock:
            data = self._waiting.get(blob)
            if data is not None:
                return data
            row = self._pending.get(blob)
            if row is not None and self._pack is not None:
                return self._pack.read(row)
        return self._store.get(blob)

    def read_directory(self, tree: TreeId) -> Directory:
        """Return a directory, also one that was put here and is not durable yet."""
        return Directory.decode(self.get(BlobId(tree)))

    def flush(self) -> None:
        """Make everything that was put durable. Without anything new it does nothing."""
        self._settle()
        with self._lock:
            self._require()
            try:
                self._finish()
            except BaseException as error:
                self._fail(error)
                raise

    def abort(self) -> None:
        """Drop what was not flushed. The writer takes nothing any more."""
        with self._lock:
            if self._ended is None:
                self._fail(StoreError("writer was aborted; begin again with a new one"))

    def _take_batch(self) -> list[_Raw]:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        return batch

    def _settle(self) -> None:
        """Bring all that was put so far, by whatever thread, into packs."""
        with self._settling:
            with self._lock:
                batch, running = self._take_batch(), list(self._running)
            self._write(batch)
            for each in running:
                each.result()

    def _write(self, batch: list[_Raw]) -> None:
        """Compress blobs, and append them to the pack; in any thread."""
        if not batch:
            return
        packed = self._store.compressor.compress_all([raw.data for raw in batch])
        made = [
            (BlobHeader.of(raw.id, raw.kind, codec, len(raw.data), stored), stored)
            for raw, (codec, stored) in zip(batch, packed, strict=True)
        ]
        with self._lock:
            if self._ended is not None:
                return
            try:
                for header, stored in made:
                    self._append(header, stored)
            except BaseException as error:
                self._fail(error)
                raise

    def _append(self, header: BlobHeader, stored: Bytes) -> None:
        if self._pack is None:
            self._pack = PackWriter(self._store.backend)
        self._pending[header.id] = self._pack.append(header, stored)
        self._waiting.pop(header.id, None)
        self._stats.new_blobs += 1
        self._stats.new_raw_bytes += header.raw_length
        self._stats.stored_bytes += header.stored_length
        if self._pack.size >= self._pack_bytes or len(self._pending) >= self._pack_blobs:
            self._finish()

    def _finish(self) -> None:
        if self._pack is not None:
            self._store.publish(self._pack, self.lease)
            self._pack = None
            self._pending = {}

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, StoreError):
            self._ended = error
        else:
            self._ended = StoreError(f"writer failed: {error!r}; begin again with a new one")
        pack, self._pack, self._pending = self._pack, None, {}
        self._waiting = {}
        self._take_batch()
        if pack is not None:
            pack.discard()

    def _require(self) -> None:
        self.lease.require()
        if self._ended is not None:
            raise type(self._ended)(f"this writer has ended: {self._ended}") from self._ended


class DirectorySource(BlobSource, Protocol):
    """Where blobs are read, and directories, which it may keep decoded: a repository."""

    def read_directory(self, tree: TreeId) -> Directory: ...


class HashOnlySink:
    """Computes what a writer would, and stores nothing.

    Directories and lists of extents are kept in memory, since whoever builds a
    tree reads them back; file content is hashed and forgotten.
    """

    def __init__(self, source: DirectorySource) -> None:
        self._source = source
        self._pending: dict[BlobId, bytes] = {}

    def put(self, data: Bytes, kind: BlobKind) -> BlobId:
        """Return the id `data` has."""
        blob = blob_id(data)
        if kind is not BlobKind.DATA:
            self._pending[blob] = bytes(data)
        return blob

    def get(self, blob: BlobId) -> bytes:
        """Return a directory or list put here, or a blob of the repository.

        Raises:
            BlobNotFound: it is neither.
        """
        pending = self._pending.get(blob)
        return pending if pending is not None else self._source.get(blob)

    def read_directory(self, tree: TreeId) -> Directory:
        """Return a directory that was put here, or else the source's. Do not change it."""
        pending = self._pending.get(BlobId(tree))
        return Directory.decode(pending) if pending is not None else self._source.read_directory(tree)
