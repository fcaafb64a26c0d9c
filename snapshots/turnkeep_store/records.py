"""The records of all snapshots: added, found, deleted."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict

from turnkeep_store.backend import Area, Backend, save
from turnkeep_store.errors import AmbiguousId, Damaged, SnapshotNotFound, StoreError
from turnkeep_store.ids import SnapshotId, TreeId
from turnkeep_store.lease import Lease, Leases
from turnkeep_store.points import StorePoint, reached
from turnkeep_store.snapshot import MAX_RECORD_BYTES, Snapshot, decode, identify, is_snapshot_name

MIN_PREFIX = 4
_KEPT_RECORDS = 256

log = logging.getLogger(__name__)


class Records:
    """Snapshot records. Safe for use by many threads at once."""

    def __init__(self, backend: Backend, leases: Leases) -> None:
        self._backend = backend
        self._leases = leases
        self._guard = leases.guard
        self._ids = set(self._stored())
        self._deleting: dict[SnapshotId, TreeId | None] = {}
        self._kept: OrderedDict[SnapshotId, Snapshot] = OrderedDict()
        self._last_ns = 0

    def next_time(self) -> int:
        """Return the time, never the same twice."""
        with self._guard:
            self._last_ns = max(time.time_ns(), self._last_ns + 1)
            return self._last_ns

    def add(self, record: bytes, lease: Lease) -> Snapshot:
        """Make a record durable, then visible."""
        snapshot = decode(identify(record), record)
        save(self._backend, Area.SNAPSHOTS, snapshot.id, record)
        reached(StorePoint.RECORD_SAVED)
        with self._guard:
            if not lease.active:
                # What it refers to may have been swept a moment ago.
                self._backend.delete(Area.SNAPSHOTS, [snapshot.id])
                lease.require()
            self._ids.add(snapshot.id)
        return snapshot

    def count(self) -> int:
        with self._guard:
            return len(self._ids)

    def all(self) -> list[Snapshot]:
        """Return all snapshots, oldest first. Damaged records are left out and logged."""
        with self._guard:
            names = sorted(self._ids)
        found = []
        for name in names:
            try:
                found.append(self.get(name))
            except SnapshotNotFound:
                continue  # deleted meanwhile
            except Damaged as error:
                log.error("snapshot record damaged; run check", extra={"snapshot": name, "cause": str(error)})
        return sorted(found, key=lambda snapshot: (snapshot.created_ns, snapshot.id))

    def names(self) -> list[SnapshotId]:
        """Return the ids of all snapshots, also of those whose record is damaged."""
        with self._guard:
            return sorted(self._ids)

    def get(self, snapshot_id: SnapshotId) -> Snapshot:
        """Return one snapshot. Raises SnapshotNotFound, Damaged."""
        with self._guard:
            if snapshot_id not in self._ids:
                raise SnapshotNotFound(f"snapshot {snapshot_id}: not in this repository")
            if snapshot_id in self._kept:
                self._kept.move_to_end(snapshot_id)
                return self._kept[snapshot_id]
        snapshot = self.read(snapshot_id)
        with self._guard:
            self._kept[snapshot_id] = snapshot
            while len(self._kept) > _KEPT_RECORDS:
                self._kept.popitem(last=False)
        return snapshot

    def resolve(self, prefix: str) -> SnapshotId:
        """Return the one snapshot whose id begins so. Raises SnapshotNotFound, AmbiguousId."""
        digits = prefix.lower()
        if len(digits) < MIN_PREFIX:
            raise SnapshotNotFound(f"snapshot {prefix!r}: give at least {MIN_PREFIX} digits of its id")
        found = [name for name in self.names() if name.startswith(digits)]
        if not found:
            raise SnapshotNotFound(f"snapshot {prefix!r}: none begins so")
        if len(found) > 1:
            few = ", ".join(name[: len(digits) + 4] for name in found[:5])
            raise AmbiguousId(f"snapshot {prefix!r}: {len(found)} begin so ({few}, …); give more digits")
        return found[0]

    def delete(self, snapshot_id: SnapshotId) -> None:
        """Remove a record durably. Raises SnapshotNotFound.

        When the disk fails, the snapshot is shown as long as its record is
        there. If the record went but may come back with the next power cut, the
        data stays until this was repeated.
        """
        tree = None
        with contextlib.suppress(Damaged, SnapshotNotFound):
            tree = self.get(snapshot_id).tree
        with self._guard:
            if snapshot_id not in self._ids and snapshot_id not in self._deleting:
                raise SnapshotNotFound(f"snapshot {snapshot_id}: not in this repository")
            self._ids.discard(snapshot_id)
            self._kept.pop(snapshot_id, None)
            # Until the record is gone for good, a power cut could bring it back.
            self._deleting.setdefault(snapshot_id, tree)
            if tree is not None:
                self._leases.remember_deleted(tree)
        try:
            self._backend.delete(Area.SNAPSHOTS, [snapshot_id])
        except StoreError:
            if snapshot_id in self._stored():
                with self._guard:
                    self._ids.add(snapshot_id)
            raise
        with self._guard:
            self._deleting.pop(snapshot_id, None)

    def roots(self, known: set[SnapshotId]) -> set[TreeId]:
        """Return the trees that have to stay: of snapshots, and of deleted ones still leased.

        Records in `known` are not read again; those that are read are added to it.

        Raises:
            Damaged: a record cannot be read, so what it needs is not known.
        """
        with self._guard:
            trees = set(self._leases.deleted_trees())
            trees.update(tree for tree in self._deleting.values() if tree is not None)
        # The disk is asked, not `_ids`: a record that a failed commit could not
        # take back may show after the next open.
        for name in self._stored():
            if name not in known:
                with contextlib.suppress(SnapshotNotFound):
                    trees.add(self.read(name).tree)
                    known.add(name)
        return trees

    def read(self, name: SnapshotId) -> Snapshot:
        """Read a record from the disk. Raises SnapshotNotFound, Damaged."""
        try:
            record = self._backend.read(Area.SNAPSHOTS, name, 0, MAX_RECORD_BYTES + 1)
        except FileNotFoundError:
            raise SnapshotNotFound(f"snapshot {name}: not in this repository") from None
        return decode(name, record)

    def _stored(self) -> list[SnapshotId]:
        listed = self._backend.list(Area.SNAPSHOTS)
        return [SnapshotId(name) for name, _ in listed if is_snapshot_name(name)]
