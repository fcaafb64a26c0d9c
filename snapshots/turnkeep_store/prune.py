"""Pruning: plan, mark, repack, sweep.

Packs in which nothing is live are deleted; of packs with much that is not, and
of many small ones, the live blobs are first written again. All this happens
while others write and read. What keeps that safe:

- Whatever a lease protects stays (see `lease`). Prune never waits for a lease:
  what is leased is left for the next time.
- A pack leaves the index in a short phase in which nobody can decide that a
  blob "is there already". In that phase, what was committed since the plan was
  made is marked as well, and a pack that has become needed is spared.
- The order on the disk is: new packs durable, then old packs deleted. A crash
  in between leaves blobs twice, never not at all.
- A reader that meets a deleted pack looks its blob up again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from turnkeep_store.backend import Area
from turnkeep_store.blobset import BlobSet
from turnkeep_store.errors import Damaged
from turnkeep_store.ids import SnapshotId
from turnkeep_store.lease import Lease
from turnkeep_store.mark import mark
from turnkeep_store.pack import PackWriter, read_contents, read_stored
from turnkeep_store.points import StorePoint, reached
from turnkeep_store.repository import Repository

MAX_UNUSED_FRACTION = 0.25
SMALL_FRACTION = 1 / 16
"""A pack shorter than this part of the usual length is small."""
MANY_SMALL = 16
"""Small packs are merged when there are at least this many."""

Progress = Callable[[str, int, int], None]
"""Is told the phase, and how many of how many packs are done. May raise to stop."""


@dataclass(slots=True, kw_only=True)
class PruneReport:
    """What a prune did; with `dry_run` the plan's figures only."""

    dry_run: bool
    live_blobs: int = 0
    unused_bytes: int = 0
    """What lies in packs and is not needed, by the plan (leased packs not counted)."""
    planned_packs: int = 0
    """Packs to be deleted or written again."""
    leased_packs: int = 0
    """Packs left alone because work in progress may need them."""
    damaged_packs: list[str] = field(default_factory=list)
    removed_packs: int = 0
    freed_bytes: int = 0
    written_bytes: int = 0
    """What live blobs took that were written again."""


@dataclass(slots=True)
class _Plan:
    dead: dict[str, int] = field(default_factory=dict)
    repack: dict[str, int] = field(default_factory=dict)


def prune(
    repo: Repository,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    max_unused_fraction: float = MAX_UNUSED_FRACTION,
) -> PruneReport:
    """Free what no snapshot needs.

    A pack of which more than `max_unused_fraction` is unused is written again.
    A crash or an error at any point loses nothing, and the next prune finishes
    the work. Damaged packs are kept and named in the report.

    Raises:
        Damaged, BlobNotFound: what a snapshot needs cannot be read, so nothing
            is deleted. Run check, delete the snapshots it names, prune again.
        StoreFull: there was no room to write live blobs again.
    """
    with repo.prune_lock, BlobSet() as live, BlobSet() as moved, repo.lease("prune") as lease:
        run = _Prune(repo, live, moved, lease, PruneReport(dry_run=dry_run), progress or _quiet)
        plan = run.plan(max_unused_fraction)
        if not dry_run:
            run.sweep(plan.dead)
            run.repack(plan.repack)
            repo.blobs.index.purge()
        return run.report


