"""Reading what changed: ahead of the freeze, and again inside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from turnkeep_store.beneath import Descent
from turnkeep_store.nodes import entry_of
from turnkeep_store.overlay import RawChange
from turnkeep_store.tree import Entry

from turnkeep.checkpointer.arena import CopyAhead
from turnkeep.checkpointer.view import ContainerView, PlaceBaseline, PlaceView
from turnkeep.config import Limits
from turnkeep.model import MountKind
from turnkeep.watch.host_folders import HostFolders
from turnkeep.watch.look import look_again
from turnkeep.watch.open_files import WritableFiles, mapped_files, writable_files
from turnkeep.watch.reading import FirstName, Read, StoreContent, read_node, read_path, sync_mapped
from turnkeep.watch.scan import Excluded, differences, scan, status_of, too_fresh
from turnkeep.watch.table import Sight, Status, is_linked
from turnkeep.watch.trail import Collected, TrackedFolders, Trail

_FILE = b""
"""The path under which a place that is a single file knows that file."""

_INODE, _CTIME = 1, 2
"""Where they stand in a `Status`."""

_TRACKED = (MountKind.ROOTFS, MountKind.VOLUME)


@dataclass(slots=True)
class PlaceReading:
    """One place as it was read: every path's status, and the content of what changed.

    `looked` are the paths whose status was taken; None if that is all of them.
    """

    place: PlaceView
    root: Entry
    sight: Sight
    reads: dict[bytes, Read] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    looked: frozenset[bytes] | None = None
    mapped: frozenset[bytes] = frozenset()
    trail: Trail = field(default_factory=Trail)
    started_ns: int = 0
    read_ns: int = 0
    generation: int = 0

    def changes(self) -> list[RawChange]:
        """Return what differs from the baseline, parents before children."""
        found = {path: RawChange(path, None) for path in self.gone}
        found.update({path: read.change for path, read in self.reads.items()})
        return [found[path] for path in sorted(found)]

    def status_of_looked(self) -> Mapping[bytes, Status]:
        """Return the status of every path that was looked at and is there."""
        if self.looked is None:
            return dict(self.sight.items())
        found = ((path, self.sight.get(path)) for path in self.looked)
        return {path: status for path, status in found if status is not None}

    def unsettled(self) -> set[bytes]:
        """Return paths whose reading may be out of date though their status is the same."""
        read = ((path, self.sight.get(path)) for path in self.reads)
        fresh = too_fresh({path: status for path, status in read if status is not None}, self.read_ns)
        return self.torn() | fresh | self.mapped

    def torn(self) -> set[bytes]:
        """Return paths that changed while they were read."""
        # Also one that was not found when it was read: it may be back, as it was. And
        # one that was another file then: folders may have changed places, and back.
        seen = self.sight.get
        return {path for path, read in self.reads.items() if read.status is None or read.status != seen(path)}


class _Options(TypedDict):
    """How a path is read (see `read_path`)."""

    overlay: bool
    first_name: FirstName
    hold_below: int
    store: StoreContent


class Reader:
    """Reads the places of one container against a baseline. One capture, one thread.

    With `audit`, what is followed is compared with a scan; `missed` are the paths
    of whose change nobody told, which is a defect, and mended by the scan.
    """

    def __init__(
        self,
        view: ContainerView,
        limits: Limits,
        ahead: CopyAhead,
        host_folders: HostFolders,
        tracked: TrackedFolders | None = None,
        *,
        audit: bool = False,
    ) -> None:
        self.audit = audit
        self.missed: list[bytes] = []
        self._view = view
        self._limits = limits
        self._ahead = ahead
        self._host_folders = host_folders
        self._tracked = tracked
        self._mappings = WritableFiles()
        self._open = WritableFiles()

    def look_for_mappings(self) -> None:
        """Find out which files are mapped shared and writable, or open for writing, at this moment."""
        pids = self._view.pids()
        self._mappings = mapped_files(pids)
        # Not everything that is written through a descriptor is reported before it is closed.
        self._open = writable_files(pids) if self._tracked is not None else WritableFiles()

    def read(self, place: PlaceView, baseline: PlaceBaseline) -> PlaceReading:
        """Read what changed against the baseline.

        Raises:
            OSError, StoreError, ResourceExhausted: reading or storing failed.
        """
        fd = place.open(self._view.init_pid)
        try:
            mapped = self._inside(place, self._mappings.paths)
            generation = self._generation(place)
            if generation and not mapped and self._is_quiet(place, baseline):
                root = entry_of(fd, place.slot)
                return PlaceReading(place, root, baseline.sight, looked=frozenset(), generation=generation)
            collected = self._collect(place)
            known = baseline.trail.follow(collected)
            self._count(collected, known=known)
            reading = self._against(place, fd, mapped, baseline, collected, known=known)
            if known and self.audit and (missed := self._missed(place, fd, reading, baseline)):
                self.missed.extend(os.path.join(os.fsencode(place.mount.target), path) for path in missed)
                collected = self._collect(place)
                baseline.trail.follow(collected)
                reading = self._against(place, fd, mapped, baseline, collected, known=False)
            reading.generation = generation
            return reading
        finally:
            os.close(fd)

    def _against(
        self,
        place: PlaceView,
        fd: int,
        mapped: frozenset[bytes],
        baseline: PlaceBaseline,
        collected: Collected | None,
        *,
        known: bool,
    ) -> PlaceReading:
        """Read what differs from the baseline, among what was touched since if that is known."""
        before = baseline.sight if known else None
        reading = self._look(place, fd, mapped, before, baseline.trail, baseline.doubtful)
        reading.trail = _begun(collected)
        doubtful = baseline.doubtful | baseline.fresh | reading.mapped
        self._compare(reading, baseline.sight, baseline.sight, doubtful, fd)
        return reading

    def _missed(
        self, place: PlaceView, fd: int, reading: PlaceReading, baseline: PlaceBaseline
    ) -> list[bytes]:
        """Return the paths of whose change nobody told: a scan finds them otherwise than the reading.

        The sandbox may run: what was touched between the two is none.
        """
        found = scan(
            fd, overlay=place.is_rootfs, exclude=place.exclude, max_paths=self._limits.max_paths
        ).files
        collected = self._collect(place)
        baseline.trail.follow(collected)
        if not reading.trail.follow(collected):
            return []
        excused = reading.mapped | self._inside(place, self._open.paths)
        changed, gone = differences(reading.sight, Sight(found))
        missed = []
        for path in sorted((changed | gone) - excused):
            known, now = reading.sight.get(path), found.get(path)
            inodes = [status[_INODE] for status in (known, now) if status is not None]
            touched = any(reading.trail.may_have_touched(path, inode) for inode in inodes)
            if not touched and not _is_untold(known, now):
                missed.append(path)
        return missed

    def read_again(self, earlier: PlaceReading, baseline: PlaceBaseline) -> PlaceReading:
        """Bring an earlier reading up to date: read what changed since."""
        fd = earlier.place.open(self._view.init_pid)
        try:
            mapped = self._inside(earlier.place, self._mappings.paths)
            if earlier.place.mount.kind is not MountKind.TMPFS:
                sync_mapped(fd, mapped)
            generation = self._generation(earlier.place)
            collected = self._collect(earlier.place)
            baseline.trail.follow(collected)
            known = earlier.trail.follow(collected)
            # What is merely fresh was reported if it changed again.
            again = earlier.torn() | earlier.mapped
            reading = self._look(
                earlier.place, fd, mapped, earlier.sight if known else None, earlier.trail, again
            )
            reading.trail = _begun(collected)
            reading.generation = generation
            doubtful = earlier.unsettled() | reading.mapped
            reading.reads = {path: read for path, read in earlier.reads.items() if path in reading.sight}
            reading.gone = {path for path in earlier.gone if path not in reading.sight}
            if known and earlier.looked is not None and reading.looked is not None:
                reading.looked |= earlier.looked
            elif known:
                reading.looked = None
            self._compare(reading, earlier.sight, baseline.sight, doubtful, fd)
            return reading
        finally:
            os.close(fd)

    def read_touched(self, place: PlaceView, baseline: PlaceBaseline, touched: Trail) -> PlaceReading:
        """Read what changed, when only `touched` can have: inside a freeze, by us."""
        # A host folder does not stand still with the container.
        if place.is_file or place.mount.kind is MountKind.BIND:
            return self.read(place, baseline)
        fd = place.open(self._view.init_pid)
        try:
            started_ns = time.time_ns()
            found = self._look_at(place, fd, baseline.sight, touched)
            root = entry_of(fd, place.slot, overlay=place.is_rootfs)
            sight, looked = baseline.sight.changed(found), frozenset(found)
            reading = PlaceReading(place, root, sight, looked=looked, started_ns=started_ns)
            # What we wrote is reported as well, and looked at once more in the next turn.
            reading.trail = baseline.trail.copy()
            reading.mapped = self._inside(place, self._mappings.paths)
            self._compare(reading, baseline.sight, baseline.sight, (), fd)
            return reading
        finally:
            os.close(fd)

    def _collect(self, place: PlaceView) -> Collected | None:
        """Return what was touched in a place since this was last asked; None where nobody knows."""
        if self._tracked is None or not place.host_path or place.is_file:
            return None
        return self._tracked.collect(place.host_path) if place.mount.kind in _TRACKED else None

    def _count(self, collected: Collected | None, *, known: bool) -> None:
        """Count a look at a place that can be followed."""
        if self._tracked is not None and collected is not None:
            self._tracked.figures.followed += known
            self._tracked.figures.scanned += not known

    def _generation(self, place: PlaceView) -> int:
        """Return a watched host folder's generation; 0 for every other place."""
        if place.mount.kind is not MountKind.BIND or place.is_file:
            return 0
        return self._host_folders.watch(place.host_path).generation

    def _is_quiet(self, place: PlaceView, baseline: PlaceBaseline) -> bool:
        if not baseline.generation or baseline.doubtful or baseline.fresh:
            return False
        folder = self._host_folders.watch(place.host_path)
        return folder.unchanged_since(baseline.generation, baseline.sight)

    def _look(
        self,
        place: PlaceView,
        fd: int,
        mapped: frozenset[bytes],
        known: Sight | None,
        trail: Trail,
        again: Collection[bytes],
    ) -> PlaceReading:
        """Take the status of what may have changed since `known`; of everything if that is None."""
        started_ns = time.time_ns()
        overlay = place.is_rootfs
        looked = None
        if place.is_file:
            sight = Sight({_FILE: status_of(os.fstat(fd))})
        elif known is None:
            most = self._limits.max_paths
            sight = Sight(scan(fd, overlay=overlay, exclude=place.exclude, max_paths=most).files)
        else:
            touched = trail.copy()
            touched.paths.update(again, mapped, self._inside(place, self._open.paths))
            touched.inodes |= self._open.inodes | self._mappings.inodes
            found = self._look_at(place, fd, known, touched)
            sight, looked = known.changed(found), frozenset(found)
        root = entry_of(fd, place.slot, overlay=overlay)
        # A file that was made without a name is mapped under none, whatever it was linked to since.
        mapped |= {path for inode in self._mappings.inodes for path in sight.names(inode)}
        # The content of an inode with several names is read under the first.
        mapped |= {first for path in mapped if (first := sight.first_name(path)) is not None}
        return PlaceReading(place, root, sight, looked=looked, mapped=mapped, started_ns=started_ns)

    def _look_at(self, place: PlaceView, fd: int, known: Sight, touched: Trail) -> dict[bytes, Status | None]:
        return look_again(
            fd,
            known,
            touched.paths,
            touched.deep,
            touched.inodes,
            overlay=place.is_rootfs,
            exclude=place.exclude,
            max_paths=self._limits.max_paths,
        )

    def _compare(
        self, reading: PlaceReading, before: Sight, baseline: Sight, doubtful: Collection[bytes], fd: int
    ) -> None:
        """Read what differs from `before`, and note what the baseline has and is gone."""
        changed, gone = differences(before, reading.sight, doubtful, reading.looked)
        reading.gone.update(path for path in gone if path in baseline)
        reading.read_ns = time.time_ns()
        self._read_paths(reading, fd, changed | _relinked(before, reading))

    def _read_paths(self, reading: PlaceReading, fd: int, paths: Iterable[bytes]) -> None:
        with Descent(fd) as way:
            # In order, so that each is near to the one before.
            for path in sorted(paths):
                options = _Options(
                    overlay=reading.place.is_rootfs,
                    first_name=reading.sight.first_name,
                    hold_below=min(self._limits.copy_ahead_bytes, self._ahead.room_bytes),
                    store=self._ahead.store,
                )
                # A place that is a single file has no paths to open: it is open already.
                is_file = reading.place.is_file
                read = read_node(fd, path, **options) if is_file else read_path(way, path, **options)
                self._ahead.account(read.held_bytes)
                reading.reads[path] = read

    def _inside(self, place: PlaceView, files: set[bytes]) -> frozenset[bytes]:
        """Return which of the files, absolute in the container, lie in a place, relative to it."""
        target = os.fsencode(place.mount.target).rstrip(b"/") + b"/"
        inside = {path[len(target) :] for path in files if path.startswith(target)}
        excluded = Excluded(place.exclude)
        return frozenset(path for path in inside if path not in excluded)


