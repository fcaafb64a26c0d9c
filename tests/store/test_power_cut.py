"""Power goes at every call that changes the disk."""

from __future__ import annotations

import errno
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from turnkeep_store import rotation
from turnkeep_store.check import check, rebuild_index
from turnkeep_store.errors import RepositoryNotFound, StoreIOError
from turnkeep_store.ids import SnapshotId
from turnkeep_store.keys import MasterKey
from turnkeep_store.prune import prune
from turnkeep_store.repository import Repository

from .disks import FaultyDisk, PowerCut, PowerCutDisk
from .trees import SMALL, Files, commit, get_tree

ROOT = "/repo"
NOISE = random.Random(7)
CONTENT = [NOISE.randbytes(700) for _ in range(8)]
FIRST: Files = {b"a/1": CONTENT[0], b"a/2": CONTENT[1], b"b": CONTENT[2]}
SECOND: Files = {b"a/1": CONTENT[0], b"c/d/e": CONTENT[3], b"b": CONTENT[4]}
THIRD: Files = {b"c/d/e": CONTENT[3], b"b": CONTENT[5], b"z": CONTENT[1]}


@dataclass
class World:
    """A repository on a disk that loses power, and what was promised of it."""

    index: Path
    disk: PowerCutDisk = field(default_factory=PowerCutDisk)
    promised: dict[SnapshotId, Files] = field(default_factory=dict)
    unsure: set[SnapshotId] = field(default_factory=set)
    deleted: set[SnapshotId] = field(default_factory=set)
    repo: Repository | None = None
    master: MasterKey | None = None

    def open(self) -> Repository:
        self.repo = Repository.open_or_create(
            ROOT, options=SMALL, disk=self.disk, index_path=str(self.index), master=self.master
        )
        return self.repo

    def commit(self, files: Files) -> SnapshotId:
        assert self.repo is not None
        snapshot = commit(self.repo, files)
        self.promised[snapshot.id] = files
        return snapshot.id

    def delete(self, name: SnapshotId) -> None:
        assert self.repo is not None
        files = self.promised.pop(name)
        self.unsure.add(name)
        self.repo.delete(name)
        self.unsure.discard(name)
        self.deleted.add(name)
        assert files

    def scenario(self) -> None:
        repo = self.open()
        first = self.commit(FIRST)
        self.keep_stale_index()
        if self.master is not None:
            self.rotate(self.master)
        second = self.commit(SECOND)
        self.delete(first)
        prune(repo, max_unused_fraction=0.0)
        rebuild_index(repo)
        self.commit(THIRD)
        self.delete(second)
        prune(repo, max_unused_fraction=0.0)
        self.commit(FIRST)

    def rotate(self, master: MasterKey) -> None:
        assert self.repo is not None
        rotation.add_data_key(self.repo, master)
        assert rotation.reseal(self.repo).files > 1
        assert rotation.drop_old_keys(self.repo, master) == 1

    def keep_stale_index(self) -> None:
        assert self.repo is not None
        shutil.copy(self.index, self.index.with_suffix(".stale"))

    def lose_power(self, rng: random.Random) -> None:
        """Come back with what disk and index kept. The index may be from any time."""
        if self.repo is not None:
            self.repo.blobs.close()
        self.disk.cut(rng)
        stale = self.index.with_suffix(".stale")
        fate = rng.randrange(3)
        if fate == 0:
            self.index.unlink(missing_ok=True)
        elif fate == 1 and stale.exists():
            shutil.copy(stale, self.index)

    def verify(self) -> None:
        """All that was promised is there, and nothing is damaged."""
        with Repository.open(
            ROOT, options=SMALL, disk=self.disk, index_path=str(self.index), master=self.master
        ) as repo:
            there = {snapshot.id: snapshot for snapshot in repo.snapshots()}
            for name, files in self.promised.items():
                assert get_tree(repo, there[name].tree) == files
            assert not self.deleted & there.keys()
            report = check(repo)
            assert report.ok, report.damage


def _length(in_memory: Path, master: MasterKey | None = None) -> int:
    world = World(in_memory / "measure.sqlite", master=master)
    world.scenario()
    return world.disk.calls


@pytest.mark.parametrize("master", [None, MasterKey.new()], ids=["plain", "encrypted"])
@pytest.mark.parametrize("seed", range(4))
def test_cut_at_every_call(in_memory: Path, seed: int, master: MasterKey | None) -> None:
    length = _length(in_memory, master)
    assert length > 80
    for cut_at in range(length + 1):
        world = World(in_memory / f"{cut_at}.sqlite", master=master)
        rng = random.Random(seed * 100_000 + cut_at)
        world.disk.cut_at = cut_at
        try:
            world.scenario()
        except PowerCut:
            assert cut_at < length
        world.lose_power(rng)
        if not world.promised and not world.unsure and not world.deleted:
            _verify_beginning(world)
            continue
        world.verify()
        _continue(world)


def test_cut_again_while_recovering(in_memory: Path) -> None:
    rng = random.Random(3)
    length = _length(in_memory)
    for cut_at in range(length // 4, length, 5):
        world = World(in_memory / f"{cut_at}.sqlite")
        world.disk.cut_at = cut_at
        with pytest.raises(PowerCut):
            world.scenario()
        world.lose_power(rng)
        for again in range(1, 6):
            world.disk.cut_at = world.disk.calls + again
            try:
                repo = world.open()
                prune(repo, max_unused_fraction=0.0)
            except PowerCut:
                pass
            world.lose_power(rng)
            if world.promised:
                world.verify()


def _verify_beginning(world: World) -> None:
    """Before the first promise there may be no repository; then one can be made."""
    try:
        world.verify()
    except RepositoryNotFound:
        world.open()
        world.commit(FIRST)
        assert world.repo is not None
        world.repo.close()
        world.verify()


def _continue(world: World) -> None:
    """After the crash, work goes on and a prune leaves nothing behind."""
    repo = world.open()
    name = world.commit(THIRD)
    prune(repo, max_unused_fraction=0.0)
    assert get_tree(repo, repo.snapshot(name).tree) == THIRD
    assert prune(repo, max_unused_fraction=0.0, dry_run=True).unused_bytes == 0
    repo.close()
    world.verify()


@pytest.mark.parametrize("seed", range(8))
def test_a_deletion_that_failed_may_come_back_whole(in_memory: Path, seed: int) -> None:
    """The record went, but its going was not synced: its data must stay."""
    disk = PowerCutDisk()
    faulty = FaultyDisk(disk)
    index = str(in_memory / "index.sqlite")
    repo = Repository.create(ROOT, options=SMALL, disk=faulty, index_path=index)
    first, second = commit(repo, FIRST), commit(repo, SECOND)
    with faulty.failing(errno.EIO, only="sync_directory"), pytest.raises(StoreIOError):
        repo.delete(first.id)
    assert repo.snapshots() == [second]
    prune(repo, max_unused_fraction=0.0)
    repo.blobs.close()
    disk.cut(random.Random(seed))
    with Repository.open(ROOT, options=SMALL, disk=disk, index_path=index) as repo:
        assert check(repo).ok
        for snapshot in repo.snapshots():
            assert get_tree(repo, snapshot.tree) == (FIRST if snapshot.id == first.id else SECOND)


def test_a_commit_costs_four_syncs(in_memory: Path) -> None:
    world = World(in_memory / "index.sqlite")
    with world.open() as repo:
        before = world.disk.syncs
        commit(repo, {b"a": b"x", b"b/c": b"y"})
        assert world.disk.syncs - before == 4
