"""Power goes on a real file system: ext4 on a disk that keeps, of what was not flushed, what chance leaves.

Every write and flush of the disk is recorded while a repository and a journal are written.
For a cut, the writes up to the last flush before it are all there, and any of those after it.
`TURNKEEP_POWER_CUTS=1000` tries more cuts than a test run should take.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from turnkeep.journal import Journal
from turnkeep_store.check import check
from turnkeep_store.errors import RepositoryNotFound
from turnkeep_store.ids import SnapshotId
from turnkeep_store.prune import prune
from turnkeep_store.repository import Repository

from tests.block_device import RecordedDisk, mounted, recorded_disk, require_block_devices
from tests.fuse_disk import ENTRY, Write, read_log

from .trees import SMALL, Files, commit, get_tree

CUTS = int(os.environ.get("TURNKEEP_POWER_CUTS", "30"))
SIZE_BYTES = 24 << 20
UNIT_BYTES = 4096
"""What a disk writes as a whole."""

MOUNTS = {
    "ordered": "nodiscard",
    # Less of what ext4 does for programs that forget to sync.
    "writeback": "nodiscard,data=writeback,noauto_da_alloc",
}


@dataclass
class Promise:
    """What was acknowledged when the log had a length."""

    position: int
    there: dict[SnapshotId, Files]
    gone: set[SnapshotId]
    unsure: set[SnapshotId]
    events: int


@dataclass
class World:
    """A repository and a journal on a disk, and what was promised of them, and when."""

    disk: RecordedDisk
    there: dict[SnapshotId, Files] = field(default_factory=dict)
    gone: set[SnapshotId] = field(default_factory=set)
    unsure: set[SnapshotId] = field(default_factory=set)
    events: int = 0
    promises: list[Promise] = field(default_factory=list)

    def write(self, root: Path, rng: random.Random) -> None:
        """Commit, delete and prune for a while."""
        with (
            Repository.open_or_create(str(root / "store"), options=SMALL) as repo,
            Journal(root / "journal.sqlite") as journal,
        ):
            self._promise()
            for number in range(10):
                files = {b"%d/%d" % (n % 3, n): rng.randbytes(rng.randrange(1, 3000)) for n in range(8)}
                journal.append("turn_begun", f"turn {number}")
                snapshot = commit(repo, files)
                self.there[snapshot.id] = files
                self._promise()
                self.events = journal.append("durable", snapshot.id).sequence
                self._promise()
                if number % 3 == 2:
                    self._delete(repo, rng.choice(sorted(self.there)))
                    prune(repo, max_unused_fraction=0.0)
                    self._promise()

    def _delete(self, repo: Repository, snapshot: SnapshotId) -> None:
        del self.there[snapshot]
        self.unsure.add(snapshot)
        self._promise()
        repo.delete(snapshot)
        self.unsure.remove(snapshot)
        self.gone.add(snapshot)
        self._promise()

    def _promise(self) -> None:
        position = self.disk.position()
        self.promises.append(
            Promise(position, dict(self.there), set(self.gone), set(self.unsure), self.events)
        )

    def promised_at(self, position: int) -> Promise:
        """Return what was promised last before the log was so long."""
        made = [each for each in self.promises if each.position <= position]
        return made[-1] if made else Promise(0, {}, set(), set(), 0)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[RecordedDisk]:
    """A recorded disk."""
    require_block_devices()
    with recorded_disk(tmp_path, SIZE_BYTES) as made:
        yield made


@pytest.mark.parametrize("options", MOUNTS.values(), ids=MOUNTS)
def test_what_was_promised_is_there(
    disk: RecordedDisk, options: str, tmp_path: Path, in_memory: Path
) -> None:
    rng = random.Random(11)
    world = World(disk)
    with mounted(disk.device, tmp_path / "mounted", options) as root:
        mounted_at = disk.position()
        world.write(root, rng)
    ends = {each.position for each in world.promises}
    cuts = sorted({*rng.sample(sorted(ends), min(CUTS // 2, len(ends))), *_anywhere(disk, mounted_at, rng)})
    for position, content in _images(disk, cuts, rng):
        image = in_memory / f"image-{position}"
        image.write_bytes(content)
        with mounted(image, tmp_path / "cut", options) as root:
            _verify(root, world.promised_at(position))
        image.unlink()


def _anywhere(disk: RecordedDisk, begin: int, rng: random.Random) -> list[int]:
    """Return lengths of the log at which to cut, between any two calls."""
    lengths, length = [], 0
    for call in read_log(disk.log):
        length += ENTRY.size + (len(call.data) if call is not None else 0)
        lengths.append(length)
    return rng.sample([each for each in lengths if each >= begin], CUTS - CUTS // 2)


def _images(disk: RecordedDisk, cuts: list[int], rng: random.Random) -> Iterator[tuple[int, bytes]]:
    """Yield what the disk holds after each cut."""
    flushed = bytearray(disk.image.read_bytes())
    since: list[Write] = []
    length, left = 0, list(cuts)
    for call in read_log(disk.log):
        size = ENTRY.size + (len(call.data) if call is not None else 0)
        while left and left[0] < length + size:
            yield left.pop(0), _cut(flushed, since, rng)
        length += size
        if call is not None:
            since.append(call)
            continue
        _apply(flushed, since)
        since = []
    for position in left:
        yield position, _cut(flushed, since, rng)


def _cut(flushed: bytearray, since: list[Write], rng: random.Random) -> bytes:
    """Return the flushed bytes with what chance leaves of the writes since: none, all, or any of them."""
    image = bytearray(flushed)
    share = rng.choice([0.0, 0.5, 0.9, 1.0])
    for write in since:
        units = range(0, len(write.data), UNIT_BYTES)
        kept = units if rng.random() < 0.5 else rng.sample(units, rng.randint(0, len(units)))
        if rng.random() < share:
            _apply(image, [Write(write.offset + at, write.data[at : at + UNIT_BYTES]) for at in kept])
    return bytes(image)


def _apply(image: bytearray, writes: list[Write]) -> None:
    for write in writes:
        image[write.offset : write.offset + len(write.data)] = write.data


def _verify(root: Path, promise: Promise) -> None:
    """All that was promised is there, nothing is damaged, and work goes on."""
    try:
        repo = Repository.open(str(root / "store"), options=SMALL)
    except RepositoryNotFound:
        assert not promise.there
        return
    with repo:
        there = {snapshot.id: snapshot for snapshot in repo.snapshots()}
        for name, files in promise.there.items():
            assert get_tree(repo, there[name].tree) == files
        assert not promise.gone & there.keys()
        report = check(repo)
        assert report.ok, report.damage
        commit(repo, {b"after": b"the cut"})
        prune(repo, max_unused_fraction=0.0)
        for name, files in promise.there.items():
            assert get_tree(repo, there[name].tree) == files
    with Journal(root / "journal.sqlite") as journal:
        assert journal.verify() == []
        assert journal.head().sequence >= promise.events
        journal.append("durable", "after the cut")