def _is_untold(before: Status | None, now: Status | None) -> bool:
    """Whether two statuses differ in nothing but ctime.

    The access time set alone and the flags of chattr(1) change it without any
    event, and neither is kept.
    """
    if before is None or now is None:
        return False
    return (*before[:_CTIME], *before[_CTIME + 1 :]) == (*now[:_CTIME], *now[_CTIME + 1 :])


def _begun(collected: Collected | None) -> Trail:
    """Return the trail of a state that was recorded after a collection."""
    return Trail(collected.number if collected is not None else 0)


def _relinked(before: Sight, reading: PlaceReading) -> set[bytes]:
    """Return the names whose inode is known under another name than it was.

    Their own status need not have changed: a folder above that name was renamed, say.
    """
    now = reading.sight
    paths = _linked(before, reading.looked) | _linked(now, reading.looked)
    return {path for path in paths if path in now and before.first_name(path) != now.first_name(path)}


def _linked(sight: Sight, paths: Iterable[bytes] | None) -> set[bytes]:
    if paths is None:
        return {path for path, status in sight.items() if is_linked(status)}
    return {path for path in paths if (status := sight.get(path)) is not None and is_linked(status)}


def baseline_after(reading: PlaceReading, earlier: PlaceBaseline) -> PlaceBaseline:
    """Return the baseline for turns after a capture that ended with this reading."""
    fresh = too_fresh(reading.status_of_looked(), reading.started_ns)
    if reading.looked is not None:
        fresh |= {path for path in earlier.fresh if path not in reading.looked}
    return PlaceBaseline(
        reading.sight,
        opaque_now(reading, earlier),
        set(reading.mapped),
        fresh,
        reading.trail.copy(),
        reading.generation,
    )


