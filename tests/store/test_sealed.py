"""Encrypted repositories: nothing is readable, nothing can be changed, keys can be exchanged."""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turnkeep_store import rotation, sql
from turnkeep_store.backend import Area, save
from turnkeep_store.backend_memory import MemoryBackend
from turnkeep_store.backend_sealed import SealedBackend
from turnkeep_store.check import check
from turnkeep_store.diff import walk
from turnkeep_store.errors import Damaged, StoreError, StoreIOError, UnsupportedFormat, WrongKey
from turnkeep_store.ids import blob_id
from turnkeep_store.keys import Keyring, MasterKey
from turnkeep_store.prune import prune
from turnkeep_store.repository import INDEX_NAME, Repository
from turnkeep_store.sealing import HEADER_BYTES, LENGTH, SEALED_BYTES, SEGMENT_BYTES, padding
from turnkeep_store.snapshot import Snapshot

from .trees import Files, commit, get_tree

NOISE = random.Random(11)
FILES: Files = {
    b"secret-name": b"the secret content " * 9,
    b"secret-folder/secret-file": NOISE.randbytes(3210),
    b"secret-folder/large": NOISE.randbytes(100_000),
}
MASTER = MasterKey.new()
REPOSITORY = bytes(16)
EDGES = [
    n + d for n in (0, SEGMENT_BYTES, 2 * SEGMENT_BYTES) for d in (-9, -8, -7, -1, 0, 1, 8, 9) if n + d >= 0
]


@pytest.fixture
def snapshot(home: Path) -> Snapshot:
    with Repository.create(home, master=MASTER) as repo:
        return commit(repo, FILES)


def sealed() -> SealedBackend:
    return SealedBackend(MemoryBackend(), Keyring.new(REPOSITORY))


def stored(backend: SealedBackend) -> dict[tuple[Area, str], bytes]:
    assert isinstance(backend.inner, MemoryBackend)
    return backend.inner.files


@given(
    sizes=st.lists(st.integers(0, 20_000) | st.sampled_from(EDGES), max_size=6),
    reads=st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 40_000)), max_size=8),
    seed=st.integers(0, 2**32),
)
def test_what_is_written_is_read(sizes: list[int], reads: list[tuple[int, int]], seed: int) -> None:
    rng = random.Random(seed)
    backend = sealed()
    whole = bytearray()
    file = backend.create(Area.PACKS)
    for size in sizes:
        part = rng.randbytes(size)
        file.write(part)
        whole += part
        for offset, length in reads:
            assert file.read(offset, length) == whole[offset : offset + length]
    assert file.size == len(whole)
    file.publish("name")
    assert backend.list(Area.PACKS) == [("name", len(whole))]
    assert backend.size(Area.PACKS, "name") == len(whole)
    for offset, length in [*reads, (0, len(whole) + 1), (len(whole), 1)]:
        assert backend.read(Area.PACKS, "name", offset, length) == whole[offset : offset + length]


