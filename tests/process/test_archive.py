"""Images of processes go into the store and come back, whatever of them is in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from turnkeep.process import archive
from turnkeep.process.sandboxed import Images
from turnkeep_store import Repository
from turnkeep_store.blobcache import BlobCache, CachingSink
from turnkeep_store.ids import TreeId

from tests.process.dumps import unpack

NOISE_BYTES = 9_000_000
ALL = 64 * 1024 * 1024


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    """An empty repository."""
    with Repository.create(tmp_path / "repo") as repository:
        yield repository


@pytest.fixture
def dump(tmp_path: Path) -> Iterator[Images]:
    """A real dump, and a large file beside it that does not compress."""
    images = Images.on_disk(tmp_path)
    shutil.copytree(unpack(tmp_path / "unpacked"), images.path, dirs_exist_ok=True)
    with open(Path(images.path) / "pages-999.img", "wb") as file:
        file.write(os.urandom(NOISE_BYTES))
    yield images
    images.close()


def _store(repo: Repository, dump: Images, cache: BlobCache) -> TreeId:
    with repo.lease("dump") as lease:
        writer = repo.writer(lease)
        entry, size = archive.store(CachingSink(writer, cache), dump)
        writer.flush()
    assert size > NOISE_BYTES
    assert entry.subtree is not None
    return entry.subtree


@pytest.mark.parametrize("cache_bytes", [0, 1_000_000, NOISE_BYTES // 2, ALL])
def test_they_come_back(repo: Repository, dump: Images, tmp_path: Path, cache_bytes: int) -> None:
    cache = BlobCache(cache_bytes)
    tree = _store(repo, dump, cache)
    for _ in range(2):
        images = Images.on_disk(tmp_path)
        try:
            archive.load(repo, cache, tree, images)
            assert images.names() == dump.names()
            for name in dump.names():
                assert images.read(name) == dump.read(name), name
        finally:
            images.close()
