"""The index: in which pack each blob lies.

It is a cache, kept in SQLite so that its size is not bounded by memory. The
packs' own tables of contents are the truth: on opening, the index is compared
with the packs that are there, and whenever SQLite finds it damaged it is built
anew. A blob may lie in several packs; all of them are known here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from turnkeep_store import sql
from turnkeep_store.errors import StoreFull, StoreIOError
from turnkeep_store.ids import BlobId
from turnkeep_store.pack import Located

SCHEMA_VERSION = 1
_CACHE_KIB = 16 * 1024

_SCHEMA = f"""
CREATE TABLE packs (number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
                    size INTEGER NOT NULL, blobs INTEGER NOT NULL, raw INTEGER NOT NULL);
CREATE TABLE blobs (id BLOB NOT NULL, pack INTEGER NOT NULL, start INTEGER NOT NULL,
                    stored INTEGER NOT NULL, raw INTEGER NOT NULL, PRIMARY KEY (id, pack)) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
"""
_PURGE = "DELETE FROM blobs WHERE id >= ? AND id < ? AND pack NOT IN (SELECT number FROM packs)"

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Location:
    """Where one copy of a blob lies."""

    pack: str
    offset: int
    stored_length: int
    raw_length: int


@dataclass(frozen=True, slots=True)
class Totals:
    """How much the packs hold. A blob that lies in two packs counts twice."""

    packs: int
    blobs: int
    stored_bytes: int
    raw_bytes: int


class Packs(Protocol):
    """The packs the index speaks of."""

    def sizes(self) -> dict[str, int]:
        """Return name and size of every pack."""
        ...

    def contents(self, name: str, size: int) -> list[Located] | None:
        """Return what a pack holds, or None if it is gone."""
        ...


class Index:
    """Blob id to locations. Safe for use by many threads at once.

    Every method raises `StoreFull` when the disk has no room, and otherwise
    rebuilds a damaged index once before it raises `StoreIOError`. With keys the file
    is encrypted (see `sql`).
    """

    def __init__(self, path: str, packs: Packs, keys: Sequence[bytes] = ()) -> None:
        self._path = path
        self._keys = keys
        self._packs = packs
        self._lock = threading.RLock()
        self._names: dict[int, str] = {}
        self._connection: sqlite3.Connection | None = None
        try:
            self._connect()
            self._reconcile()
        except sql.ERRORS as error:
            self._heal(error)

    def close(self) -> None:
        with self._lock, contextlib.suppress(*sql.ERRORS):
            if self._connection is not None:
                self._connection.close()
        self._connection = None

    def lookup(self, blob: BlobId) -> list[Location]:
        """Return the places where the blob lies; none if it does not."""

        def query(db: sqlite3.Connection) -> list[Location]:
            if not self._names:
                return []
            rows = db.execute("SELECT pack, start, stored, raw FROM blobs WHERE id = ?", (blob,))
            return [Location(self._names[row[0]], *row[1:]) for row in rows if row[0] in self._names]

        return self._run(query)

    def lookup_many(self, blobs: Sequence[BlobId]) -> dict[BlobId, Location]:
        """Return one place of each of some hundred blobs; those that lie nowhere are left out."""
        marks = ",".join("?" * len(blobs))

        def query(db: sqlite3.Connection) -> dict[BlobId, Location]:
            rows = db.execute(f"SELECT id, pack, start, stored, raw FROM blobs WHERE id IN ({marks})", blobs)
            return {
                BlobId(row[0]): Location(self._names[row[1]], *row[2:])
                for row in rows
                if row[1] in self._names
            }

        return self._run(query)

    def add(self, name: str, size: int, contents: Iterable[Located]) -> None:
        """Take in a pack, in one transaction. A pack that is known already is left as it is."""
        rows = list(contents)

        def insert(db: sqlite3.Connection) -> None:
            self._insert(db, name, size, rows)

        self._run(insert)

    def drop(self, names: Iterable[str]) -> None:
        """Forget packs. Their blobs are no longer found; `purge` frees the rows.

        Works on a full disk, too: what could not be written down is noticed on
        the next opening, when the packs are gone.
        """
        dropped = set(names)

        def delete(db: sqlite3.Connection) -> None:
            self._names = {number: name for number, name in self._names.items() if name not in dropped}
            with _transaction(db):
                db.executemany("DELETE FROM packs WHERE name = ?", [(name,) for name in dropped])

        with contextlib.suppress(StoreFull):
            self._run(delete)

    def purge(self) -> None:
        """Delete the rows of packs that were dropped, a slice at a time."""
        for first in range(256):
            bounds = (bytes([first]), bytes([first + 1]) if first < 255 else b"\xff" * 33)

            def delete(db: sqlite3.Connection, bounds: tuple[bytes, bytes] = bounds) -> None:
                with _transaction(db):
                    db.execute(_PURGE, bounds)

            with contextlib.suppress(StoreFull):
                self._run(delete)

    def packs(self) -> dict[str, int]:
        """Return name and size of the packs known."""

        def query(db: sqlite3.Connection) -> dict[str, int]:
            rows = db.execute("SELECT number, name, size FROM packs")
            return {name: size for number, name, size in rows if number in self._names}

        return self._run(query)

    def totals(self) -> Totals:
        def query(db: sqlite3.Connection) -> Totals:
            row = db.execute("SELECT COUNT(*), SUM(blobs), SUM(size), SUM(raw) FROM packs").fetchone()
            return Totals(*(number or 0 for number in row))

        return self._run(query)

    def count(self, name: str) -> int | None:
        """Return how many blobs the pack is recorded with; None if it is not known."""

        def query(db: sqlite3.Connection) -> int | None:
            row = db.execute("SELECT blobs FROM packs WHERE name = ?", (name,)).fetchone()
            return int(row[0]) if row else None

        return self._run(query)

    def rebuild(self) -> None:
        """Throw the index away and build it from the packs."""
        with self._lock:
            self._recreate()

    def reconcile(self) -> None:
        """Read in packs that are missing here and forget those that are gone."""
        self._run(lambda db: self._reconcile())

    def _run(self, action: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                return action(self._db())
            except sql.ERRORS as error:
                self._heal(error)
            try:
                return action(self._db())
            except sql.ERRORS as error:
                raise self._failure(error) from error

    def _heal(self, error: Exception) -> None:
        if _is_full(error):
            raise self._failure(error) from error
        log.warning(
            "index damaged, building it from the packs", extra={"path": self._path, "cause": str(error)}
        )
        try:
            self._recreate()
        except sql.ERRORS as again:
            raise self._failure(again) from again

    def _failure(self, error: Exception) -> StoreFull | StoreIOError:
        if _is_full(error):
            return StoreFull(f"index {self._path}: {error}; free space, or prune, and repeat")
        return StoreIOError(f"index {self._path}: {error}; remove it, it is built anew from the packs")

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreIOError(f"index {self._path}: closed; open the repository again")
        return self._connection

    def _connect(self) -> None:
        # SQLite would create it as the umask says; its -wal and -shm follow it.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sql.connect(self._path, self._keys)
        self._connection = db
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            db.executescript(_SCHEMA)
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"schema {version} of another version")
        self._names = {}
        for number, name in db.execute("SELECT number, name FROM packs"):
            self._names[int(number)] = str(name)

    def _recreate(self) -> None:
        self.close()
        for suffix in ("", "-wal", "-shm", "-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path + suffix)
        self._connect()
        self._reconcile()

    def _reconcile(self) -> None:
        db = self._db()
        present = self._packs.sizes()
        known = dict(db.execute("SELECT name, size FROM packs").fetchall())
        gone = [name for name, size in known.items() if present.get(name) != size]
        if gone:
            log.warning("packs are gone or changed", extra={"path": self._path, "packs": len(gone)})
            with _transaction(db):
                db.executemany("DELETE FROM packs WHERE name = ?", [(name,) for name in gone])
            self._names = {number: name for number, name in self._names.items() if name not in set(gone)}
        for name, size in present.items():
            if known.get(name) != size:
                contents = self._packs.contents(name, size)
                if contents is not None:
                    self._insert(db, name, size, contents)

    def _insert(self, db: sqlite3.Connection, name: str, size: int, rows: list[Located]) -> None:
        with _transaction(db):
            raw = sum(row.header.raw_length for row in rows)
            cursor = db.execute(
                "INSERT OR IGNORE INTO packs (name, size, blobs, raw) VALUES (?, ?, ?, ?)",
                (name, size, len(rows), raw),
            )
            if cursor.rowcount == 0:
                return
            number = int(cursor.lastrowid or 0)
            db.executemany(
                "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?)",
                [
                    (row.header.id, number, row.offset, row.header.stored_length, row.header.raw_length)
                    for row in rows
                ],
            )
        self._names[number] = name


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(*sql.ERRORS):
            db.execute("ROLLBACK")
        raise


def _is_full(error: Exception) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith("SQLITE_FULL")
