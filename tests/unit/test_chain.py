"""The journal as an audit trail: what is changed in it, taken out or cut off is found."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from turnkeep.errors import InvalidRequest, StoreDamaged
from turnkeep.journal import SCHEMA_VERSION, Happened, Head, Journal, Put, put_sandbox, put_turn
from turnkeep.journal.chain import GENESIS, exported, link

from tests.unit.test_journal import WEB, a_turn

GOLDEN = Path(__file__).parent / "golden" / "journal-1.sql"
EVENTS = 12


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of a few events."""
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        journal.append("attached", "", sandbox=WEB, changes=[put_sandbox(WEB)])
        for number in range(1, EVENTS):
            journal.append(
                "turn_begun", 'ü "x"', sandbox=WEB, details={"n": number}, changes=[put_turn(a_turn(number))]
            )
    return path


def _syncs(journal: Journal) -> bool:
    """Whether the last transaction was one that waits for the disk."""
    found: int = journal._db.execute("PRAGMA synchronous").fetchone()[0]
    return found == 2


def test_what_lasts_waits_for_the_disk(path: Path) -> None:
    on_the_way = Happened.of("turn_begun", "")
    lasting = Happened.of("durable", "")
    with Journal(path) as journal:
        assert _syncs(journal)
        journal.append_all([on_the_way])
        assert not _syncs(journal)
        journal.append_all([on_the_way, lasting, on_the_way])
        assert _syncs(journal)
        journal.append("captured", "")
        assert not _syncs(journal)
        # Whoever keeps a head elsewhere must find all up to it, whatever happens.
        head = journal.told_head()
        assert _syncs(journal)
        assert head == journal.head()
        journal.append("unheard of", "")
        assert _syncs(journal)


def _verified(path: Path, kept: Head | None = None) -> list[str]:
    with Journal(path) as journal:
        return journal.verify(kept)


def _change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement, values)


def test_what_was_recorded_is_found_whole(path: Path) -> None:
    with Journal(path) as journal:
        head = journal.head()
        assert head.sequence == EVENTS
        assert journal.verify() == journal.verify(head) == []
        journal.append("more", "")
        assert journal.head() != head
        assert journal.verify(head) == []
    assert _verified(path, head) == []


COLUMNS = {
    "time_ns": 5,
    "kind": "skipped",
    "sandbox_id": None,
    "sandbox_name": "db",
    "turn": 9,
    "message": "another",
    "details": "[]",
    "changes": "[]",
    "hash": bytes(32),
}


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("sequence", [1, 6, EVENTS])
def test_any_change_is_found(path: Path, column: str, sequence: int) -> None:
    _change(path, f"UPDATE events SET {column} = ? WHERE sequence = ?", COLUMNS[column], sequence)
    assert f"event {sequence} " in _verified(path)[0]


@pytest.mark.parametrize("sequence", [1, 6, EVENTS - 1])
def test_what_was_taken_out_is_found(path: Path, sequence: int) -> None:
    _change(path, "DELETE FROM events WHERE sequence = ?", sequence)
    assert _verified(path) == [f"event {sequence} is missing"]


def test_a_cut_tail_is_found_by_a_head_that_was_kept(path: Path) -> None:
    with Journal(path) as journal:
        head = journal.head()
    _change(path, "DELETE FROM events WHERE sequence > ?", EVENTS - 3)
    _change(path, "DELETE FROM projection WHERE kind = 'turn' AND position >= ?", EVENTS - 3)
    assert _verified(path) == [], "without a head nothing shows it"
    (problem,) = _verified(path, head)
    assert problem == f"events {EVENTS - 2} to {EVENTS} are missing: the journal was cut, or is another one"


def test_a_journal_that_was_written_anew_is_found_by_a_head_that_was_kept(path: Path) -> None:
    with Journal(path) as journal:
        head = journal.head()
        rows = journal.rows()
    previous = GENESIS
    for row, _ in rows:
        forged = (*row[:6], "forged", *row[7:])
        previous = link(previous, forged)
        _change(path, "UPDATE events SET message = 'forged', hash = ? WHERE sequence = ?", previous, row[0])
    assert _verified(path) == []
    assert "not the one whose hash was kept" in _verified(path, head)[0]


