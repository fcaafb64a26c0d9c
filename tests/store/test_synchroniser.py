"""A folder is made equal to a tree: what comes next is read ahead, what was written is written out behind."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from turnkeep_store.archiver import Upsert, archive
from turnkeep_store.errors import BlobNotFound
from turnkeep_store.ids import BlobId, TreeId, blob_id
from turnkeep_store.kinds import BlobKind
from turnkeep_store.nodes import set_attributes
from turnkeep_store.readahead import ReadAhead
from turnkeep_store.repository import Repository
from turnkeep_store.synchroniser import synchronise
from turnkeep_store.tree import Directory, Entry, Extent, ExtentKind, NodeType

from tests.block_device import mounted, recorded_disk, require_block_devices

NOISE = random.Random(11)
BLOBS = [NOISE.randbytes(NOISE.randrange(1, 60_000)) for _ in range(400)]
BATCH_BYTES = 2 * 1024 * 1024
HOLE = Extent(ExtentKind.HOLE, 9)


class Watched:
    """A repository that writes down what it was asked for."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.alone: list[BlobId] = []
        self.batches: list[list[BlobId]] = []

    def get(self, blob: BlobId) -> bytes:
        self.alone.append(blob)
        return self._repository.get(blob)

    def get_many(self, blobs: Iterable[BlobId], room: int | None = None) -> dict[BlobId, bytes]:
        self.batches.append(list(blobs))
        return self._repository.get_many(self.batches[-1], room)

    def read_directory(self, tree: TreeId) -> Directory:
        return self._repository.read_directory(tree)

    def fetch_directories(self, trees: Iterable[TreeId]) -> None:
        self._repository.fetch_directories(trees)


def _put(repo: Repository) -> list[Extent]:
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        extents = [Extent(ExtentKind.DATA, len(data), writer.put(data, BlobKind.DATA)) for data in BLOBS]
        writer.flush()
    return extents


def test_what_comes_in_order_is_read_in_batches(repo: Repository) -> None:
    extents, source = _put(repo), Watched(repo)
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(source, pool)
        ahead.follow(iter([Extent(ExtentKind.HOLE, 9), *extents]))
        assert [ahead.get(each.blob) for each in extents] == BLOBS
    assert source.alone == []
    assert [blob for batch in source.batches for blob in batch] == [each.blob for each in extents]
    lengths = {each.blob: each.length for each in extents}
    sizes = [sum(lengths[blob] for blob in batch) for batch in source.batches]
    assert all(BATCH_BYTES <= size < BATCH_BYTES + 60_000 for size in sizes[:-1])
    assert len(sizes) == sum(map(len, BLOBS)) // BATCH_BYTES + 1


@pytest.mark.parametrize("pattern", ["one for long", "a group", "at random", "holes between"])
def test_what_comes_again_does_not_stop_it(repo: Repository, pattern: str) -> None:
    extents, source = _put(repo), Watched(repo)
    group = extents[:90]
    order = {
        "one for long": extents[:1] * 5_000 + extents,
        "a group": group * 4 + extents,
        "at random": [*NOISE.choices(extents, k=900), *extents],
        "holes between": [each for extent in extents for each in (*[HOLE] * 500, extent)],
    }[pattern]
    data = dict(zip((each.blob for each in extents), BLOBS, strict=True))
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(source, pool)
        ahead.follow(iter(order))
        assert all(ahead.get(each.blob) == data[each.blob] for each in order if each is not HOLE)
    assert source.alone == []
    assert all(sum(len(data[blob]) for blob in batch) < 2 * BATCH_BYTES + 60_000 for batch in source.batches)


