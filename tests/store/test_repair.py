"""Repairing: what is sound stays, what is lost is known, and doing it twice changes nothing."""

from __future__ import annotations

import random
from pathlib import Path

from turnkeep_store.check import check
from turnkeep_store.diff import walk
from turnkeep_store.errors import StoreError
from turnkeep_store.keys import MasterKey
from turnkeep_store.prune import prune
from turnkeep_store.repair import repair
from turnkeep_store.repository import INDEX_NAME, Repository
from turnkeep_store.snapshot import Snapshot

from .disks import PowerCut, PowerCutDisk
from .trees import FEW as FILES
from .trees import SMALL, Files, commit, get_tree

NOISE = random.Random(13)
OTHER: Files = {b"a": FILES[b"a"], b"e": NOISE.randbytes(40)}


def _readable(repo: Repository, snapshot: Snapshot) -> Files | None:
    try:
        return get_tree(repo, snapshot.tree)
    except StoreError:
        return None


def test_nothing_to_repair(home: Path, snapshot: Snapshot) -> None:
    before = {path.name: path.read_bytes() for path in (home / "packs").iterdir()}
    with Repository.open(home) as repo:
        report = repair(repo)
        assert (report.packs, report.saved_blobs, report.records) == ([], 0, [])
        assert check(repo).ok
    assert {path.name: path.read_bytes() for path in (home / "packs").iterdir()} == before


def test_every_byte_of_a_pack(home: Path, snapshot: Snapshot) -> None:
    (path,) = (home / "packs").iterdir()
    original = path.read_bytes()
    whole = 0
    for position in range(8, len(original), 3):
        for each in (home / "packs").iterdir():
            each.unlink()
        (home / INDEX_NAME).unlink(missing_ok=True)
        data = bytearray(original)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        with Repository.open(home) as repo:
            before = _readable(repo, snapshot)
            assert repair(repo).packs == [path.name]
            after = _readable(repo, snapshot)
            assert after == before, "repairing loses nothing"
            whole += after is not None
            report = check(repo)
            assert {each.object for each in report.damage} <= {"tree"}, "what is left is what is lost"
            assert report.ok is (after is not None)
            again = repair(repo)
            assert (again.packs, again.saved_blobs) == ([], 0)
        assert path.with_name(f"{path.name}.damaged").read_bytes() == data
    assert whole > 70, "header and table can be lost"


def test_a_damaged_record_is_named(home: Path, snapshot: Snapshot) -> None:
    with Repository.open(home) as repo:
        other = commit(repo, OTHER)
        (home / "snapshots" / snapshot.id).write_bytes(b"TURNSNAP")
        assert repair(repo).records == [snapshot.id]
        repo.delete(snapshot.id)
        prune(repo, max_unused_fraction=0.0)
        assert check(repo).ok
        assert get_tree(repo, other.tree) == OTHER


def test_what_is_repaired_can_be_pruned(home: Path, snapshot: Snapshot) -> None:
    (path,) = (home / "packs").iterdir()
    data = bytearray(path.read_bytes())
    data[data.index(FILES[b"d/c"])] ^= 1
    path.write_bytes(data)
    with Repository.open(home) as repo:
        repair(repo)
        assert [(each.snapshot, each.path) for each in check(repo).damage] == [(snapshot.id, b"d/c")]
        repo.delete(snapshot.id)
        other = commit(repo, OTHER)
        assert not prune(repo, max_unused_fraction=0.0).damaged_packs
        assert check(repo).ok
        assert get_tree(repo, other.tree) == OTHER


def test_an_encrypted_pack(in_memory: Path) -> None:
    master = MasterKey.new()
    large: Files = {b"%d" % number: NOISE.randbytes(3000) for number in range(20)}
    with Repository.create(in_memory / "repo", master=master) as repo:
        snapshot = commit(repo, large)
    (path,) = (in_memory / "repo" / "packs").iterdir()
    data = bytearray(path.read_bytes())
    data[60 + 16400 + 100] ^= 1  # in the second segment
    path.write_bytes(data)
    with Repository.open(in_memory / "repo", master=master) as repo:
        assert repair(repo).packs == [path.name]
        lost = {each.path for each in check(repo).of_snapshot(snapshot.id)}
        assert 4 <= len(lost) <= 7
        for name, entry in walk(repo, snapshot.tree):
            if name not in lost:
                assert repo.get(entry.content[0].blob) == large[name]


def test_power_goes_at_every_call(in_memory: Path) -> None:
    cut_at = 0
    while True:
        disk, index = PowerCutDisk(), in_memory / f"{cut_at}.sqlite"
        with Repository.create("/repo", options=SMALL, disk=disk, index_path=str(index)) as repo:
            snapshots = [commit(repo, FILES), commit(repo, OTHER)]
            packs = disk.folders["/repo/packs"]
            for inode in packs.names.values():
                inode.data[-50] ^= 1  # in the table of contents
                inode.synced = bytes(inode.data)
            disk.cut_at = disk.calls + cut_at
            try:
                repair(repo)
                finished = True
            except PowerCut:
                finished = False
        disk.cut(random.Random(cut_at))
        with Repository.open("/repo", options=SMALL, disk=disk, index_path=str(index)) as repo:
            repair(repo)
            assert check(repo).ok
            for snapshot, files in zip(snapshots, (FILES, OTHER), strict=True):
                assert get_tree(repo, snapshot.tree) == files
        if finished:
            break
        cut_at += 1
    assert cut_at > 5