class _Prune:
    """One run. `live` holds what is needed, `moved` what lies in a new pack as well."""

    def __init__(
        self,
        repo: Repository,
        live: BlobSet,
        moved: BlobSet,
        lease: Lease,
        report: PruneReport,
        progress: Progress,
    ) -> None:
        self.report = report
        self._repo = repo
        self._blobs = repo.blobs
        self._live = live
        self._moved = moved
        self._lease = lease
        self._progress = progress
        self._known: set[SnapshotId] = set()
        self._marked = 0
        self._writer: PackWriter | None = None
        self._copied: dict[str, int] = {}

    def plan(self, max_unused_fraction: float) -> _Plan:
        """Mark what is live, and decide for each pack."""
        self._blobs.index.reconcile()
        packs = self._blobs.index.packs()
        mark(self._blobs, self._repo.records.roots(self._known), self._live)
        self._marked = self.report.live_blobs = len(self._live)
        leased = self._blobs.leases.packs()
        plan = _Plan()
        small: dict[str, int] = {}
        for done, (name, size) in enumerate(packs.items()):
            self._progress("plan", done, len(packs))
            unused = self._unused_bytes(name, size)
            if name in leased:
                self.report.leased_packs += 1
                continue
            self.report.unused_bytes += unused or 0
            if unused is None:
                self.report.damaged_packs.append(name)
            elif unused == size:
                plan.dead[name] = size
            elif unused > max_unused_fraction * size:
                plan.repack[name] = size
            elif size < SMALL_FRACTION * self._repo.options.pack_bytes:
                small[name] = size
        if len(small) >= MANY_SMALL:
            plan.repack.update(small)
        self.report.planned_packs = len(plan.dead) + len(plan.repack)
        return plan

    def sweep(self, packs: dict[str, int]) -> None:
        """Delete these packs, but for those that have become needed since the plan."""
        with self._blobs.leases.guard:
            names = self._still_unneeded(packs)
            self._blobs.hide(names)
        if names:
            reached(StorePoint.PACKS_DROPPED)
        try:
            if names:
                self._blobs.backend.delete(Area.PACKS, names)
                reached(StorePoint.PACKS_DELETED)
        finally:
            self._blobs.reveal(names)
        self.report.removed_packs += len(names)
        self.report.freed_bytes += sum(packs[name] for name in names)

    def repack(self, packs: dict[str, int]) -> None:
        """Write the live blobs of these packs into new ones, and sweep the old."""
        try:
            for done, (name, size) in enumerate(packs.items()):
                self._progress("repack", done, len(packs))
                try:
                    self._copy(name, size)
                except Damaged:
                    self.report.damaged_packs.append(name)
                else:
                    self._copied[name] = size
            self._finish_pack()
        except BaseException:
            if self._writer is not None:
                self._writer.discard()
            raise

    def _copy(self, name: str, size: int) -> None:
        for row in read_contents(self._blobs.backend, name, size):
            if row.header.id not in self._live or row.header.id in self._moved:
                continue
            stored = read_stored(self._blobs.backend, name, row)
            if self._writer is None:
                self._writer = PackWriter(self._blobs.backend)
            self._writer.append(row.header, stored)
            self._moved.add(row.header.id)
            full = self._writer.size >= self._repo.options.pack_bytes
            if full or len(self._writer.contents) >= self._repo.options.pack_blobs:
                self._finish_pack()

    def _finish_pack(self) -> None:
        if self._writer is not None:
            self.report.written_bytes += self._blobs.publish(self._writer, self._lease)
            self._writer = None
        self.sweep(self._copied)
        self._copied = {}

    def _still_unneeded(self, packs: dict[str, int]) -> list[str]:
        """Return which packs hold nothing that is leased, or live and nowhere else."""
        mark(self._blobs, self._repo.records.roots(self._known), self._live)
        leased = self._blobs.leases.packs()
        free = {name: size for name, size in packs.items() if name not in leased}
        if len(self._live) == self._marked:
            return list(free)
        return [name for name, size in free.items() if not self._is_needed(name, size)]

    def _is_needed(self, name: str, size: int) -> bool:
        rows = read_contents(self._blobs.backend, name, size)
        return any(row.header.id in self._live and row.header.id not in self._moved for row in rows)

    def _unused_bytes(self, name: str, size: int) -> int | None:
        """Return how much of the pack is unused; all of it if nothing is live, None if damaged."""
        try:
            rows = read_contents(self._blobs.backend, name, size)
        except Damaged:
            return None
        dead = [row for row in rows if row.header.id not in self._live]
        return size if len(dead) == len(rows) else sum(row.header.footprint for row in dead)


def _quiet(phase: str, done: int, total: int) -> None:
    return None
