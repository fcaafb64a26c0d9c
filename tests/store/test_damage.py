"""Every byte flipped, every length cut: a typed error or the right data."""

from __future__ import annotations

import logging
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from turnkeep_store.check import check
from turnkeep_store.errors import BlobNotFound, Damaged, RepositoryNotFound, StoreError, UnsupportedFormat
from turnkeep_store.prune import prune
from turnkeep_store.repository import INDEX_NAME, Repository
from turnkeep_store.snapshot import Snapshot

from .trees import FEW as FILES
from .trees import commit, get_tree

NOISE = random.Random(1)
TYPED = (Damaged, BlobNotFound, UnsupportedFormat)


def _only_file(home: Path, area: str) -> Path:
    (path,) = (home / area).iterdir()
    return path


def _variants(data: bytes) -> Iterator[bytes]:
    for position in range(len(data)):
        yield data[:position] + bytes([data[position] ^ (1 << position % 8)]) + data[position + 1 :]
    for length in range(len(data)):
        yield data[:length]
    yield data + b"\0"


def _read_or_typed_error(home: Path, snapshot: Snapshot) -> bool:
    """Read everything; return whether it was there. Anything but truth or a typed error fails."""
    try:
        with Repository.open(home) as repo:
            assert check(repo).ok is False, "damage that check does not see"
            found = repo.snapshot(snapshot.id)
            assert found == snapshot
            assert get_tree(repo, found.tree) == FILES
    except TYPED:
        return False
    return True


@pytest.mark.parametrize("keep_index", [True, False])
def test_every_byte_of_a_pack(home: Path, snapshot: Snapshot, keep_index: bool) -> None:
    path = _only_file(home, "packs")
    index = (home / INDEX_NAME).read_bytes()
    original = path.read_bytes()
    intact = 0
    for data in _variants(original):
        path.write_bytes(data)
        if keep_index:
            (home / INDEX_NAME).write_bytes(index)
        else:
            (home / INDEX_NAME).unlink()
        intact += _read_or_typed_error(home, snapshot)
        assert path.exists() or len(data) < 92 or not data.startswith(b"TURNPACK")
    # Header and table can be lost: the blobs say themselves what they are.
    assert intact > 200


def test_every_byte_of_a_record(home: Path, snapshot: Snapshot) -> None:
    path = _only_file(home, "snapshots")
    for data in _variants(path.read_bytes()):
        path.write_bytes(data)
        assert not _read_or_typed_error(home, snapshot)
        assert path.exists()


def test_every_byte_of_the_config(home: Path, snapshot: Snapshot) -> None:
    path = _only_file(home, "config")
    for data in _variants(path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(Damaged):
            Repository.open(home)


def test_damaged_record_does_not_hide_the_others(home: Path, snapshot: Snapshot) -> None:
    path = _only_file(home, "snapshots")
    with Repository.open(home) as repo:
        other = commit(repo, {b"x": b"y"})
    path.write_bytes(b"TURNSNAP")
    with Repository.open(home) as repo:
        assert repo.snapshots() == [other]
        with pytest.raises(Damaged):
            prune(repo)
        assert [each.snapshot for each in check(repo).damage] == [snapshot.id]
        repo.delete(snapshot.id)
        prune(repo)
        assert check(repo).ok


def test_exchanged_packs_are_seen(home: Path, snapshot: Snapshot) -> None:
    first = _only_file(home, "packs")
    with Repository.open(home) as repo:
        commit(repo, {b"x": NOISE.randbytes(100)})
    (second,) = set((home / "packs").iterdir()) - {first}
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    with Repository.open(home) as repo:
        assert not check(repo).ok
        assert get_tree(repo, snapshot.tree) == FILES


def test_what_is_written_again_heals(home: Path, snapshot: Snapshot) -> None:
    path = _only_file(home, "packs")
    data = bytearray(path.read_bytes())
    data[data.index(FILES[b"a"])] ^= 1
    path.write_bytes(data)
    with Repository.open(home) as repo:
        report = check(repo)
        assert [each.path for each in report.of_snapshot(snapshot.id)] == [b"a"]
        commit(repo, {b"elsewhere": FILES[b"a"]})
        assert get_tree(repo, snapshot.tree) == FILES
        assert not check(repo).of_snapshot(snapshot.id)


@pytest.mark.parametrize("damage", ["zeros", "noise", "cut", "empty", "gone", "not a table"])
def test_index_heals(home: Path, snapshot: Snapshot, damage: str) -> None:
    index = home / INDEX_NAME
    data = index.read_bytes()
    if damage == "zeros":
        index.write_bytes(data[:4096] + bytes(len(data) - 4096))
    elif damage == "noise":
        index.write_bytes(NOISE.randbytes(len(data)))
    elif damage == "cut":
        index.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        index.write_bytes(b"")
    elif damage == "gone":
        index.unlink()
    else:
        shutil.rmtree(index, ignore_errors=True)
        with sqlite3.connect(index) as db:
            db.execute("DROP TABLE blobs")
    with Repository.open(home) as repo:
        assert get_tree(repo, snapshot.tree) == FILES
        assert check(repo).ok


@pytest.mark.parametrize(
    "statement",
    ["UPDATE blobs SET start = start + 1", "UPDATE blobs SET stored = stored + 7", "DELETE FROM blobs"],
)
def test_index_that_lies_heals_and_says_so(
    home: Path, snapshot: Snapshot, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    with sqlite3.connect(home / INDEX_NAME) as db:
        db.execute(statement)
    with caplog.at_level(logging.WARNING), Repository.open(home) as repo:
        assert not check(repo, read_data=False).ok or "DELETE" not in statement
        assert get_tree(repo, snapshot.tree) == FILES
        assert check(repo).ok
    assert any("index" in record.message for record in caplog.records)


def test_every_page_of_the_index(home: Path, snapshot: Snapshot) -> None:
    index = home / INDEX_NAME
    data = index.read_bytes()
    for position in range(0, len(data), 97):
        index.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        with Repository.open(home) as repo:
            assert get_tree(repo, snapshot.tree) == FILES


def test_missing_config_is_no_repository(home: Path, snapshot: Snapshot) -> None:
    _only_file(home, "config").unlink()
    with pytest.raises(RepositoryNotFound):
        Repository.open(home)


def test_lost_pack_is_reported_by_path(home: Path, snapshot: Snapshot) -> None:
    with Repository.open(home) as repo:
        other = commit(repo, {**FILES, b"d/new": NOISE.randbytes(50)})
    _, new = sorted((home / "packs").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    with Repository.open(home) as repo:
        new.unlink()
        report = check(repo)
        assert not report.of_snapshot(snapshot.id)
        assert report.of_snapshot(other.id)
        with pytest.raises(StoreError):
            get_tree(repo, other.tree)
        assert get_tree(repo, snapshot.tree) == FILES
