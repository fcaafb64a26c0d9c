"""What a repository promises to whoever opens it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from turnkeep_store.check import check, rebuild_index
from turnkeep_store.directories import DirectoryCache
from turnkeep_store.errors import (
    AmbiguousId,
    BlobNotFound,
    LimitExceeded,
    SnapshotNotFound,
    StoreError,
    StoreIOError,
)
from turnkeep_store.ids import Digest, SnapshotId, TreeId, blob_id
from turnkeep_store.kinds import BlobKind
from turnkeep_store.repository import Repository
from turnkeep_store.snapshot import Json, decode, encode, identify
from turnkeep_store.tree import EMPTY_DIGEST, Directory, Entry, NodeType

from .trees import SMALL, Files, commit, get_tree, put_tree

NOISE = random.Random(9)
FILES: Files = {b"a": NOISE.randbytes(3000), b"d/b": b"z" * 5000, b"d/\xff\n": b"", b"d/e/f": b"x"}


def test_what_was_committed_is_read_after_reopening(tmp_path: Path) -> None:
    with Repository.create(tmp_path / "repo", options=SMALL) as repo:
        name = repo.id
        snapshot = commit(repo, FILES)
        assert get_tree(repo, snapshot.tree) == FILES
    with Repository.open(tmp_path / "repo") as repo:
        assert (repo.id, repo.format_version) == (name, 1)
        assert repo.snapshots() == [snapshot]
        assert get_tree(repo, repo.snapshot(snapshot.id).tree) == FILES


def test_equal_content_is_stored_once(repo: Repository) -> None:
    commit(repo, FILES)
    before = repo.size()
    commit(repo, FILES)
    assert repo.size().blobs == before.blobs
    with repo.lease("x") as lease:
        writer = repo.writer(lease)
        put_tree(writer, {**FILES, b"again": FILES[b"a"]})
        assert writer.stats.new_blobs == 1  # the root folder
        assert writer.stats.reused_blobs == 6


def test_packs_are_as_long_as_they_may_be(repo: Repository) -> None:
    commit(repo, {b"%d" % number: NOISE.randbytes(500) for number in range(30)})
    sizes = [size for _, size in repo.blobs.packs.sizes().items()]
    assert len(sizes) > 5
    assert max(sizes) < 2048 + 6 * 128 + 700


def test_unflushed_blobs_are_readable_by_their_writer_only(repo: Repository) -> None:
    with repo.lease("x") as lease:
        writer = repo.writer(lease)
        blob = writer.put(b"data", BlobKind.DATA)
        assert writer.get(blob) == b"data"
        assert not repo.has(blob)
        with pytest.raises(BlobNotFound):
            repo.get(blob)
        writer.flush()
        assert repo.get(blob) == b"data"


def test_committing_a_tree_that_was_not_put(repo: Repository) -> None:
    with repo.lease("x") as lease, pytest.raises(BlobNotFound):
        repo.commit(repo.writer(lease), tree=TreeId(bytes(32)), digest=EMPTY_DIGEST, metadata={})
    assert repo.snapshots() == []


def test_hash_only_gives_the_same_ids_and_stores_nothing(repo: Repository) -> None:
    parent = commit(repo, FILES)
    before = repo.size()
    sink = repo.hash_only()
    new = {**FILES, b"new/x": b"y"}
    tree, digest = put_tree(sink, new)
    assert sink.read_directory(tree).entries.keys() == {b"a", b"d", b"new"}
    assert sink.read_directory(parent.tree) == repo.read_directory(parent.tree)
    assert repo.size() == before
    snapshot = commit(repo, new)
    assert (snapshot.tree, snapshot.digest) == (tree, digest)


def test_resolving_short_ids(repo: Repository) -> None:
    snapshots = [commit(repo, {b"%d" % number: b""}) for number in range(5)]
    for snapshot in snapshots:
        assert repo.resolve(snapshot.id[:12].upper()) == snapshot.id
        assert repo.resolve(snapshot.id) == snapshot.id
    for bad in ("", "abc", "zzzz", "0" * 64, "*" * 5):
        with pytest.raises(SnapshotNotFound):
            repo.resolve(bad)
    twin = SnapshotId(snapshots[0].id[:10] + "f" * 54)
    repo.records._ids.add(twin)
    with pytest.raises(AmbiguousId, match="2 begin so"):
        repo.resolve(twin[:6])


def test_deleting(repo: Repository) -> None:
    first, second = commit(repo, FILES), commit(repo, {b"x": b"y"})
    repo.delete(first.id)
    assert repo.snapshots() == [second]
    for action in (repo.snapshot, repo.delete):
        with pytest.raises(SnapshotNotFound):
            action(first.id)


def test_snapshots_are_in_the_order_of_their_commits(repo: Repository) -> None:
    made = [commit(repo, {b"x": b"%d" % number}) for number in range(10)]
    assert repo.snapshots() == made


def test_closing_ends_what_is_in_progress(tmp_path: Path) -> None:
    with Repository.create(tmp_path / "repo") as repo:
        lease = repo.lease("x")
        writer = repo.writer(lease)
        writer.put(b"data", BlobKind.DATA)
    assert not list((tmp_path / "repo").rglob("tmp-*"))
    with pytest.raises(StoreError, match="ended"):
        writer.flush()


def test_a_closed_repository_says_so(tmp_path: Path) -> None:
    repo = Repository.create(tmp_path / "repo")
    repo.close()
    repo.close()
    with pytest.raises(StoreIOError, match="closed"):
        repo.has(blob_id(b""))


def test_rebuilding_the_index(repo: Repository) -> None:
    snapshot = commit(repo, FILES)
    before = repo.size()
    rebuild_index(repo)
    assert repo.size() == before
    assert get_tree(repo, snapshot.tree) == FILES
    assert check(repo).ok


def test_check_sees_a_wrong_digest_and_a_wrong_size(repo: Repository) -> None:
    with repo.lease("x") as lease:
        writer = repo.writer(lease)
        inner = Directory({b"f": Entry(name=b"f", type=NodeType.FILE, size=5)})
        tree = TreeId(writer.put(inner.encode(), BlobKind.TREE))
        outer = Directory(
            {b"d": Entry(name=b"d", type=NodeType.DIRECTORY, subtree=tree, digest=Digest(bytes(32)))}
        )
        root = TreeId(writer.put(outer.encode(), BlobKind.TREE))
        repo.commit(writer, tree=root, digest=outer.digest(), metadata={})
        repo.commit(writer, tree=root, digest=outer.digest(), metadata={"second": True})
    report = check(repo)
    assert [each.path for each in report.damage] == [b"d", b"d/f"] * 2


def test_directories_are_cached_within_a_limit(repo: Repository) -> None:
    snapshot = commit(repo, FILES)
    trees = [snapshot.tree, *(e.subtree for e in repo.read_directory(snapshot.tree) if e.subtree)]
    cache = DirectoryCache(repo, limit=len(repo.read_directory(snapshot.tree).encode()))
    for tree in trees * 2:
        assert cache.get(tree) == repo.read_directory(tree)
        assert len(cache._kept) <= 1


@pytest.mark.parametrize(
    "metadata",
    [{}, {"a": [1, 2.5, None, True, "ü\udc80"], "n": {"m": -(2**70)}}, {"": ""}],
    ids=["empty", "nested", "empty key"],
)
def test_records_give_back_what_they_got(metadata: dict[str, Json]) -> None:
    record = encode(
        tree=TreeId(b"t" * 32),
        digest=Digest(b"d" * 32),
        created_ns=-5,
        parent=SnapshotId("ab" * 32),
        metadata=metadata,
    )
    snapshot = decode(identify(record), record)
    assert snapshot.metadata == metadata
    assert (snapshot.created_ns, snapshot.parent) == (-5, "ab" * 32)


def test_metadata_is_bounded() -> None:
    with pytest.raises(LimitExceeded):
        encode(
            tree=TreeId(bytes(32)),
            digest=Digest(bytes(32)),
            created_ns=0,
            parent=None,
            metadata={"x": "y" * (17 * 1024 * 1024)},
        )
