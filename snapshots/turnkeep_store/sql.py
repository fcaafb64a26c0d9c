"""SQLite databases, encrypted as a whole where there are keys.

SQLCipher encrypts them, page by page with an authentication code, write-ahead log
included. It is asked for only where there are keys: `pip install turnkeep[encryption]`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, cast

from turnkeep_store.errors import StoreIOError, WrongKey

try:
    from sqlcipher3 import dbapi2 as sqlcipher
except ImportError:
    sqlcipher = None

_OURS: tuple[type[Exception], ...] = (sqlcipher.Error,) if sqlcipher is not None else ()
_OURS_DATABASE: tuple[type[Exception], ...] = (sqlcipher.DatabaseError,) if sqlcipher is not None else ()

ERRORS: tuple[type[Exception], ...] = (sqlite3.Error, UnicodeDecodeError, *_OURS)
"""What statements raise: `sqlite3.Error`, or SQLCipher's of that name.

What SQLite says of a damaged schema quotes it, and need not be UTF-8 then.
"""
DATABASE_ERRORS: tuple[type[Exception], ...] = (sqlite3.DatabaseError, UnicodeDecodeError, *_OURS_DATABASE)
"""What they raise for everything but a wrong use of the interface."""


def require_encryption() -> None:
    """Make sure that databases can be encrypted.

    Raises:
        WrongKey: SQLCipher is not installed.
    """
    if sqlcipher is None:
        raise WrongKey("a key is set, and SQLCipher is not installed: pip install 'turnkeep[encryption]'")


def connect(path: str, keys: Sequence[bytes] = (), *, uri: bool = False) -> sqlite3.Connection:
    """Open a database, in autocommit mode, for use by several threads.

    With keys (of 32 bytes) it is encrypted with the first of them; one that has
    another of them gets the first.

    Raises:
        one of ERRORS: it cannot be opened, or has none of the keys.
        StoreIOError: it cannot be given the first key; it has the one it had.
    """
    if not keys:
        return sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10, uri=uri)
    require_encryption()
    for key in keys:
        try:
            db = _connect(path, key, uri)
        except _OURS_DATABASE as error:
            if key == keys[-1] or getattr(error, "sqlite_errorname", "") != "SQLITE_NOTADB":
                raise
        else:
            break
    if key != keys[0]:
        _exchange(db, keys[0], path)
    return db


def _connect(path: str, key: bytes, uri: bool) -> sqlite3.Connection:
    db: Any = sqlcipher.connect(path, check_same_thread=False, isolation_level=None, timeout=10, uri=uri)
    try:
        db.execute("PRAGMA cipher_log_level = NONE")
        db.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
        db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    except BaseException:
        db.close()
        raise
    return cast(sqlite3.Connection, db)


def _exchange(db: sqlite3.Connection, key: bytes, path: str) -> None:
    try:
        db.execute(f"PRAGMA rekey = \"x'{key.hex()}'\"")
    except _OURS as error:
        db.close()
        # Not as damage, for which a database is thrown away or moved aside.
        raise StoreIOError(f"{path}: it cannot be encrypted with the newest key: {error}") from error
