"""Putting blobs into packs."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from turnkeep_store.blobs import BlobSource
from turnkeep_store.blobstore import BlobStore
from turnkeep_store.durable import Bytes
from turnkeep_store.errors import StoreError
from turnkeep_store.ids import BlobId, TreeId, blob_id
from turnkeep_store.kinds import BlobKind
from turnkeep_store.lease import Lease
from turnkeep_store.pack import BlobHeader, Located, PackWriter
from turnkeep_store.tree import Directory


@dataclass(slots=True)
class WriterStats:
    """What a writer did so far."""

    new_blobs: int = 0
    new_raw_bytes: int = 0
    stored_bytes: int = 0
    reused_blobs: int = 0


class BlobWriter:
    """Writes blobs into a pack of its own, one pack after the other.

    Many threads may put into one writer; hashing and compressing happen in the
    calling thread. After an error of the disk the writer has lost what it had
    not flushed, and refuses everything else: begin again with a new one.
    """

    def __init__(self, store: BlobStore, lease: Lease, *, pack_bytes: int, pack_blobs: int) -> None:
        self.lease = lease
        self.stats = WriterStats()
        self._store = store
        self._pack_bytes = pack_bytes
        self._pack_blobs = pack_blobs
        self._lock = threading.RLock()
        self._pack: PackWriter | None = None
        self._pending: dict[BlobId, Located] = {}
        self._ended: StoreError | None = None
        lease.attach(self)

    def put(self, data: Bytes, kind: BlobKind) -> BlobId:
        """Take `data` in unless it is stored already; return its id.

        It is durable after the next `flush`, and part of a snapshot once a tree
        that refers to it is committed.

        Raises:
            StoreFull: the disk is full; this writer is done for.
            LimitExceeded: `data` is longer than a blob may be.
        """
        blob = blob_id(data)
        if self._is_known(blob):
            return blob
        codec, stored = self._store.compressor.compress(data)
        header = BlobHeader.of(blob, kind, codec, len(data), stored)
        with self._lock:
            self._require()
            if blob in self._pending:
                self.stats.reused_blobs += 1
                return blob
            try:
                self._append(header, stored)
            except BaseException as error:
                self._fail(error)
                raise
        return blob

    def get(self, blob: BlobId) -> bytes:
        """Return a blob, also one that was put here and is not durable yet."""
        with self._lock:
            row = self._pending.get(blob)
            if row is not None and self._pack is not None:
                return self._pack.read(row)
        return self._store.get(blob)

    def read_directory(self, tree: TreeId) -> Directory:
        """Return a directory, also one that was put here and is not durable yet."""
        return Directory.decode(self.get(BlobId(tree)))

    def flush(self) -> None:
        """Make everything that was put durable. Without anything new it does nothing."""
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

    def _is_known(self, blob: BlobId) -> bool:
        with self._lock:
            self._require()
            known = blob in self._pending or self._store.reuse(blob, self.lease)
            self.stats.reused_blobs += known
            return known

    def _append(self, header: BlobHeader, stored: Bytes) -> None:
        if self._pack is None:
            self._pack = PackWriter(self._store.backend)
        self._pending[header.id] = self._pack.append(header, stored)
        self.stats.new_blobs += 1
        self.stats.new_raw_bytes += header.raw_length
        self.stats.stored_bytes += header.stored_length
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
