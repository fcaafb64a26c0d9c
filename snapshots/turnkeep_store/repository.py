"""A repository: open it, write under a lease, commit, read, delete."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

from turnkeep_store import config
from turnkeep_store.backend import Area, Backend, save
from turnkeep_store.backend_local import LocalBackend
from turnkeep_store.backend_sealed import SealedBackend
from turnkeep_store.blobstore import BlobStore
from turnkeep_store.codec import Compressor
from turnkeep_store.directories import DirectoryCache
from turnkeep_store.durable import Disk, Lock, OsDisk, disk_errors, make_directory_durably
from turnkeep_store.errors import (
    BlobNotFound,
    Damaged,
    RepositoryExists,
    RepositoryNotFound,
    StoreError,
    WrongKey,
)
from turnkeep_store.ids import BlobId, Digest, SnapshotId, TreeId
from turnkeep_store.keys import KEYS_NAME, MAX_FILE_BYTES, Keyring, MasterKey
from turnkeep_store.lease import Lease
from turnkeep_store.pack import MAX_BLOBS
from turnkeep_store.records import Records
from turnkeep_store.snapshot import Json, Snapshot, encode
from turnkeep_store.sql import require_encryption
from turnkeep_store.tree import Directory
from turnkeep_store.writer import BlobWriter, HashOnlySink

INDEX_NAME = "index.sqlite"
LOCK_NAME = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to write. None of it is part of the format; it may differ each time."""

    pack_bytes: int = 64 * 1024 * 1024
    pack_blobs: int = MAX_BLOBS
    compression_level: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSize:
    """What a repository takes up. A blob that lies in two packs counts twice."""

    snapshots: int
    packs: int
    blobs: int
    stored_bytes: int
    raw_bytes: int


