"""Writers, readers, deletions and prunes in threads."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from turnkeep_store.check import check
from turnkeep_store.kinds import BlobKind
from turnkeep_store.prune import prune
from turnkeep_store.repository import Repository
from turnkeep_store.snapshot import Snapshot

from .trees import SMALL, Files, commit, get_tree

NOISE = [random.Random(number).randbytes(300) for number in range(12)]
ROUNDS = 25
WRITERS = 4


def _files(rng: random.Random) -> Files:
    """A tree of few contents, so that writers and prunes meet at the same blobs."""
    return {b"%d/%d" % (rng.randrange(3), number): rng.choice(NOISE) for number in range(rng.randrange(6))}


def _write(repo: Repository, seed: int) -> list[tuple[Snapshot, Files]]:
    rng = random.Random(seed)
    kept: list[tuple[Snapshot, Files]] = []
    for _ in range(ROUNDS):
        files = _files(rng)
        kept.append((commit(repo, files), files))
        if rng.random() < 0.7:
            snapshot, _ = kept.pop(rng.randrange(len(kept)))
            repo.delete(snapshot.id)
    return kept


def _read(repo: Repository, stop: threading.Event) -> int:
    read = 0
    while not stop.is_set():
        with repo.lease("reader"):
            for snapshot in repo.snapshots()[:3]:  # looked up under the lease: they stay
                get_tree(repo, snapshot.tree)
                read += 1
    return read


def _prune(repo: Repository, stop: threading.Event) -> int:
    removed = 0
    while not stop.is_set():
        removed += prune(repo, max_unused_fraction=0.0).removed_packs
    return removed


def test_writers_readers_and_prunes(tmp_path: Path) -> None:
    with Repository.create(tmp_path / "repo", options=SMALL) as repo:
        stop = threading.Event()
        with ThreadPoolExecutor(WRITERS + 2) as pool:
            pruner, reader = pool.submit(_prune, repo, stop), pool.submit(_read, repo, stop)
            writers = [pool.submit(_write, repo, seed) for seed in range(WRITERS)]
            try:
                kept = [each for writer in writers for each in writer.result()]
            finally:
                stop.set()
            assert pruner.result() > 0
            assert reader.result() > 0
        for snapshot, files in kept:
            assert get_tree(repo, snapshot.tree) == files
        report = check(repo)
        assert report.ok, report.damage
    with Repository.open(tmp_path / "repo") as repo:
        assert {each.id for each in repo.snapshots()} == {snapshot.id for snapshot, _ in kept}


def test_many_threads_put_into_one_writer(repo: Repository) -> None:
    with repo.lease("writer") as lease:
        writer = repo.writer(lease)
        data = [b"%d" % (number % 50) * 20 for number in range(400)]
        with ThreadPoolExecutor(8) as pool:
            blobs = list(pool.map(writer.put, data, [BlobKind.DATA] * len(data)))
        writer.flush()
        assert [repo.get(blob) for blob in blobs] == data
        assert writer.stats.new_blobs + writer.stats.reused_blobs == len(data)


def test_writers_do_not_mix(repo: Repository) -> None:
    with repo.lease("one") as one, repo.lease("two") as two:
        first, second = repo.writer(one), repo.writer(two)
        a = first.put(b"a" * 50, BlobKind.DATA)
        b = second.put(b"b" * 50, BlobKind.DATA)
        second.abort()
        first.flush()
        assert repo.has(a)
        assert not repo.has(b)
        assert first.get(a) == b"a" * 50
