"""The journal on a real file: durable, rebuildable, and honest about damage."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turnkeep.errors import ResourceExhausted, StoreDamaged
from turnkeep.journal import (
    Change,
    Delete,
    Intent,
    Journal,
    Put,
    put_answer,
    put_checkpoint,
    put_intent,
    put_sandbox,
    put_turn,
)
from turnkeep.model import ContainerState, Event, SandboxId, SandboxRecord, Turn, TurnNumber, TurnState

from tests.unit.test_retention import made

WEB = SandboxRecord(
    id=SandboxId("0" * 16),
    name="web",
    container_id="c",
    image="debian",
    image_id="sha256:0",
    container_state=ContainerState.RUNNING,
    attached=True,
    attached_at_ns=1,
)


def a_turn(number: int, session: str = "s", harness_turn_id: str = "") -> Turn:
    """Return an open turn of the sandbox above."""
    return Turn(
        sandbox_id=WEB.id,
        number=TurnNumber(number),
        harness_turn_id=harness_turn_id or f"t{number}",
        session=session,
        state=TurnState.OPEN,
        parent=TurnNumber(number - 1),
        began_at_ns=number,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as opened:
        yield opened


def test_an_event_and_what_it_changes_come_together(journal: Journal) -> None:
    event = journal.append(
        "turn_begun", "ls", sandbox=WEB, turn=TurnNumber(1), details={"a": [1]}, changes=[put_turn(a_turn(1))]
    )
    assert journal.events() == [event]
    assert (event.sequence, event.sandbox_name, event.details) == (1, "web", {"a": [1]})
    assert journal.turns(WEB.id) == [a_turn(1)]


def test_neither_is_there_if_one_cannot_be_written(journal: Journal) -> None:
    unwritable: Change = Put("turn", "x", WEB.id, 1, {"no json": object()})
    with pytest.raises(TypeError):
        journal.append("a", "", changes=[put_turn(a_turn(1)), unwritable])
    broken: Change = Put("turn", None, WEB.id, 1, {})  # type: ignore[arg-type]
    with pytest.raises(StoreDamaged, match="NOT NULL"):
        journal.append("b", "", changes=[put_turn(a_turn(1)), broken])
    assert journal.events() == []
    assert journal.projections() == []
    journal.append("c", "", changes=[put_turn(a_turn(1))])
    assert [event.kind for event in journal.events()] == ["c"]


def test_everything_is_there_after_it_is_opened_again(path: Path) -> None:
    checkpoint = made(5, WEB.id)
    intent = Intent(id="i", kind="restore", sandbox_id=WEB.id, details={"checkpoint": "x"})
    with Journal(path) as journal:
        journal.append("a", "", sandbox=WEB, changes=[put_sandbox(WEB), put_turn(a_turn(1))])
        journal.append("b", "", changes=[put_checkpoint(checkpoint), put_intent(intent)])
        journal.append("c", "", changes=[put_answer("r1", "checkpoint", WEB.id, {"checkpoint": "x"})])
        journal.set_meta("boot_id", "1")
        events = journal.events()
    with Journal(path) as journal:
        assert journal.events() == events
        assert journal.sandboxes() == [WEB]
        assert journal.turns(WEB.id) == [a_turn(1)]
        assert journal.turn(WEB.id, 1) == a_turn(1)
        assert journal.turn(WEB.id, 2) is None
        assert journal.checkpoints() == journal.checkpoints(WEB.id) == [checkpoint]
        assert journal.checkpoint(checkpoint.id) == checkpoint
        assert journal.intents() == [intent]
        assert journal.answer("r1") == {"call": "checkpoint", "checkpoint": "x"}
        assert journal.answer("r2") is None
        assert (journal.meta("boot_id"), journal.meta("none")) == ("1", None)


def test_events_are_read_from_where_one_left_off(journal: Journal) -> None:
    other = replace(WEB, id=SandboxId("1" * 16), name="db")
    for box in (WEB, other, WEB, None):
        journal.append("e", "", sandbox=box)
    assert [event.sequence for event in journal.events(after=1)] == [2, 3, 4]
    assert [event.sequence for event in journal.events(sandbox_id=WEB.id)] == [1, 3]
    assert [event.sequence for event in journal.events(limit=2)] == [1, 2]


def test_values_come_in_the_order_of_their_positions(journal: Journal) -> None:
    for number in (10, 2, 1):
        journal.append("t", "", changes=[put_turn(a_turn(number)), put_checkpoint(made(number, WEB.id))])
    assert [turn.number for turn in journal.turns(WEB.id)] == [1, 2, 10]
    assert [each.created_at_ns for each in journal.checkpoints()] == [1, 2, 10]


def test_a_turn_is_found_by_its_sessions_id(journal: Journal) -> None:
    turns = [a_turn(1, "s", "x"), a_turn(2, "t", "x"), a_turn(3, "s", "it's")]
    journal.append("t", "", changes=[put_turn(turn) for turn in turns])
    assert journal.find_turn(WEB.id, "s", "x") == turns[0]
    assert journal.find_turn(WEB.id, "t", "x") == turns[1]
    assert journal.find_turn(WEB.id, "s", "it's") == turns[2]
    assert journal.find_turn(WEB.id, "t", "it's") is None
    assert journal.find_turn(SandboxId("1" * 16), "s", "x") is None


def test_a_checkpoint_is_found_by_its_first_digits(journal: Journal) -> None:
    ids = ["ab" + "0" * 62, "ab" + "f" * 62, "ac" + "0" * 62]
    journal.append("c", "", changes=[Put("checkpoint", each, WEB.id, 0, {}) for each in ids])
    assert journal.checkpoint_ids("ab") == ids[:2]
    assert journal.checkpoint_ids("abf") == ids[1:2]
    assert journal.checkpoint_ids("b") == []


def test_listeners_hear_what_is_durable(journal: Journal) -> None:
    heard: list[tuple[Event, list[Event]]] = []
    stop = journal.subscribe(lambda event: heard.append((event, journal.events())))
    first = journal.append("a", "")
    stop()
    journal.append("b", "")
    assert heard == [(first, [first])]


_KEYS = st.sampled_from(["1", "2", "3"])
_CHANGES = st.lists(
    st.one_of(
        st.builds(
            Put,
            st.sampled_from(["turn", "answer"]),
            _KEYS,
            st.just("s"),
            st.integers(0, 9),
            st.just({"v": "ü"}),
        ),
        st.builds(lambda key, value: Put("turn", key, "s", 0, {"v": value}), _KEYS, st.integers()),
        st.builds(Delete, st.sampled_from(["turn", "answer"]), _KEYS),
    ),
    max_size=4,
)


@given(st.lists(_CHANGES, max_size=8))
def test_the_projections_follow_from_the_events(batches: list[list[Change]]) -> None:
    with Journal(Path(":memory:")) as journal:
        for changes in batches:
            journal.append("e", "", changes=changes)
        projected = journal.projections()
        expected: dict[tuple[str, str], str] = {}
        for change in (change for changes in batches for change in changes):
            expected.pop((change.kind, change.key), None)
            if isinstance(change, Put):
                expected[change.kind, change.key] = change.key
        assert [(kind, key) for kind, key, _ in projected] == sorted(expected)
        journal.rebuild()
        assert journal.projections() == projected


def test_a_rebuild_puts_lost_projections_right(journal: Journal) -> None:
    journal.append("a", "", changes=[put_sandbox(WEB), put_turn(a_turn(1))])
    before = journal.projections()
    journal._db.execute("DELETE FROM projection")
    assert journal.sandboxes() == []
    journal._db.execute("INSERT INTO projection VALUES ('turn', 'stray', 's', 0, '{}')")
    journal.rebuild()
    assert journal.projections() == before


def _filled(path: Path) -> list[Event]:
    with Journal(path) as journal:
        for number in range(1, 200):
            journal.append("turn_begun", "x" * 50, sandbox=WEB, changes=[put_turn(a_turn(number))])
        return journal.events()


@pytest.mark.parametrize(
    "data",
    [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 4080, b"SQLite format 3\0", b"\0" * 4096],
    ids=["text", "header", "torn header", "zeros"],
)
def test_what_is_no_journal_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(StoreDamaged, match="cannot be read") as raised:
        Journal(path)
    assert raised.value.object == str(path)
    assert "move it away" in raised.value.hint


def _found(path: Path) -> list[Event] | None:
    """Read everything; None if the journal says that it is damaged."""
    try:
        with Journal(path) as journal:
            assert [turn.number for turn in journal.turns(WEB.id)] == list(range(1, 200))
            assert journal.find_turn(WEB.id, "s", "t150") == a_turn(150)
            return journal.events()
    except StoreDamaged:
        return None


@pytest.mark.parametrize("eighth", range(1, 8))
def test_a_torn_journal_is_refused(path: Path, eighth: int) -> None:
    _filled(path)
    os.truncate(path, path.stat().st_size * eighth // 8)
    assert _found(path) is None


def test_a_journal_with_a_bad_page_is_refused_or_whole(path: Path) -> None:
    """Start-up moves aside what says StoreDamaged, and dies of anything else."""
    events = _filled(path)
    whole = path.read_bytes()
    for page in range(0, len(whole), 4096):
        path.write_bytes(whole[:page] + b"\xa5" * 4096 + whole[page + 4096 :])
        assert _found(path) in (None, events)


def test_a_newer_journal_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        journal.set_meta("schema", "99")
    with pytest.raises(StoreDamaged, match="version 99"):
        Journal(path)


def _fill(journal: Journal) -> None:
    for number in range(1, 10_000):
        journal.append("t", "x" * 100, changes=[put_turn(a_turn(number))])


def test_a_full_disk_is_said_and_survived(path: Path, journal: Journal) -> None:
    journal.append("a", "", changes=[put_sandbox(WEB)])
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(ResourceExhausted, match="full") as raised:
        _fill(journal)
    assert "make room" in raised.value.hint
    written = journal.events()
    assert len(journal.turns(WEB.id)) == len(written) - 1
    journal._db.execute("PRAGMA max_page_count = 100000")
    journal.append("z", "", changes=[put_turn(a_turn(10_000))])
    assert journal.events() == [*written, journal.events()[-1]]
    projected = journal.projections()
    journal.rebuild()
    assert journal.projections() == projected
    with Journal(path) as again:
        assert again.projections() == projected


def test_a_large_event_on_a_full_disk(journal: Journal) -> None:
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(ResourceExhausted):
        journal.append("t", "x" * 10_000_000)
    journal._db.execute("PRAGMA max_page_count = 100000")
    assert journal.append("t", "").sequence == 1


def test_many_threads_at_once(journal: Journal) -> None:
    def work(thread: int) -> None:
        for number in range(30):
            turn = a_turn(thread * 100 + number, session=str(thread))
            journal.append("t", "", changes=[put_turn(turn)])
            assert journal.find_turn(WEB.id, str(thread), turn.harness_turn_id) == turn
            assert journal.turns(WEB.id)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.sequence for event in journal.events()] == list(range(1, 181))
    assert len(journal.turns(WEB.id)) == 180


_APPENDER = """
import sys
from pathlib import Path
from turnkeep.journal import Journal, Put
journal = Journal(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    journal.append("e", "x" * 300, changes=[Put("turn", str(number), "s", number, {"n": number})])
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 40, 150])
def test_what_was_acknowledged_survives_a_kill(path: Path, after: int) -> None:
    command = [sys.executable, "-c", _APPENDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        acknowledged = [int(child.stdout.readline()) for _ in range(after)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
    with Journal(path) as journal:
        found = [event.sequence for event in journal.events()]
        assert found == list(range(1, len(found) + 1))
        # One more may be there, which nobody was told of.
        assert len(found) - acknowledged[-1] in (0, 1)
        assert len(journal.projections()) == len(found)
        projected = journal.projections()
        journal.rebuild()
        assert journal.projections() == projected


def test_it_is_written_through(path: Path, journal: Journal) -> None:
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT count(*) FROM events").fetchone() == (0,)
    other.close()