@pytest.mark.parametrize("size", [1, 100, SEGMENT_BYTES - 8, SEGMENT_BYTES + 1])
def test_no_byte_can_be_changed(size: int) -> None:
    backend = sealed()
    content = NOISE.randbytes(size)
    save(backend, Area.SNAPSHOTS, "name", content)
    original = stored(backend)[Area.SNAPSHOTS, "name"]
    step = max(1, len(original) // 1500)
    for position in range(0, len(original), step):
        changed = bytearray(original)
        changed[position] ^= 1 << position % 8
        stored(backend)[Area.SNAPSHOTS, "name"] = bytes(changed)
        fresh = SealedBackend(backend.inner, backend.keyring)
        try:
            found = fresh.read(Area.SNAPSHOTS, "name", 0, len(original))
        except Damaged:
            continue
        # Then the change lies in segments of zeros, behind the content.
        assert found == content
        assert position >= HEADER_BYTES + -(-size // SEGMENT_BYTES) * SEALED_BYTES


@pytest.mark.parametrize("size", [0, 100, SEGMENT_BYTES - 8, 3 * SEGMENT_BYTES])
def test_no_end_can_be_cut_off(size: int) -> None:
    backend = sealed()
    content = NOISE.randbytes(size)
    save(backend, Area.SNAPSHOTS, "name", content)
    original = stored(backend)[Area.SNAPSHOTS, "name"]
    cuts = {
        *range(0, len(original), 997),
        *range(HEADER_BYTES, len(original), SEALED_BYTES),
        len(original) - 1,
    }
    for length in cuts:
        stored(backend)[Area.SNAPSHOTS, "name"] = original[:length]
        with pytest.raises(Damaged):
            SealedBackend(backend.inner, backend.keyring).read(Area.SNAPSHOTS, "name", 0, len(original))


def test_segments_and_files_cannot_be_exchanged() -> None:
    backend = sealed()
    save(backend, Area.PACKS, "a", bytes(3 * SEGMENT_BYTES))
    save(backend, Area.PACKS, "b", bytes(3 * SEGMENT_BYTES))
    a, b = (stored(backend)[Area.PACKS, name] for name in "ab")
    assert a[HEADER_BYTES:] != b[HEADER_BYTES:]
    first, second = (
        slice(HEADER_BYTES + n * SEALED_BYTES, HEADER_BYTES + (n + 1) * SEALED_BYTES) for n in (0, 1)
    )
    swapped = a[:HEADER_BYTES] + a[second] + a[first] + a[second.stop :]
    grafted = a[:HEADER_BYTES] + b[first] + a[first.stop :]
    for data in (swapped, grafted, b[:HEADER_BYTES] + a[HEADER_BYTES:]):
        stored(backend)[Area.PACKS, "a"] = data
        with pytest.raises(Damaged):
            SealedBackend(backend.inner, backend.keyring).read(Area.PACKS, "a", 0, 10)


def test_lengths_are_hidden() -> None:
    """Of all lengths up to a million few are left, and none costs more than 12 %."""
    seen = set()
    for length in range(0, 1_000_000, 37):
        whole = length + LENGTH.size + padding(length)
        assert padding(length) >= 0
        assert whole <= max(9, (length + LENGTH.size) * 1.12)
        seen.add(whole)
    assert len(seen) < 350
    assert {n + LENGTH.size + padding(n) for n in range(100_000, 102_000)} <= {100352, 102400}


def test_nothing_is_readable_on_the_disk(home: Path, snapshot: Snapshot) -> None:
    with Repository.open(home, master=MASTER) as repo:
        ids: list[bytes] = [blob_id(content) for content in FILES.values()]
        ids += [snapshot.tree, *(entry.subtree for _, entry in walk(repo, snapshot.tree) if entry.subtree)]
        names = [
            b"secret",
            b"compress",
            b"TURNPACK",
            b"TURNSNAP",
            b"kind",
            b"packs",
            FILES[b"secret-folder/secret-file"][:32],
        ]
        sizes = [len(content).to_bytes(4, "little") for content in FILES.values() if len(content) > 255]
        on_disk = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert len(on_disk) > 5  # with the index's log
    for path, data in on_disk.items():
        for what in (*names, *ids):
            assert what not in data, path
            assert what.hex().encode() not in data, path
        # So short a number turns up anywhere, but not several of them.
        assert sum(size in data for size in sizes) <= 1, path


def test_the_index_is_used_again(home: Path, snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    with Repository.open(home, master=MASTER) as repo:
        assert get_tree(repo, snapshot.tree) == FILES
        assert check(repo).ok
    assert not caplog.records
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(home / INDEX_NAME).execute("SELECT * FROM packs")


def test_only_its_key_opens_it(home: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    for master in (None, MasterKey.new()):
        with pytest.raises(WrongKey):
            Repository.open(home, master=master)
    Repository.create(tmp_path / "plain").close()
    with pytest.raises(WrongKey, match="not encrypted"):
        Repository.open(tmp_path / "plain", master=MASTER)
    with Repository.open(home, master=MASTER) as repo:
        assert get_tree(repo, snapshot.tree) == FILES


def test_what_is_not_encrypted_is_not_believed(home: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    """Whoever can write to the folder cannot put in a snapshot of his own."""
    with Repository.create(tmp_path / "plain") as repo:
        foreign = commit(repo, {b"etc/passwd": b"root::0:0"})
    for area in ("packs", "snapshots"):
        for path in (tmp_path / "plain" / area).iterdir():
            shutil.copy(path, home / area)
    with Repository.open(home, master=MASTER) as repo:
        assert [each.id for each in repo.snapshots()] == [snapshot.id]
        with pytest.raises(Damaged):
            repo.snapshot(foreign.id)
        assert not check(repo).ok


def test_without_sqlcipher(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "sqlcipher", None)
    with pytest.raises(WrongKey, match="pip install"):
        Repository.create(home, master=MASTER)
    with Repository.create(home) as repo:
        commit(repo, FILES)


def test_every_byte_of_the_keys(home: Path, snapshot: Snapshot) -> None:
    path = home / "config" / "keys"
    original = path.read_bytes()
    for position in range(len(original)):
        data = bytearray(original)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        with pytest.raises((Damaged, WrongKey, UnsupportedFormat)):
            Repository.open(home, master=MASTER)
    for length in range(len(original)):
        path.write_bytes(original[:length])
        with pytest.raises(Damaged):
            Repository.open(home, master=MASTER)
    path.unlink()
    with pytest.raises(Damaged, match="keys is gone"):
        Repository.open(home, master=MASTER)
    path.write_bytes(original)
    with Repository.open(home, master=MASTER) as repo:
        assert check(repo).ok


def _places(data: bytes) -> Iterator[int]:
    """Bytes all over a file, and all of its header."""
    yield from range(HEADER_BYTES)
    yield from range(HEADER_BYTES, len(data), 1009)


@pytest.mark.parametrize("area", ["packs", "snapshots"])
def test_damage_is_found(home: Path, snapshot: Snapshot, area: str) -> None:
    (path,) = (home / area).iterdir()
    original = path.read_bytes()
    for position in _places(original):
        data = bytearray(original)
        data[position] ^= 0x40
        path.write_bytes(data)
        if position % 2:
            (home / INDEX_NAME).unlink(missing_ok=True)
        with Repository.open(home, master=MASTER) as repo:
            assert not check(repo).ok
            with contextlib.suppress(StoreError):
                assert get_tree(repo, repo.snapshot(snapshot.id).tree) == FILES
        if position >= HEADER_BYTES or area == "snapshots":
            assert path.exists()
        path.write_bytes(original)
    with Repository.open(home, master=MASTER) as repo:
        assert check(repo).ok


def test_the_master_key_is_exchanged(home: Path, snapshot: Snapshot) -> None:
    before = {path: path.read_bytes() for path in (home / "packs").iterdir()}
    other = MasterKey.new()
    with Repository.open(home, master=MASTER) as repo:
        rotation.change_master(repo, other)
    assert {path: path.read_bytes() for path in (home / "packs").iterdir()} == before
    with pytest.raises(WrongKey):
        Repository.open(home, master=MASTER)
    with Repository.open(home, master=other) as repo:
        assert get_tree(repo, snapshot.tree) == FILES


def _rotate(repo: Repository) -> int:
    rotation.add_data_key(repo, MASTER)
    done = rotation.reseal(repo)
    assert not done.damaged
    rotation.drop_old_keys(repo, MASTER)
    return done.files


def test_data_keys_are_exchanged(home: Path, snapshot: Snapshot) -> None:
    before = {path.name: path.read_bytes() for path in home.glob("*/*")}
    with Repository.open(home, master=MASTER) as repo:
        (old,) = repo.keyring.keys if repo.keyring else ()
        assert get_tree(repo, snapshot.tree) == FILES
        assert _rotate(repo) == 2
        # What was read before is read again, from the new files.
        assert get_tree(repo, snapshot.tree) == FILES
        blobs = repo.size().blobs
        other = commit(repo, FILES)
        assert repo.size().blobs == blobs, "the same content is stored once"
    after = {path.name: path.read_bytes() for path in home.glob("*/*")}
    assert before.keys() < after.keys()
    for name in before.keys() - {"repository"}:
        assert after[name] != before[name]
        assert old.id not in after[name]
    with Repository.open(home, master=MASTER) as repo:
        assert {each.id for each in repo.snapshots()} == {snapshot.id, other.id}
        assert check(repo).ok


def test_without_rewriting_both_keys_are_used(home: Path, snapshot: Snapshot) -> None:
    with Repository.open(home, master=MASTER) as repo:
        rotation.add_data_key(repo, MASTER)
        new = commit(repo, {b"new": NOISE.randbytes(50)})
    with Repository.open(home, master=MASTER) as repo:
        assert repo.keyring is not None
        assert len(repo.keyring.keys) == 2
        headers = {path.read_bytes()[12:28] for path in (home / "packs").iterdir()}
        assert headers == {key.id for key in repo.keyring.keys}
        assert get_tree(repo, new.tree)
        repo.delete(snapshot.id)
        prune(repo, max_unused_fraction=0.0)
        assert check(repo).ok


def test_a_damaged_file_keeps_the_old_key(home: Path, snapshot: Snapshot) -> None:
    (path,) = (home / "packs").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with Repository.open(home, master=MASTER) as repo:
        rotation.add_data_key(repo, MASTER)
        done = rotation.reseal(repo)
        assert done.files == 1
        assert [path.name in each for each in done.damaged] == [True]
    assert path.read_bytes() == data


def test_a_key_as_text() -> None:
    key = MasterKey.new()
    for text in (str(key), f" {key}\n".encode(), key.secret.hex()):
        assert MasterKey.parse(text) == key
    for text in ("", "x", "00" * 31, "AAAA", "é" * 44, b"\xff" * 44):
        with pytest.raises(WrongKey):
            MasterKey.parse(text)
    assert str(key) not in repr(key)
    assert repr(key.secret) not in repr(key)


def test_a_database_gets_the_first_key(tmp_path: Path) -> None:
    path = str(tmp_path / "db")
    old, new = b"o" * 32, b"n" * 32
    with sql.connect(path, [old]) as db:
        db.execute("CREATE TABLE secret (a)")
    db.close()
    with pytest.raises(StoreIOError, match="newest key"):
        sql.connect(f"file:{path}?mode=ro", [new, old], uri=True)
    sql.connect(path, [old]).close()
    sql.connect(path, [new, old]).close()
    for keys in ([old], [bytes(32), old]):
        with pytest.raises(sql.DATABASE_ERRORS):
            sql.connect(path, keys)
    with sql.connect(path, [new]) as db:
        assert db.execute("SELECT COUNT(*) FROM secret").fetchone() == (0,)
    db.close()
