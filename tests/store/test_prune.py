"""Pruning: what goes, and what must not."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from turnkeep_store.backend import Area
from turnkeep_store.check import check, rebuild_index
from turnkeep_store.chunks import read_extents, write_file
from turnkeep_store.errors import BlobNotFound, SnapshotNotFound, StoreError
from turnkeep_store.ids import BlobId, TreeId
from turnkeep_store.kinds import BlobKind
from turnkeep_store.prune import prune
from turnkeep_store.repository import Options, Repository
from turnkeep_store.snapshot import Snapshot
from turnkeep_store.tree import Directory, Entry, NodeType

from .trees import Files, commit, get_tree, put_tree

NOISE = random.Random(2)
SHARED = NOISE.randbytes(1500)
FIRST: Files = {b"s": SHARED, b"a/1": NOISE.randbytes(1500), b"a/2": NOISE.randbytes(100)}
SECOND: Files = {b"s": SHARED, b"b/1": NOISE.randbytes(1500), b"b/2": NOISE.randbytes(100)}


def test_nothing_to_do(repo: Repository) -> None:
    assert prune(repo).removed_packs == 0
    commit(repo, FIRST)
    assert prune(repo).removed_packs == 0


def test_deleted_data_goes_and_shared_data_stays(repo: Repository) -> None:
    first, second = commit(repo, FIRST), commit(repo, SECOND)
    before = repo.size().stored_bytes
    repo.delete(first.id)
    report = prune(repo, max_unused_fraction=0.0)
    assert report.freed_bytes - report.written_bytes == before - repo.size().stored_bytes > 1500
    assert get_tree(repo, second.tree) == SECOND
    with pytest.raises(BlobNotFound):
        get_tree(repo, first.tree)
    assert check(repo).ok


def test_all_deleted_leaves_nothing(repo: Repository) -> None:
    for files in (FIRST, SECOND):
        repo.delete(commit(repo, files).id)
    prune(repo)
    assert (repo.size().packs, repo.size().blobs) == (0, 0)


def test_dry_run_changes_nothing(repo: Repository) -> None:
    repo.delete(commit(repo, FIRST).id)
    before = repo.size()
    report = prune(repo, dry_run=True)
    assert report.planned_packs > 0
    assert report.unused_bytes > 0
    assert report.removed_packs == report.freed_bytes == 0
    assert repo.size() == before


def test_mostly_live_packs_are_left_alone(repo: Repository) -> None:
    first = commit(repo, FIRST)
    commit(repo, SECOND)
    repo.delete(first.id)
    assert prune(repo, max_unused_fraction=0.99).written_bytes == 0


def test_many_small_packs_are_merged(repo: Repository) -> None:
    for number in range(40):
        commit(repo, {b"%d" % number: b"x%d" % number})
    repo.options = Options(pack_bytes=1024 * 1024)
    packs = repo.size().packs
    prune(repo)
    assert repo.size().packs == 1 < packs
    assert check(repo).ok


def test_a_lease_keeps_what_was_written_under_it(repo: Repository) -> None:
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        tree, digest = put_tree(writer, FIRST)
        writer.flush()
        report = prune(repo, max_unused_fraction=0.0)
        assert report.leased_packs > 0
        snapshot = repo.commit(writer, tree=tree, digest=digest, metadata={})
    prune(repo, max_unused_fraction=0.0)
    assert get_tree(repo, snapshot.tree) == FIRST


def test_a_lease_keeps_what_was_reused_under_it(repo: Repository) -> None:
    old = commit(repo, FIRST)
    repo.delete(old.id)
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        tree, digest = put_tree(writer, FIRST)
        assert writer.stats.new_blobs == 0
        prune(repo, max_unused_fraction=0.0)
        snapshot = repo.commit(writer, tree=tree, digest=digest, metadata={})
    prune(repo, max_unused_fraction=0.0)
    assert get_tree(repo, snapshot.tree) == FIRST


def test_a_lease_keeps_what_was_there_to_read(repo: Repository) -> None:
    snapshot = commit(repo, FIRST)
    with repo.lease("reader"):
        repo.delete(snapshot.id)
        with pytest.raises(SnapshotNotFound):
            repo.snapshot(snapshot.id)
        prune(repo, max_unused_fraction=0.0)
        assert get_tree(repo, snapshot.tree) == FIRST
    prune(repo, max_unused_fraction=0.0)
    assert repo.size().packs == 0


def test_a_lease_keeps_the_parent_that_is_built_on(repo: Repository) -> None:
    """A new tree may name the parent's folders without ever putting them."""
    parent = commit(repo, FIRST)
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        shared = repo.read_directory(parent.tree).entries[b"a"]
        repo.delete(parent.id)
        directory = Directory({b"a": shared})
        tree = TreeId(writer.put(directory.encode(), BlobKind.TREE))
        prune(repo, max_unused_fraction=0.0)
        child = repo.commit(writer, tree=tree, digest=directory.digest(), metadata={})
    prune(repo, max_unused_fraction=0.0)
    assert get_tree(repo, child.tree) == {path: data for path, data in FIRST.items() if path[:2] == b"a/"}


