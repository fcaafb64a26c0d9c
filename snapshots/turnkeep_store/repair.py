"""Getting the best out of a damaged repository: what is sound is kept, what is lost is known.

Repairing loses nothing that could be read before. A damaged pack's sound blobs are
written to a new one, and its file stays beside the packs under a name that no reader takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

from turnkeep_store.backend import Area
from turnkeep_store.blobset import BlobSet
from turnkeep_store.errors import Damaged, SnapshotNotFound
from turnkeep_store.ids import SnapshotId
from turnkeep_store.lease import Lease
from turnkeep_store.pack import Located, PackWriter, read_contents, read_stored
from turnkeep_store.points import StorePoint, reached
from turnkeep_store.repository import Repository

Progress = Callable[[str, int, int], None]
"""Called with a phase, how much of it is done, and how much there is."""


@dataclass(slots=True)
class RepairReport:
    """What a repair found and did."""

    packs: list[str] = field(default_factory=list)
    """Damaged ones, set aside."""
    saved_blobs: int = 0
    """Sound blobs of those, which lie in new packs."""
    records: list[SnapshotId] = field(default_factory=list)
    """Snapshots whose record is damaged. They are left as they are; deleting them lets prune work again."""


def repair(repo: Repository, progress: Progress = lambda phase, done, total: None) -> RepairReport:
    """Make the index anew, and save what is sound of damaged packs. Reads everything.

    A crash loses nothing, and the next repair finishes the work. What is lost for
    good is what `check` still finds afterwards.

    Raises:
        StoreFull: there was no room to write sound blobs again.
    """
    report = RepairReport()
    repo.blobs.index.rebuild()
    with repo.prune_lock, BlobSet() as saved, repo.lease("repair") as lease:
        packs = repo.blobs.packs.sizes()
        for done, (name, size) in enumerate(packs.items()):
            progress("packs", done, len(packs))
            with contextlib.suppress(FileNotFoundError):
                sound = _sound(repo, name, size)
                if sound is not None:
                    _move(repo, name, sound, saved, lease)
                    report.packs.append(name)
        report.saved_blobs = len(saved)
        for name in repo.records.names():
            try:
                repo.records.read(name)
            except Damaged:
                report.records.append(name)
            except SnapshotNotFound:
                continue  # deleted meanwhile
    return report


def _sound(repo: Repository, name: str, size: int) -> list[Located] | None:
    """Return the sound blobs of a damaged pack; None if the pack is sound."""
    try:
        rows = read_contents(repo.backend, name, size)
        damaged = False
    except Damaged:
        rows = repo.blobs.packs.contents(name, size) or []
        damaged = True
    sound = [row for row in rows if _is_sound(repo, name, row)]
    return sound if damaged or len(sound) < len(rows) else None


def _is_sound(repo: Repository, name: str, row: Located) -> bool:
    try:
        read_stored(repo.backend, name, row)
    except Damaged:
        return False
    return True


def _move(repo: Repository, name: str, rows: list[Located], saved: BlobSet, lease: Lease) -> None:
    """Write blobs of a pack into a new one, and set the pack aside."""
    new = [row for row in rows if row.header.id not in saved]
    if new:
        writer = PackWriter(repo.backend)
        try:
            for row in new:
                writer.append(row.header, read_stored(repo.backend, name, row))
            repo.blobs.publish(writer, lease)
        except BaseException:
            writer.discard()
            raise
        for row in new:
            saved.add(row.header.id)
    reached(StorePoint.BLOBS_SAVED)
    repo.blobs.hide([name])
    try:
        repo.backend.set_aside(Area.PACKS, name)
    finally:
        repo.blobs.reveal([name])
