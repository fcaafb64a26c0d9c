"""Checking: packs, index, records, and every tree as far as it can be reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from turnkeep_store.blobset import BlobSet
from turnkeep_store.check_trees import TreeCheck
from turnkeep_store.errors import SnapshotNotFound, StoreError
from turnkeep_store.ids import BlobId, SnapshotId
from turnkeep_store.index import Location
from turnkeep_store.pack import Located, read_blob, read_contents
from turnkeep_store.repository import Repository

Progress = Callable[[str, int, int], None]
"""Is told the phase, and how many of how many objects are done. May raise to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing that is wrong.

    Of a snapshot, `snapshot` and `path` say what is affected; `path` is None
    where the record itself is. Otherwise `object` is a pack, or the index.
    """

    object: str
    problem: str
    snapshot: SnapshotId | None = None
    path: bytes | None = None


@dataclass(slots=True)
class CheckReport:
    """What was looked at and what is wrong with it."""

    packs: int = 0
    blobs: int = 0
    snapshots: int = 0
    damage: list[Damage] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.damage

    def of_snapshot(self, snapshot: SnapshotId) -> list[Damage]:
        """Return what is wrong with one snapshot."""
        return [each for each in self.damage if each.snapshot == snapshot]


def check(repo: Repository, *, read_data: bool = True, progress: Progress | None = None) -> CheckReport:
    """Verify the repository and report all damage.

    With `read_data`, every stored byte is read and hashed; without, data blobs
    are only looked for. Others may write meanwhile; a prune waits.
    """
    tell = progress or _quiet
    report = CheckReport()
    with repo.prune_lock, BlobSet() as bad, BlobSet() as sound:
        _check_packs(repo, report, bad, read_data, tell)
        trees = TreeCheck(repo.blobs, bad, sound)
        names = repo.records.names()
        for done, name in enumerate(names):
            tell("snapshots", done, len(names))
            _check_snapshot(repo, name, trees, report)
    return report


def rebuild_index(repo: Repository) -> None:
    """Throw the index away and build it from the packs."""
    repo.blobs.index.rebuild()


def _check_packs(
    repo: Repository, report: CheckReport, bad: BlobSet, read_data: bool, tell: Progress
) -> None:
    packs = repo.blobs.packs.sizes()
    indexed = repo.blobs.index.packs()
    for name in indexed.keys() - packs.keys():
        report.damage.append(Damage(object="index", problem=f"it names pack {name}, which is gone"))
    suspects: list[BlobId] = []
    for done, (name, size) in enumerate(packs.items()):
        tell("packs", done, len(packs))
        report.packs += 1
        try:
            rows = read_contents(repo.backend, name, size)
        except FileNotFoundError:
            continue
        except StoreError as error:
            report.damage.append(Damage(object=f"pack {name}", problem=str(error)))
            rows = _salvaged(repo, name, size)
        report.blobs += len(rows)
        if name in indexed:
            _check_index(repo, name, rows, report)
        if read_data:
            suspects += _check_blobs(repo, name, rows, report)
    for blob in suspects:
        try:
            repo.get(blob)  # another copy may be sound
        except StoreError:
            bad.add(blob)


def _salvaged(repo: Repository, name: str, size: int) -> list[Located]:
    try:
        return repo.blobs.packs.contents(name, size) or []
    except StoreError:
        return []


def _check_index(repo: Repository, name: str, rows: list[Located], report: CheckReport) -> None:
    index = repo.blobs.index
    wrong = 0 if index.count(name) == len(rows) else 1
    for row in rows:
        header = row.header
        place = Location(name, row.offset, header.stored_length, header.raw_length)
        wrong += place not in index.lookup(header.id)
    if wrong:
        report.damage.append(
            Damage(object="index", problem=f"{wrong} entries of pack {name} are wrong; rebuild the index")
        )


def _check_blobs(repo: Repository, name: str, rows: list[Located], report: CheckReport) -> list[BlobId]:
    """Read all blobs of a pack; return those that are damaged."""
    damaged = []
    for row in rows:
        try:
            read_blob(repo.backend, name, row.offset, row.header.id, row.header.stored_length)
        except (StoreError, FileNotFoundError) as error:
            report.damage.append(Damage(object=f"pack {name}", problem=str(error)))
            damaged.append(row.header.id)
    return damaged


def _check_snapshot(repo: Repository, name: SnapshotId, trees: TreeCheck, report: CheckReport) -> None:
    try:
        snapshot = repo.records.read(name)
    except SnapshotNotFound:
        if name not in repo.records.names():
            return  # deleted meanwhile
        report.damage.append(Damage(object="record", problem="its file is gone", snapshot=name))
        return
    except StoreError as error:
        report.damage.append(Damage(object="record", problem=str(error), snapshot=name))
        return
    report.snapshots += 1
    for path, problem in trees.check(snapshot.tree):
        report.damage.append(Damage(object="tree", problem=problem, snapshot=name, path=path))


def _quiet(phase: str, done: int, total: int) -> None:
    return None
