"""What happened, durably: an append-only list of events in SQLite.

The tables of sandboxes, turns, checkpoints, intents and answered requests are
projections: every event carries the values that it puts or deletes, both are
written in one transaction, and `rebuild` makes the tables anew from the events. Each event
carries the hash of the one before (see `chain`), so `verify` finds what was changed.
When `append` returns, the event survives a crash of the daemon; if it is none of those
that are only on the way (`changes.PASSING`), a power cut, too (WAL; synchronous=FULL, else NORMAL).

The store, not the journal, is the truth about checkpoints: start-up recovery
(`recovery`) makes the journal agree with it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from turnkeep_store import sql

from turnkeep.errors import ResourceExhausted, StoreDamaged
from turnkeep.journal.chain import GENESIS, Head, Row, link, problems
from turnkeep.journal.changes import Change, Delete, Happened, Intent, Put, from_row, to_row
from turnkeep.model import (
    NO_TURN,
    Checkpoint,
    CheckpointId,
    Event,
    SandboxId,
    SandboxRecord,
    Turn,
    TurnNumber,
    TurnState,
)

SCHEMA_VERSION = 2

_ROW = "sequence, time_ns, kind, sandbox_id, sandbox_name, turn, message, details, changes"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ns INTEGER NOT NULL, kind TEXT NOT NULL, sandbox_id TEXT, sandbox_name TEXT NOT NULL,
    turn INTEGER NOT NULL, message TEXT NOT NULL, details TEXT NOT NULL, changes TEXT NOT NULL,
    hash BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS projection (
    kind TEXT NOT NULL, key TEXT NOT NULL, sandbox_id TEXT NOT NULL, position INTEGER NOT NULL,
    value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS projection_by_sandbox ON projection (kind, sandbox_id, position);
CREATE INDEX IF NOT EXISTS turn_by_harness ON projection (
    sandbox_id, json_extract(value, '$.session'), json_extract(value, '$.harness_turn_id'))
    WHERE kind = 'turn';
CREATE INDEX IF NOT EXISTS turns_by_state ON projection (sandbox_id, json_extract(value, '$.state'))
    WHERE kind = 'turn';
CREATE INDEX IF NOT EXISTS checkpoint_sizes ON projection (
    sandbox_id, json_extract(value, '$.stored_bytes')) WHERE kind = 'checkpoint';
"""