def test_what_a_released_lease_left_goes(repo: Repository) -> None:
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        put_tree(writer, FIRST)
        writer.flush()
    with pytest.raises(StoreError, match="has ended"):
        writer.put(b"x", BlobKind.DATA)
    prune(repo)
    assert repo.size().packs == 0


def test_commit_between_plan_and_sweep(repo: Repository) -> None:
    """A snapshot that reuses dead blobs while the prune runs keeps them."""
    repo.delete(commit(repo, FIRST).id)
    committed: list[Snapshot] = []

    def commit_meanwhile(phase: str, done: int, total: int) -> None:
        if not committed:
            committed.append(commit(repo, FIRST))

    prune(repo, progress=commit_meanwhile, max_unused_fraction=0.0)
    assert get_tree(repo, committed[0].tree) == FIRST
    assert check(repo).ok


def test_commit_while_repacking(repo: Repository) -> None:
    first, second = commit(repo, FIRST), commit(repo, SECOND)
    repo.delete(first.id)
    committed: list[Snapshot] = []

    def commit_meanwhile(phase: str, done: int, total: int) -> None:
        if phase == "repack" and not committed:
            committed.append(commit(repo, {b"again": FIRST[b"a/1"], b"small": FIRST[b"a/2"]}))

    prune(repo, progress=commit_meanwhile, max_unused_fraction=0.0)
    assert len(committed) == 1
    assert get_tree(repo, committed[0].tree) == {b"again": FIRST[b"a/1"], b"small": FIRST[b"a/2"]}
    assert get_tree(repo, second.tree) == SECOND
    assert check(repo).ok


def test_index_rebuilt_while_packs_are_being_deleted(repo: Repository) -> None:
    """What a prune has given up must not be found again before it is gone."""
    repo.delete(commit(repo, FIRST).id)
    delete = repo.backend.delete
    committed: list[Snapshot] = []

    def rebuild_and_commit_first(area: Area, names: Iterable[str]) -> None:
        if not committed:
            rebuild_index(repo)
            committed.append(commit(repo, FIRST))
        delete(area, names)

    repo.backend.delete = rebuild_and_commit_first  # type: ignore[method-assign]
    assert prune(repo, max_unused_fraction=0.0).removed_packs > 0
    assert get_tree(repo, committed[0].tree) == FIRST
    assert check(repo).ok


def test_reader_finds_what_was_moved(repo: Repository) -> None:
    first, second = commit(repo, FIRST), commit(repo, SECOND)
    repo.delete(first.id)
    entry = repo.read_directory(second.tree).entries[b"s"]
    places = {place.pack for place in repo.blobs.locate(entry.content[0].blob)}
    stale = repo.blobs.locate(entry.content[0].blob)
    prune(repo, max_unused_fraction=0.0)
    assert places != {place.pack for place in repo.blobs.locate(entry.content[0].blob)}
    lookup = repo.blobs.index.lookup
    answers = [stale]
    repo.blobs.index.lookup = lambda blob: answers.pop() if answers else lookup(blob)  # type: ignore[method-assign]
    rebuilt: list[bool] = []
    repo.blobs.index.rebuild = lambda: rebuilt.append(True)  # type: ignore[method-assign]
    assert b"".join(data for _, data in read_extents(repo, entry.content)) == SHARED
    assert not rebuilt


def test_stopping_a_prune_loses_nothing(repo: Repository) -> None:
    many = {b"%02d" % number: NOISE.randbytes(500) for number in range(20)}
    half = dict(list(many.items())[::2])
    first, second = commit(repo, many), commit(repo, half)
    repo.delete(first.id)

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "repack" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(repo, progress=stop, max_unused_fraction=0.0)
    assert get_tree(repo, second.tree) == half
    prune(repo, max_unused_fraction=0.0)
    assert check(repo).ok
    assert prune(repo, max_unused_fraction=0.0, dry_run=True).unused_bytes == 0


def test_damaged_pack_is_kept_and_named(repo: Repository) -> None:
    first, second = commit(repo, FIRST), commit(repo, SECOND)
    repo.delete(first.id)
    shared = repo.read_directory(second.tree).entries[b"s"].content[0].blob
    (place,) = repo.blobs.locate(shared)
    path = repo.backend._path + "/packs/" + place.pack  # type: ignore[attr-defined]
    with open(path, "r+b") as file:
        file.seek(place.offset + 100)
        file.write(b"\0\0\0\0")
    report = prune(repo, max_unused_fraction=0.0)
    assert report.damaged_packs == [place.pack]
    assert place in repo.blobs.locate(shared)


def test_lists_of_extents_are_marked(repo: Repository) -> None:
    content = NOISE.randbytes(1000)
    step = 128 * 1024
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        segments = [(number * 2 * step, content[:number]) for number in range(1, 70)]
        extents = write_file(writer, segments, 200 * step)
        assert len(extents) == 1
        directory = Directory({b"f": Entry(name=b"f", type=NodeType.FILE, size=200 * step, content=extents)})
        tree = TreeId(writer.put(directory.encode(), BlobKind.TREE))
        repo.commit(writer, tree=tree, digest=directory.digest(), metadata={})
    prune(repo, max_unused_fraction=0.0)
    assert check(repo).ok
    assert repo.has(BlobId(extents[0].blob))
    assert [offset for offset, _ in read_extents(repo, extents)] == [offset for offset, _ in segments]