def opaque_now(reading: PlaceReading, earlier: PlaceBaseline) -> set[bytes]:
    """Return the opaque folders: those that were and did not change, and those read as such."""
    kept = {path for path in earlier.opaque if path in reading.sight and path not in reading.reads}
    return kept | {path for path, read in reading.reads.items() if read.opaque}


def settle_unchanged(
    baseline: PlaceBaseline, reading: PlaceReading, is_changed: Callable[[bytes], bool]
) -> None:
    """Accept the new status of paths that were read and found to have their old content.

    Otherwise each following turn would read them again.
    """
    fresh = too_fresh(
        {path: read.status for path, read in reading.reads.items() if read.status is not None},
        reading.read_ns,
    )
    accepted: dict[bytes, Status | None] = {}
    left = set()
    for path, read in reading.reads.items():
        if is_changed(path) or read.status is None:
            left.add(path)
            continue
        accepted[path] = read.status
        baseline.doubtful.discard(path)
        (baseline.fresh.add if path in fresh else baseline.fresh.discard)(path)
        (baseline.opaque.add if read.opaque else baseline.opaque.discard)(path)
    for path in reading.gone:
        if is_changed(path):
            left.add(path)
        else:
            accepted[path] = None
            baseline.opaque.discard(path)
    baseline.sight.accept(accepted)
    # Stores to pages that are dirty now leave no trace, and the mapping may be
    # gone by the next turn.
    baseline.doubtful |= reading.mapped
    baseline.trail = reading.trail.copy()
    baseline.trail.paths |= left
    if not left:
        baseline.generation = reading.generation