class Repository:
    """An open repository, held by one process. Safe for use by many of its threads.

    What `commit` has returned for survives any crash. What was not committed is
    invisible, and is removed by the next prune.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        repository_id: str,
        index_path: str,
        options: Options,
        lock: Lock | None,
        keyring: Keyring | None = None,
    ) -> None:
        """Use `create`, `open` or `open_or_create`."""
        self.id = repository_id
        self.keyring = keyring
        self.format_version = config.ENCRYPTED_VERSION if keyring else config.FORMAT_VERSION
        self.backend = backend
        self.options = options
        self._lock = lock
        backend.remove_leftovers()
        index_keys = keyring.for_database(INDEX_NAME) if keyring else []
        self.blobs = BlobStore(backend, index_path, Compressor(options.compression_level), index_keys)
        self.prune_lock = threading.Lock()
        self.records = Records(backend, self.blobs.leases)
        self._directories = DirectoryCache(self.blobs)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        options: Options | None = None,
        disk: Disk | None = None,
        index_path: str | None = None,
        master: MasterKey | None = None,
    ) -> Repository:
        """Make a repository in a directory that is empty or not there, and open it.

        With `master` it is encrypted, and can only be opened with that key. After a
        crash in the middle there is none, and this can be repeated.

        Raises:
            RepositoryExists: the directory holds something.
            RepositoryLocked: another process is at it.
        """
        disk = disk or OsDisk()
        root = os.path.abspath(path)
        make_directory_durably(disk, root)
        with disk_errors("list", root):
            foreign = {name for name, _ in disk.list(root)} - {LOCK_NAME}
        with disk_errors("lock", root):
            lock = disk.lock(os.path.join(root, LOCK_NAME))
        with _released_on_error(lock):
            backend = LocalBackend(root, disk)
            if foreign or config.exists(backend):
                raise RepositoryExists(f"{root}: not empty; open it, or choose another place")
            backend.make_folders()
            repository_id = secrets.token_bytes(16)
            keyring = _new_keyring(backend, repository_id, master) if master is not None else None
            version = config.ENCRYPTED_VERSION if keyring else config.FORMAT_VERSION
            save(backend, Area.CONFIG, config.CONFIG_NAME, config.encode(repository_id, version))
            return cls(
                SealedBackend(backend, keyring) if keyring else backend,
                repository_id=repository_id.hex(),
                index_path=index_path or os.path.join(root, INDEX_NAME),
                options=options or Options(),
                lock=lock,
                keyring=keyring,
            )

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        options: Options | None = None,
        disk: Disk | None = None,
        index_path: str | None = None,
        master: MasterKey | None = None,
    ) -> Repository:
        """Open a repository and hold it until `close` or the end of the process.

        Takes away what a crash left half written.

        Raises:
            RepositoryNotFound: there is none here.
            RepositoryLocked: another process has it open.
            WrongKey: it is encrypted, and not with this key; or a key is given, and it is not.
            UnsupportedFormat: a newer version made it.
            Damaged: its config is not what was written.
        """
        disk = disk or OsDisk()
        root = os.path.abspath(path)
        backend = LocalBackend(root, disk)
        if not config.exists(backend):
            raise RepositoryNotFound(f"{root}: no repository here; create one, or correct the path")
        with disk_errors("lock", root):
            lock = disk.lock(os.path.join(root, LOCK_NAME))
        with _released_on_error(lock):
            data = backend.read(Area.CONFIG, config.CONFIG_NAME, 0, config.CONFIG_BYTES + 1)
            repository_id, version = config.decode(root, data)
            keyring = _read_keyring(root, backend, repository_id, version, master)
            return cls(
                SealedBackend(backend, keyring) if keyring else backend,
                repository_id=repository_id.hex(),
                index_path=index_path or os.path.join(root, INDEX_NAME),
                options=options or Options(),
                lock=lock,
                keyring=keyring,
            )

    @classmethod
    def open_or_create(
        cls,
        path: str | os.PathLike[str],
        *,
        options: Options | None = None,
        disk: Disk | None = None,
        index_path: str | None = None,
        master: MasterKey | None = None,
    ) -> Repository:
        """Open the repository, or create it where there is none."""
        try:
            return cls.open(path, options=options, disk=disk, index_path=index_path, master=master)
        except RepositoryNotFound:
            return cls.create(path, options=options, disk=disk, index_path=index_path, master=master)

    def close(self) -> None:
        """End all leases and let go of the repository. Closing twice does nothing."""
        self.blobs.leases.release_all()
        self.blobs.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lease(self, purpose: str) -> Lease:
        """Begin a lease (see `lease`): take it first, then look up what to read or build on."""
        return self.blobs.leases.begin(purpose)

    def writer(self, lease: Lease) -> BlobWriter:
        """Return a new writer; it ends with the lease."""
        return BlobWriter(
            self.blobs, lease, pack_bytes=self.options.pack_bytes, pack_blobs=self.options.pack_blobs
        )

    def hash_only(self) -> HashOnlySink:
        """Return a sink that computes ids and stores nothing."""
        return HashOnlySink(self)

    def get(self, blob: BlobId) -> bytes:
        """Return a blob, verified against its id.

        Raises:
            BlobNotFound: it is not stored.
            Damaged: no sound copy of it is left.
        """
        return self.blobs.get(blob)

    def get_many(self, blobs: Iterable[BlobId], room: int | None = None) -> dict[BlobId, bytes]:
        """Return many blobs, verified, at most `room` bytes; what is left out is to be asked for alone."""
        return self.blobs.get_many(blobs, room)

    def has(self, blob: BlobId) -> bool:
        """Whether the blob is stored; its bytes are not read."""
        return self.blobs.has(blob)

    def read_directory(self, tree: TreeId) -> Directory:
        """Return a directory. It is shared with other readers: do not change it."""
        return self._directories.get(tree)

    def fetch_directories(self, trees: Iterable[TreeId]) -> None:
        """Read directories at one go that will be asked for soon. What is wrong with one, that says."""
        self._directories.fetch(trees)

    def remember(self, tree: TreeId, directory: Directory, length: int) -> None:
        """Keep a directory in memory that was just stored; nobody may change it any more."""
        self._directories.add(tree, directory, length)

    def commit(
        self,
        writer: BlobWriter,
        *,
        tree: TreeId,
        digest: Digest,
        parent: SnapshotId | None = None,
        metadata: Mapping[str, Json],
    ) -> Snapshot:
        """Make what was written a snapshot.

        Everything `tree` refers to was put by this writer, or belongs to a
        snapshot that was there when its lease began.

        On return it survives any crash. Before, it is invisible; when this
        raises it stays so, unless the disk failed so badly that the record could
        not be taken back: then it may show, complete, after the next open.

        Raises:
            StoreFull: the disk is full; begin again with a new writer.
            BlobNotFound: `tree` was never put.
        """
        writer.flush()
        if not self.blobs.reuse(BlobId(tree), writer.lease):
            raise BlobNotFound(f"tree {tree.hex()}: it was not put, so nothing can be committed")
        record = encode(
            tree=tree,
            digest=digest,
            created_ns=self.records.next_time(),
            parent=parent,
            metadata=metadata,
        )
        return self.records.add(record, writer.lease)

    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots, oldest first. Damaged records are left out and logged."""
        return self.records.all()

    def snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        """Return one snapshot.

        Raises:
            SnapshotNotFound: there is none of this id.
            Damaged: its record is not what was written.
        """
        return self.records.get(snapshot_id)

    def resolve(self, prefix: str) -> SnapshotId:
        """Return the one snapshot whose id begins with these digits, at least four.

        Raises:
            SnapshotNotFound: none does, or they are too few.
            AmbiguousId: several do.
        """
        return self.records.resolve(prefix)

    def delete(self, snapshot_id: SnapshotId) -> None:
        """Delete a snapshot's record, durably. Its data goes with the next prune.

        Raises:
            SnapshotNotFound: there is none of this id.
        """
        self.records.delete(snapshot_id)

    def size(self) -> StoredSize:
        """Return what the repository holds and takes up."""
        totals = self.blobs.index.totals()
        return StoredSize(
            snapshots=self.records.count(),
            packs=totals.packs,
            blobs=totals.blobs,
            stored_bytes=totals.stored_bytes,
            raw_bytes=totals.raw_bytes,
        )


def _new_keyring(backend: Backend, repository_id: bytes, master: MasterKey) -> Keyring:
    require_encryption()
    keyring = Keyring.new(repository_id)
    save_keyring(backend, keyring, master)
    return keyring


def save_keyring(backend: Backend, keyring: Keyring, master: MasterKey) -> None:
    """Make a keyring that of a repository; at any time there is the one before or this one."""
    save(backend, Area.CONFIG, KEYS_NAME, keyring.seal(master), replace=True)


def _read_keyring(
    root: str, backend: Backend, repository_id: bytes, version: int, master: MasterKey | None
) -> Keyring | None:
    if version == config.FORMAT_VERSION:
        if master is not None:
            raise WrongKey(f"{root}: a key is set, and this repository is not encrypted; begin a new one")
        return None
    if master is None:
        raise WrongKey(f"{root}: this repository is encrypted; set its key")
    require_encryption()
    try:
        data = backend.read(Area.CONFIG, KEYS_NAME, 0, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise Damaged(f"{root}: config/keys is gone; put back a copy of it") from None
    try:
        return Keyring.unseal(data, master, repository_id)
    except StoreError as error:
        raise type(error)(f"{root}: {error}") from error


@contextlib.contextmanager
def _released_on_error(lock: Lock) -> Iterator[None]:
    try:
        yield
    except BaseException:
        lock.release()
        raise