def test_what_comes_otherwise_comes_all_the_same(repo: Repository) -> None:
    extents, source = _put(repo), Watched(repo)
    wanted = list(zip(extents, BLOBS, strict=True))
    with ThreadPoolExecutor(1) as pool:
        ahead = ReadAhead(source, pool)
        for _ in range(3):
            NOISE.shuffle(wanted)
            ahead.follow(iter(extents))
            assert all(ahead.get(extent.blob) == data for extent, data in wanted)
        missing = blob_id(b"never put")
        ahead.follow(iter([Extent(ExtentKind.DATA, 9, missing), *extents]))
        assert ahead.get(extents[0].blob) == BLOBS[0]
        with pytest.raises(BlobNotFound):
            ahead.get(missing)


def _tree(repo: Repository) -> tuple[TreeId, dict[str, bytes]]:
    """Store nested folders of files, and return them and what is in the files."""
    changes, content = [], {}
    folders = [b"", *(b"d%d" % number for number in range(12)), *(b"d3/e%d" % number for number in range(9))]
    folders.append(b"d3/e4/f")
    for folder in folders:
        if folder:
            name = folder.rpartition(b"/")[2]
            changes.append(Upsert(folder, Entry(name=name, type=NodeType.DIRECTORY, mode=0o755)))
        for number in range(NOISE.randrange(25)):
            path = b"/".join(filter(None, [folder, b"n%d" % number]))
            data = NOISE.randbytes(NOISE.choice([0, 5, 3_000, 200_000]))
            content[os.fsdecode(path)] = data
            entry = Entry(name=b"n%d" % number, type=NodeType.FILE, mode=0o640, mtime_ns=7, size=len(data))
            changes.append(Upsert(path, entry, partial(iter, [(0, data)] if data else [])))
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        made = archive(writer, repo, None, changes)
        writer.flush()
    return made.tree, content


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("there", ["nothing", "a part", "something else"])
def test_a_tree_is_written_without_reading_a_blob_alone(repo: Repository, tmp_path: Path, there: str) -> None:
    tree, content = _tree(repo)
    root = tmp_path / "root"
    root.mkdir()
    if there != "nothing":
        for path, data in NOISE.sample(sorted(content.items()), len(content) // 2):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(data if there == "a part" else b"other")
        (root / "d3" / "extra").mkdir(parents=True, exist_ok=True)
    source = Watched(repo)
    fd = os.open(root, os.O_PATH)
    try:
        synchronise(fd, source, tree)
    finally:
        os.close(fd)
    assert _files(root) == content
    assert not (root / "d3" / "extra").exists()
    if there != "something else":
        assert source.alone == []
    assert {path.stat().st_mode & 0o7777 for path in root.rglob("n*")} == {0o640}


def test_a_disk_that_cannot_be_written_to(repo: Repository, tmp_path: Path) -> None:
    require_block_devices()
    entry = Entry(name=b"f", type=NodeType.FILE, mode=0o600)
    pieces = {b"f%d" % number: NOISE.randbytes(1_000_000) for number in range(40)}
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        changes = [
            Upsert(name, replace(entry, name=name, size=len(data)), partial(iter, [(0, data)]))
            for name, data in pieces.items()
        ]
        tree = archive(writer, repo, None, changes).tree
        writer.flush()
    with (
        recorded_disk(tmp_path, 64 << 20) as disk,
        mounted(disk.device, tmp_path / "mnt") as folder,
    ):
        fd = os.open(folder, os.O_PATH)
        try:
            with (
                disk.failing("write"),
                pytest.raises(OSError, match=r"error|Read-only"),
            ):
                synchronise(fd, repo, tree, keep=[b"lost+found"])
        finally:
            os.close(fd)


def test_attributes_of_what_has_none_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.setxattr(tmp_path / "file", "user.left", b"over")
    fd = os.open(tmp_path, os.O_PATH)
    try:
        set_attributes(fd, b"file", Entry(name=b"file", type=NodeType.FILE, mode=0o604, mtime_ns=5))
    finally:
        os.close(fd)
    status = (tmp_path / "file").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o604, 5)
    assert os.listxattr(tmp_path / "file") == []