class Journal:
    """The journal of one state directory. Used from any thread; one process at a time.

    With keys the file is encrypted with the first of them (see `turnkeep_store.sql`).
    """

    def __init__(self, path: Path, keys: Sequence[bytes] = ()) -> None:
        self._lock = threading.RLock()
        self._listeners: list[Callable[[Event], None]] = []
        self._path = path
        self._head: Head | None = None
        self._keys = keys
        self._syncs = True
        with _damage(path):
            self._db = sql.connect(str(path), keys)
        try:
            with _damage(path):
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.executescript(_SCHEMA)
                _check_integrity(self._db)
                self._check_version(path)
                self._head = self._last()
        except StoreDamaged:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def subscribe(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with every event that is appended from now on, from
        whichever thread appends it. Returns what ends that."""
        with self._lock:
            self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def append(
        self,
        kind: str,
        message: str,
        *,
        sandbox: SandboxRecord | None = None,
        turn: TurnNumber = NO_TURN,
        details: Mapping[str, Any] | None = None,
        changes: Iterable[Change] = (),
    ) -> Event:
        """Record that something happened, and what it changes.

        Afterwards both are there, durable if the event `lasts`; before, neither is.

        Raises:
            ResourceExhausted, StoreDamaged: the journal cannot be written.
        """
        happened = Happened.of(kind, message, sandbox=sandbox, turn=turn, details=details, changes=changes)
        return self.append_all([happened])[0]

    def append_all(self, happened: Sequence[Happened]) -> list[Event]:
        """Record several things at once, with one sync of the disk for all of them.

        All are there afterwards, durable if one of them `lasts`; or none is. Raises as `append`.
        """
        with self._lock:
            head = self._head
            try:
                with self._transaction(synced=any(each.lasts for each in happened)):
                    stored = [self._insert(each) for each in happened]
            except BaseException:
                self._head = head
                raise
        for event in stored:
            for listener in tuple(self._listeners):
                listener(event)
        return stored

    def _insert(self, happened: Happened) -> Event:
        event = happened.event
        assert self._head is not None
        row: Row = (
            self._head.sequence + 1,
            event.time_ns,
            event.kind,
            event.sandbox_id,
            event.sandbox_name,
            event.turn,
            event.message,
            json.dumps(event.details),
            json.dumps([to_row(change) for change in happened.changes]),
        )
        head = Head(row[0], link(self._head.hash, row))
        self._db.execute(f"INSERT INTO events ({_ROW}, hash) VALUES ({'?, ' * 9}?)", (*row, head.hash))
        for change in happened.changes:
            self._apply(change)
        self._head = head
        return replace(event, sequence=head.sequence)

    def told_head(self) -> Head:
        """Return `head`, to be kept elsewhere: a power cut cannot take back what it stands for."""
        with self._lock:
            head = self.head()
            self.set_meta("told_head", str(head))
            return head

    def head(self) -> Head:
        """Return the last event's number and hash: who keeps them elsewhere knows if all is still there."""
        with self._lock:
            assert self._head is not None
            return self._head

    def _last(self) -> Head:
        row = self._db.execute("SELECT sequence, hash FROM events ORDER BY sequence DESC LIMIT 1").fetchone()
        return Head(*row) if row else Head()

    def rows(self, after: int = 0, limit: int = 1000) -> list[tuple[Row, bytes]]:
        """Return events with a higher sequence number than `after` as they are stored, with their hashes."""
        with self._lock:
            return _some_rows(self._db, after, limit)

    def verify(self, kept: Head | None = None) -> list[str]:
        """Return what is wrong with the journal.

        That is what `chain.problems` finds, with the daemon's own memory of the last
        event, and tables that say other than the events do. Appending goes on meanwhile.

        Raises:
            StoreDamaged: it cannot be read.
        """
        heads = [self.head(), *([kept] if kept is not None else [])]
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        with _damage(self._path), closing(sql.connect(uri, self._keys[:1], uri=True)) as db:
            db.execute("BEGIN")
            found = list(problems(_all_rows(db), heads))
            if not found and _projected(db) != _projections(db):
                found.append("the tables are not what the events make of them")
            return found

    def rebuild(self) -> None:
        """Make the projections anew from the events."""
        with self._lock, self._transaction():
            self._db.execute("DELETE FROM projection")
            rows = self._db.execute("SELECT changes FROM events ORDER BY sequence").fetchall()
            for (changes,) in rows:
                for row in json.loads(changes):
                    self._apply(from_row(row))

    def projections(self) -> list[tuple[str, str, str]]:
        """Return (kind, key, value) of everything projected, for comparing."""
        with self._lock:
            return _projections(self._db)

    def events(self, after: int = 0, sandbox_id: SandboxId | None = None, limit: int = 1000) -> list[Event]:
        """Return events with a higher sequence number than `after`, in order."""
        query = (
            "SELECT sequence, time_ns, kind, sandbox_id, sandbox_name, turn, message, details FROM events"
            " WHERE sequence > ? AND (? IS NULL OR sandbox_id = ?) ORDER BY sequence LIMIT ?"
        )
        with self._lock:
            rows = self._db.execute(query, (after, sandbox_id, sandbox_id, limit)).fetchall()
        return [
            Event(
                sequence=row[0],
                time_ns=row[1],
                kind=row[2],
                sandbox_id=row[3],
                sandbox_name=row[4],
                turn=TurnNumber(row[5]),
                message=row[6],
                details=json.loads(row[7]),
            )
            for row in rows
        ]

    def sandboxes(self) -> list[SandboxRecord]:
        """Return all sandboxes, the earliest attached first."""
        return [SandboxRecord.from_json(value) for _, value in self._all("sandbox")]

    def turns(self, sandbox_id: SandboxId) -> list[Turn]:
        """Return a sandbox's turns in order."""
        return [Turn.from_json(value) for _, value in self._all("turn", sandbox_id)]

    def turn(self, sandbox_id: SandboxId, number: int) -> Turn | None:
        """Return one turn."""
        value = self._one("turn", f"{sandbox_id}@{number}")
        return Turn.from_json(value) if value is not None else None

    def find_turn(self, sandbox_id: SandboxId, session: str, harness_turn_id: str) -> Turn | None:
        """Return the turn that a session began under this id of its own."""
        query = (
            "SELECT value FROM projection WHERE kind = 'turn' AND sandbox_id = ?"
            " AND json_extract(value, '$.session') = ? AND json_extract(value, '$.harness_turn_id') = ?"
        )
        with self._lock:
            row = self._db.execute(query, (sandbox_id, session, harness_turn_id)).fetchone()
        return Turn.from_json(json.loads(row[0])) if row else None

    def turn_counts(self, sandbox_id: SandboxId) -> dict[TurnState, int]:
        """Return how many of a sandbox's turns are in each state."""
        query = (
            "SELECT json_extract(value, '$.state'), COUNT(*) FROM projection"
            " WHERE kind = 'turn' AND sandbox_id = ? GROUP BY 1"
        )
        with self._lock:
            rows = self._db.execute(query, (sandbox_id,)).fetchall()
        return {TurnState(state): count for state, count in rows}

    def stored_bytes(self, sandbox_id: SandboxId) -> int:
        """Return what a sandbox's checkpoints added to the store."""
        query = (
            "SELECT SUM(json_extract(value, '$.stored_bytes')) FROM projection"
            " WHERE kind = 'checkpoint' AND sandbox_id = ?"
        )
        with self._lock:
            row = self._db.execute(query, (sandbox_id,)).fetchone()
        return row[0] or 0

    def ancestors(self, checkpoint_id: CheckpointId, limit: int) -> list[CheckpointId]:
        """Return a checkpoint and those that it descends from, the nearest first, as far as known."""
        query = (
            "WITH RECURSIVE line (id, parent, depth) AS ("
            " SELECT key, json_extract(value, '$.parent_id'), 1 FROM projection"
            " WHERE kind = 'checkpoint' AND key = ? UNION ALL"
            " SELECT p.key, json_extract(p.value, '$.parent_id'), depth + 1 FROM line"
            " JOIN projection AS p ON p.kind = 'checkpoint' AND p.key = line.parent WHERE depth < ?"
            ") SELECT id, parent FROM line ORDER BY depth"
        )
        with self._lock:
            rows = self._db.execute(query, (checkpoint_id, limit)).fetchall()
        found = [CheckpointId(row[0]) for row in rows]
        if rows and rows[-1][1] and len(found) < limit:
            # Its record is gone, its name is not.
            found.append(CheckpointId(rows[-1][1]))
        return found or [checkpoint_id]

    def checkpoints(self, sandbox_id: SandboxId | None = None) -> list[Checkpoint]:
        """Return checkpoints in the order of their capture."""
        return [Checkpoint.from_json(value) for _, value in self._all("checkpoint", sandbox_id)]

    def checkpoint(self, checkpoint_id: CheckpointId) -> Checkpoint | None:
        """Return one checkpoint."""
        value = self._one("checkpoint", checkpoint_id)
        return Checkpoint.from_json(value) if value is not None else None

    def checkpoint_ids(self, prefix: str) -> list[CheckpointId]:
        """Return the ids that start with `prefix`."""
        with self._lock:
            rows = self._db.execute(
                "SELECT key FROM projection WHERE kind = 'checkpoint' AND key >= ? AND key < ?",
                (prefix, prefix + "g"),
            ).fetchall()
        return [CheckpointId(row[0]) for row in rows]

    def intents(self) -> list[Intent]:
        """Return what was begun and not finished."""
        query = "SELECT key, sandbox_id, value FROM projection WHERE kind = 'intent'"
        with self._lock:
            rows = self._db.execute(query).fetchall()
        found = []
        for key, sandbox_id, value in rows:
            data = json.loads(value)
            found.append(Intent(id=key, kind=data["kind"], sandbox_id=sandbox_id, details=data["details"]))
        return found

    def answer(self, request_id: str) -> Mapping[str, Any] | None:
        """Return the answer that was recorded for a request."""
        return self._one("answer", request_id)

    def meta(self, key: str) -> str | None:
        """Return a value set with `set_meta`."""
        with self._lock:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def set_meta(self, key: str, value: str) -> None:
        """Remember a value about the state directory itself."""
        with self._lock, self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _check_version(self, path: Path) -> None:
        found = self.meta("schema")
        version = int(found) if found is not None else SCHEMA_VERSION
        if version > SCHEMA_VERSION:
            raise StoreDamaged(
                f"the journal has version {version}, this daemon knows {SCHEMA_VERSION}",
                object=str(path),
                hint="use the version of Turnkeep that wrote it, or a later one",
            )
        if version == 1:
            self._link_all()
        if found != str(SCHEMA_VERSION):
            self.set_meta("schema", str(SCHEMA_VERSION))

    def _link_all(self) -> None:
        """Give a journal of version 1 its chain."""
        with self._transaction():
            columns = {row[1] for row in self._db.execute("PRAGMA table_info(events)")}
            if "hash" not in columns:
                self._db.execute("ALTER TABLE events ADD COLUMN hash BLOB NOT NULL DEFAULT x''")
            previous = GENESIS
            for row, _ in _all_rows(self._db):
                previous = link(previous, row)
                self._db.execute("UPDATE events SET hash = ? WHERE sequence = ?", (previous, row[0]))

    @contextmanager
    def _transaction(self, *, synced: bool = True) -> Iterator[None]:
        try:
            if synced is not self._syncs:
                self._db.execute(f"PRAGMA synchronous={'FULL' if synced else 'NORMAL'}")
                self._syncs = synced
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                # On a full disk SQLite has rolled back by itself.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sql.ERRORS as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if "full" in str(error):
                raise ResourceExhausted(
                    f"the journal cannot be written: {error}",
                    object="journal",
                    hint="make room under the state directory",
                ) from error
            raise StoreDamaged(
                f"the journal cannot be written: {error}",
                object="journal",
                hint="is the disk under the state directory full or read-only?",
            ) from error

    def _apply(self, change: Change) -> None:
        match change:
            case Put(kind, key, sandbox_id, position, value):
                self._db.execute(
                    "INSERT OR REPLACE INTO projection VALUES (?, ?, ?, ?, ?)",
                    (kind, key, sandbox_id, position, json.dumps(value)),
                )
            case Delete(kind, key):
                self._db.execute("DELETE FROM projection WHERE kind = ? AND key = ?", (kind, key))

    def _all(self, kind: str, sandbox_id: str | None = None) -> list[tuple[str, dict[str, Any]]]:
        query = (
            "SELECT key, value FROM projection WHERE kind = ? AND (? IS NULL OR sandbox_id = ?)"
            " ORDER BY position, key"
        )
        with self._lock:
            rows = self._db.execute(query, (kind, sandbox_id, sandbox_id)).fetchall()
        return [(key, json.loads(value)) for key, value in rows]

    def _one(self, kind: str, key: str) -> dict[str, Any] | None:
        query = "SELECT value FROM projection WHERE kind = ? AND key = ?"
        with self._lock:
            row = self._db.execute(query, (kind, key)).fetchone()
        return json.loads(row[0]) if row else None


def _some_rows(db: sqlite3.Connection, after: int, limit: int = 1000) -> list[tuple[Row, bytes]]:
    query = f"SELECT {_ROW}, hash FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?"
    return [(row[:9], row[9]) for row in db.execute(query, (after, limit))]


def _all_rows(db: sqlite3.Connection) -> Iterator[tuple[Row, bytes]]:
    after = 0
    while rows := _some_rows(db, after):
        yield from rows
        after = rows[-1][0][0]


def _projections(db: sqlite3.Connection) -> list[tuple[str, str, str]]:
    return db.execute("SELECT kind, key, value FROM projection ORDER BY kind, key").fetchall()


def _projected(db: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """Return what `_projections` would if they were made anew."""
    values: dict[tuple[str, str], str] = {}
    for row, _ in _all_rows(db):
        for each in json.loads(row[8]):
            match from_row(each):
                case Put(kind, key, _, _, value):
                    values[kind, key] = json.dumps(value)
                case Delete(kind, key):
                    values.pop((kind, key), None)
    return sorted((kind, key, value) for (kind, key), value in values.items())


def _check_integrity(database: sqlite3.Connection) -> None:
    found = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except sql.DATABASE_ERRORS as error:
        raise StoreDamaged(
            f"the journal cannot be read: {error}",
            object=str(path),
            hint="move it away: checkpoints are found again in the store, turns without one are not",
        ) from error
