"""A disk that is full or broken, in each phase."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
from turnkeep_store.check import check
from turnkeep_store.errors import StoreError, StoreFull, StoreIOError
from turnkeep_store.keys import MasterKey
from turnkeep_store.prune import prune
from turnkeep_store.repository import Repository

from .disks import FaultyDisk
from .trees import SMALL, Files, commit, get_tree

NOISE = random.Random(5)
FIRST: Files = {b"a/1": NOISE.randbytes(900), b"a/2": NOISE.randbytes(900), b"b": NOISE.randbytes(900)}
SECOND: Files = {**FIRST, b"a/2": NOISE.randbytes(900), b"c": NOISE.randbytes(3000), b"e": b""}


def _delete_and_prune(repo: Repository) -> None:
    for snapshot in repo.snapshots()[:-1]:
        repo.delete(snapshot.id)
    prune(repo, max_unused_fraction=0.0)


@pytest.mark.parametrize("master", [None, MasterKey.new()], ids=["plain", "encrypted"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_commit_fails_at_each_call(in_memory: Path, error: int, master: MasterKey | None) -> None:
    expected = StoreIOError if error == errno.EIO else StoreFull
    disk = FaultyDisk()
    with Repository.create(in_memory / "repo", options=SMALL, disk=disk, master=master) as repo:
        first = commit(repo, FIRST)
        skip = 0
        while True:
            with disk.failing(error, skip=skip):
                try:
                    commit(repo, SECOND)
                except expected:
                    pass
                else:
                    break
            assert repo.snapshots() == [first]
            assert get_tree(repo, first.tree) == FIRST
            prune(repo, max_unused_fraction=0.0)  # so that the next attempt begins alike
            skip += 1
        assert skip > 12
        snapshot = commit(repo, SECOND)
        assert get_tree(repo, snapshot.tree) == SECOND
        assert check(repo).ok
        prune(repo, max_unused_fraction=0.0)
    if error != errno.EIO:  # a full disk can still unlink
        assert not list((in_memory / "repo").rglob("tmp-*"))
    with Repository.open(in_memory / "repo", master=master) as repo:
        assert not list((in_memory / "repo").rglob("tmp-*"))
        assert get_tree(repo, repo.snapshots()[0].tree) == FIRST
        assert check(repo).ok


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_prune_fails_at_each_call(in_memory: Path, error: int) -> None:
    disk = FaultyDisk()
    skip = 0
    while True:
        home = in_memory / str(skip)
        with Repository.create(home, options=SMALL, disk=disk) as repo:
            for files in (FIRST, {**FIRST, b"c": NOISE.randbytes(2000)}, SECOND):
                last = commit(repo, files)
            finished = _attempt(disk, error, skip, repo)
            assert get_tree(repo, last.tree) == SECOND
            assert check(repo).ok
            _delete_and_prune(repo)
            assert get_tree(repo, last.tree) == SECOND
            assert prune(repo, max_unused_fraction=0.0, dry_run=True).unused_bytes == 0
        with Repository.open(home) as repo:
            assert check(repo).ok
            assert [each.id for each in repo.snapshots()] == [last.id]
        if finished:
            break
        skip += 1
    assert skip > 8


def _attempt(disk: FaultyDisk, error: int, skip: int, repo: Repository) -> bool:
    with disk.failing(error, skip=skip):
        try:
            _delete_and_prune(repo)
        except StoreError:
            return False
    return True


def test_index_without_room(repo: Repository) -> None:
    first = commit(repo, FIRST)
    index = repo.blobs.index
    pages = index._run(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    index._run(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    with pytest.raises(StoreFull):
        _fill(repo)
    index._run(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
    assert get_tree(repo, first.tree) == FIRST
    assert get_tree(repo, commit(repo, SECOND).tree) == SECOND
    assert check(repo).ok


def _fill(repo: Repository) -> None:
    for _ in range(200):
        commit(repo, {b"%d" % number: NOISE.randbytes(20) for number in range(5)})


def test_errors_name_what_they_are_about(in_memory: Path) -> None:
    disk = FaultyDisk()
    with Repository.create(in_memory / "repo", disk=disk) as repo:
        with disk.failing(errno.ENOSPC), pytest.raises(StoreFull, match=r"repo/packs/tmp-.*free space"):
            commit(repo, FIRST)
        with disk.failing(errno.EIO), pytest.raises(StoreIOError, match=r"repo/packs/tmp-.*kernel's log"):
            commit(repo, FIRST)


def test_a_failed_writer_refuses_to_go_on(in_memory: Path) -> None:
    disk = FaultyDisk()
    with Repository.create(in_memory / "repo", options=SMALL, disk=disk) as repo, repo.lease("x") as lease:
        writer = repo.writer(lease)
        commit(repo, FIRST, writer=writer, lease=lease)
        with disk.failing(errno.ENOSPC), pytest.raises(StoreFull):
            commit(repo, SECOND, writer=writer, lease=lease)
        with pytest.raises(StoreFull, match="ended"):
            commit(repo, SECOND, writer=writer, lease=lease)
        with pytest.raises(StoreFull, match="ended"):
            writer.flush()
        snapshot = commit(repo, SECOND, lease=lease)
        assert get_tree(repo, snapshot.tree) == SECOND


def test_check_goes_on_where_reading_fails(in_memory: Path) -> None:
    disk = FaultyDisk()
    with Repository.create(in_memory / "repo", options=SMALL, disk=disk) as repo:
        first, second = commit(repo, FIRST), commit(repo, SECOND)
        with disk.failing(errno.EIO, only="read"):
            report = check(repo)
        assert report.packs == repo.size().packs > 2
        assert {each.snapshot for each in report.damage} >= {first.id, second.id}
        assert check(repo).ok


def test_reading_fails(in_memory: Path) -> None:
    disk = FaultyDisk()
    with Repository.create(in_memory / "repo", disk=disk) as repo:
        snapshot = commit(repo, FIRST)
        with disk.failing(errno.EIO, only="read"), pytest.raises(StoreIOError):
            get_tree(repo, snapshot.tree)
        assert get_tree(repo, snapshot.tree) == FIRST
