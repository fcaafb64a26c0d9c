"""Many blobs at one go: in by the store's workers, out by few reads."""

from __future__ import annotations

import errno
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from turnkeep_store.check import check
from turnkeep_store.errors import Damaged, StoreFull
from turnkeep_store.ids import BlobId, blob_id
from turnkeep_store.kinds import BlobKind
from turnkeep_store.pack import BLOB_HEADER_BYTES
from turnkeep_store.repository import Repository
from turnkeep_store.writer import BlobWriter

from .disks import FaultyDisk

NOISE = random.Random(7)
BLOBS = [NOISE.randbytes(NOISE.randrange(1, 40_000)) for _ in range(300)]
BLOBS += [b"%d compressible " % number * NOISE.randrange(1, 3_000) for number in range(300)]


def _put_all(repo: Repository, blobs: list[bytes]) -> list[BlobId]:
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        ids = [writer.put(data, BlobKind.DATA) for data in blobs]
        assert [writer.get(each) for each in ids] == blobs
        assert writer.stats.new_blobs == len(set(blobs))
        writer.flush()
    return ids


def _put_into(writer: BlobWriter, blobs: list[bytes]) -> None:
    for data in blobs:
        writer.put(data, BlobKind.DATA)
    writer.flush()


def test_what_the_workers_store_is_there(repo: Repository) -> None:
    ids = _put_all(repo, BLOBS + BLOBS[:50])
    assert repo.get_many(ids) == dict(zip(ids, BLOBS + BLOBS[:50], strict=True))
    assert [repo.get(each) for each in ids[: len(BLOBS)]] == BLOBS
    assert check(repo).ok


def test_a_flush_holds_what_any_thread_had_put(repo: Repository) -> None:
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)

        def put_and_flush(data: bytes) -> bool:
            blob = writer.put(data, BlobKind.DATA)
            writer.flush()
            return repo.has(blob)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(put_and_flush, [data * 4 for data in BLOBS]))


def test_no_more_than_there_is_room_for(repo: Repository) -> None:
    ids = _put_all(repo, BLOBS)
    sizes = [len(each) for each in BLOBS]
    for count in (0, 1, 5, 300, len(ids)):
        room = sum(sizes[:count])
        assert list(repo.get_many(ids, room).keys() ^ ids[:count]) == []
        assert set(repo.get_many(ids, max(room - 1, 0))) == set(ids[: max(count - 1, 0)])


def test_what_cannot_be_read_is_left_out(repo: Repository, tmp_path: Path) -> None:
    ids = _put_all(repo, BLOBS)
    assert repo.get_many([*ids[:3], blob_id(b"never put"), ids[0]]).keys() == set(ids[:3])
    raw = dict(zip(ids, BLOBS, strict=True))
    for damaged in (ids[5], ids[-5]):
        place = repo.blobs.locate(damaged)[0]
        with (tmp_path / "repo" / "packs" / place.pack).open("r+b") as pack:
            pack.seek(place.offset + BLOB_HEADER_BYTES + place.stored_length // 2)
            byte = pack.read(1)
            pack.seek(-1, 1)
            pack.write(bytes([byte[0] ^ 1]))
        found = repo.get_many(ids)
        assert damaged not in found
        assert len(found) > len(ids) // 2
        assert all(data == raw[each] for each, data in found.items())
        with pytest.raises(Damaged):
            repo.get(damaged)


def test_a_worker_that_fails_ends_the_writer(tmp_path: Path) -> None:
    disk = FaultyDisk()
    with Repository.create(tmp_path / "repo", disk=disk) as repo, repo.lease("writer") as lease:
        writer = repo.writer(lease)
        with disk.failing(errno.ENOSPC), pytest.raises(StoreFull):
            _put_into(writer, BLOBS)
        with pytest.raises(StoreFull, match="ended"):
            writer.put(b"one more", BlobKind.DATA)
    with Repository.open(tmp_path / "repo") as repo:
        assert repo.size().blobs == 0