def test_a_cut_while_the_daemon_runs_is_found_without_a_head(path: Path) -> None:
    with Journal(path) as journal:
        _change(path, "DELETE FROM events WHERE sequence = ?", EVENTS)
        assert f"event {EVENTS} is missing" in journal.verify()[0]


def test_tables_that_say_other_than_the_events_are_found(path: Path) -> None:
    _change(path, "UPDATE projection SET value = '{}' WHERE key = ?", f"{WEB.id}@3")
    assert _verified(path) == ["the tables are not what the events make of them"]
    with Journal(path) as journal:
        journal.rebuild()
        assert journal.verify() == []


def test_what_was_not_written_is_not_in_the_chain(path: Path) -> None:
    with Journal(path) as journal:
        head = journal.head()
        unwritable = Put("turn", None, WEB.id, 1, {})  # type: ignore[arg-type]
        with pytest.raises(StoreDamaged):
            journal.append("bad", "", changes=[put_turn(a_turn(1)), unwritable])
        assert journal.head() == head
        journal.append("good", "")
        assert journal.verify(head) == []


def test_anybody_can_follow_what_was_exported(path: Path) -> None:
    """As docs/safety.md says how."""
    with Journal(path) as journal:
        lines = [exported(row, stored) for row, stored in journal.rows()]
        head = journal.head()
    previous = bytes(32)
    for line in map(json.loads, lines):
        digest = line.pop("hash")
        text = json.dumps(list(line.values()), separators=(",", ":"))
        previous = blake3(previous + text.encode()).digest()
        assert previous.hex() == digest
    assert str(head) == f"{EVENTS}:{previous.hex()}"


@given(st.integers(0, 10**18 - 1), st.binary(min_size=32, max_size=32))
def test_a_head_is_read_as_it_was_printed(sequence: int, digest: bytes) -> None:
    head = Head(sequence, digest)
    assert Head.parse(f" {head}\n") == head


@pytest.mark.parametrize("text", ["", "5", "5:", f"5:{'g' * 64}", f"-1:{'0' * 64}", "x" * 1000])
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is no head"):
        Head.parse(text)


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A journal as version 1 wrote it."""
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(GOLDEN.read_text())
    return path


def test_a_journal_of_version_1_gets_a_chain(version_1: Path) -> None:
    with Journal(version_1) as journal:
        assert journal.meta("schema") == str(SCHEMA_VERSION)
        assert journal.verify() == []
        assert [event.kind for event in journal.events()] == [
            "attached", "turn_begun", "turn_begun", "turn_begun", "restoring", "restored",
        ]  # fmt: skip
        assert [turn.number for turn in journal.turns(WEB.id)] == [1, 2, 3]
        assert journal.answer("r1") == {"call": "RestoreSandbox", "a": 1}
        assert journal.meta("host") == "x"
        head = journal.head()
        journal.append("more", "")
    assert _verified(version_1, head) == []


def test_bytes_all_over_the_file(path: Path, tmp_path: Path) -> None:
    """Whatever byte is changed or however much is cut: what was recorded, or an error, or a problem found."""
    with Journal(path) as journal:
        recorded, tables, head = journal.rows(), journal.projections(), journal.head()
    original = path.read_bytes()
    other = tmp_path / "changed.sqlite"
    refused = found = 0
    for position in range(0, len(original), 31):
        flipped = bytearray(original)
        flipped[position] ^= 1 << position % 8
        for data in (
            (bytes(flipped), original[:position]) if position % 8 == 0 and position else (bytes(flipped),)
        ):
            for suffix in ("", "-wal", "-shm"):
                other.with_name(other.name + suffix).unlink(missing_ok=True)
            other.write_bytes(data)
            try:
                with Journal(other) as journal:
                    problems = journal.verify(head)
                    same = (journal.rows(), journal.projections()) == (recorded, tables)
            except StoreDamaged:
                refused += 1
                continue
            found += bool(problems)
            assert same or problems, position
    assert refused > 10
    assert found > 10
