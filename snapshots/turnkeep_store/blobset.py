"""A set of blob ids that does not have to fit into memory."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from types import TracebackType

from blake3 import blake3

from turnkeep_store.errors import StoreFull
from turnkeep_store.ids import BlobId

_CACHE_KIB = 32 * 1024


class BlobSet:
    """Blob ids, in a temporary file once they are many; a context manager.

    They are kept hashed with a key of the moment, so that the file says nothing of them.
    For one thread at a time, which need not be the one that made it.
    """

    def __init__(self) -> None:
        # The empty name is a private database that spills to the disk and goes with the process.
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._db.execute("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("BEGIN")
        self._count = 0
        self._key = secrets.token_bytes(32)

    def __enter__(self) -> BlobSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def __len__(self) -> int:
        return self._count

    def __contains__(self, blob: BlobId) -> bool:
        return self._db.execute("SELECT 1 FROM ids WHERE id = ?", self._row(blob)).fetchone() is not None

    def add(self, blob: BlobId) -> bool:
        """Add an id; return whether it is new."""
        try:
            added = self._db.execute("INSERT OR IGNORE INTO ids VALUES (?)", self._row(blob)).rowcount == 1
        except sqlite3.Error as error:
            raise StoreFull(f"temporary files: {error}; free space under SQLITE_TMPDIR") from error
        self._count += added
        return added

    def _row(self, blob: BlobId) -> tuple[bytes]:
        return (blake3(blob, key=self._key).digest(),)
