"""Reading what changed: ahead of the freeze, and again inside it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from turnkeep_store.nodes import entry_of
from turnkeep_store.overlay import RawChange
from turnkeep_store.tree import Entry

from turnkeep.checkpointer.arena import CopyAhead
from turnkeep.checkpointer.view import ContainerView, PlaceBaseline, PlaceView
from turnkeep.config import Limits
from turnkeep.model import MountKind
from turnkeep.watch.host_folders import HostFolders, unchanged_scan
from turnkeep.watch.reading import Read, read_node, read_path, sync_mapped
from turnkeep.watch.scan import Scan, differences, mapped_files, rescan, scan, status_of, too_fresh

_FILE = b""
"""The path under which a place that is a single file knows that file."""


@dataclass(slots=True)
class PlaceReading:
    """One place as it was read: every path's status, and the content of what changed."""

    place: PlaceView
    root: Entry
    scan: Scan
    links: dict[bytes, bytes]
    reads: dict[bytes, Read] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)
    mapped: frozenset[bytes] = frozenset()
    read_ns: int = 0
    generation: int = 0

    def changes(self) -> list[RawChange]:
        """Return what differs from the baseline, parents before children."""
        found = {path: RawChange(path, None) for path in self.gone}
        found.update({path: read.change for path, read in self.reads.items()})
        return [found[path] for path in sorted(found)]

    def unsettled(self) -> set[bytes]:
        """Return paths whose reading may be out of date though their status is the same."""
        # Also one that was not found when it was read: it may be back, as it was.
        torn = {path for path, read in self.reads.items() if read.status is None}
        read = {path: self.scan.files[path] for path in self.reads if path in self.scan.files}
        return torn | (too_fresh(read, self.read_ns) & read.keys()) | self.mapped


class Reader:
    """Reads the places of one container against a baseline. One capture, one thread."""

    def __init__(
        self, view: ContainerView, limits: Limits, ahead: CopyAhead, host_folders: HostFolders
    ) -> None:
        self._view = view
        self._limits = limits
        self._ahead = ahead
        self._host_folders = host_folders
        self._mappings: set[bytes] = set()

    def look_for_mappings(self) -> None:
        """Find out which files are mapped shared and writable at this moment."""
        self._mappings = mapped_files(self._view.pids())

    def read(self, place: PlaceView, baseline: PlaceBaseline) -> PlaceReading:
        """Read what changed against the baseline.

        Raises:
            OSError, StoreError, ResourceExhausted: reading or storing failed.
        """
        fd = place.open(self._view.init_pid)
        try:
            mapped = self._mapped(place)
            generation = self._generation(place)
            if generation and not mapped and self._is_quiet(place, baseline):
                found = unchanged_scan(baseline.files)
                root = entry_of(fd, place.slot)
                return PlaceReading(place, root, found, found.hardlinks(), generation=generation)
            reading = self._scan(place, fd, mapped)
            reading.generation = generation
            doubtful = baseline.doubtful | reading.mapped
            changed, gone = differences(baseline.files, reading.scan.files, doubtful)
            reading.gone.update(gone)
            reading.read_ns = time.time_ns()
            self._read_paths(reading, fd, set(changed) | _relinked(Scan(baseline.files).hardlinks(), reading))
            return reading
        finally:
            os.close(fd)

    def read_again(self, earlier: PlaceReading, baseline: PlaceBaseline) -> PlaceReading:
        """Bring an earlier reading up to date: scan, and read what changed since."""
        fd = earlier.place.open(self._view.init_pid)
        try:
            mapped = self._mapped(earlier.place)
            if earlier.place.mount.kind is not MountKind.TMPFS:
                sync_mapped(fd, mapped)
            generation = self._generation(earlier.place)
            reading = self._scan(earlier.place, fd, mapped)
            reading.generation = generation
            doubtful = earlier.unsettled() | reading.mapped
            changed, _ = differences(earlier.scan.files, reading.scan.files, doubtful)
            reading.read_ns = time.time_ns()
            wanted = set(changed) | _relinked(earlier.links, reading)
            reading.reads = {
                path: read
                for path, read in earlier.reads.items()
                if path not in wanted and path in reading.scan.files
            }
            reading.gone = {path for path in baseline.files if path not in reading.scan.files}
            self._read_paths(reading, fd, wanted)
            return reading
        finally:
            os.close(fd)

    def read_touched(
        self, earlier: PlaceReading, baseline: PlaceBaseline, touched: Collection[bytes]
    ) -> PlaceReading:
        """Read what changed, when only `touched` paths can have: inside a freeze, by us."""
        # A host folder does not stand still with the container.
        if earlier.place.is_file or earlier.place.mount.kind is MountKind.BIND:
            return self.read(earlier.place, baseline)
        fd = earlier.place.open(self._view.init_pid)
        try:
            overlay = earlier.place.is_rootfs
            found = rescan(fd, earlier.scan, touched, overlay=overlay, exclude=earlier.place.exclude)
            root = entry_of(fd, earlier.place.slot, overlay=overlay)
            reading = PlaceReading(earlier.place, root, found, found.hardlinks(), read_ns=time.time_ns())
            changed, gone = differences(baseline.files, found.files)
            reading.gone.update(gone)
            self._read_paths(reading, fd, changed)
            return reading
        finally:
            os.close(fd)

    def _generation(self, place: PlaceView) -> int:
        """Return a watched host folder's generation; 0 for every other place."""
        if place.mount.kind is not MountKind.BIND or place.is_file:
            return 0
        return self._host_folders.watch(place.host_path).generation

    def _is_quiet(self, place: PlaceView, baseline: PlaceBaseline) -> bool:
        if not baseline.generation or baseline.doubtful:
            return False
        folder = self._host_folders.watch(place.host_path)
        return folder.unchanged_since(baseline.generation, baseline.files)

    def _scan(self, place: PlaceView, fd: int, mapped: frozenset[bytes]) -> PlaceReading:
        if place.is_file:
            status = os.fstat(fd)
            result = Scan({_FILE: status_of(status)}, time.time_ns())
            return PlaceReading(place, entry_of(fd, place.slot), result, {}, mapped=mapped)
        result = scan(fd, overlay=place.is_rootfs, exclude=place.exclude, max_paths=self._limits.max_paths)
        root = entry_of(fd, place.slot, overlay=place.is_rootfs)
        links = result.hardlinks()
        # The content of an inode with several names is read under the first.
        mapped |= {links[path] for path in mapped if path in links}
        return PlaceReading(place, root, result, links, mapped=mapped)

    def _read_paths(self, reading: PlaceReading, fd: int, paths: Iterable[bytes]) -> None:
        # A place that is a single file has no paths to open: it is open already.
        take = read_node if reading.place.is_file else read_path
        for path in paths:
            read = take(
                fd,
                path,
                overlay=reading.place.is_rootfs,
                links=reading.links,
                hold_below=min(self._limits.copy_ahead_bytes, self._ahead.room_bytes),
                store=self._ahead.store,
            )
            self._ahead.account(read.held_bytes)
            reading.reads[path] = read

    def _mapped(self, place: PlaceView) -> frozenset[bytes]:
        """Return the files of a place that the container's processes map shared and writable."""
        target = os.fsencode(place.mount.target).rstrip(b"/") + b"/"
        inside = {path[len(target) :] for path in self._mappings if path.startswith(target)}
        return frozenset(path for path in inside if not _is_excluded(path, place.exclude))


def _relinked(links: Mapping[bytes, bytes], now: PlaceReading) -> set[bytes]:
    """Return the names whose inode is known under another name than `links` says.

    Their own status need not have changed: a folder above that name was renamed, say.
    """
    paths = links.keys() | now.links.keys()
    return {path for path in paths if links.get(path) != now.links.get(path)} & now.scan.files.keys()


def _is_excluded(path: bytes, exclude: frozenset[bytes]) -> bool:
    return any(path == each or path.startswith(each + b"/") for each in exclude)


def baseline_after(reading: PlaceReading, earlier: PlaceBaseline) -> PlaceBaseline:
    """Return the baseline for turns after a capture that ended with this reading."""
    doubtful = too_fresh(reading.scan.files, reading.scan.started_ns)
    return PlaceBaseline(
        reading.scan.files, opaque_now(reading, earlier), doubtful | set(reading.mapped), reading.generation
    )


def opaque_now(reading: PlaceReading, earlier: PlaceBaseline) -> set[bytes]:
    """Return the opaque folders: those that were and did not change, and those read as such."""
    kept = {path for path in earlier.opaque if path in reading.scan.files and path not in reading.reads}
    return kept | {path for path, read in reading.reads.items() if read.opaque}


def settle_unchanged(
    baseline: PlaceBaseline, reading: PlaceReading, is_changed: Callable[[bytes], bool]
) -> None:
    """Accept the new status of paths that were read and found to have their old content.

    Otherwise each following turn would read them again.
    """
    fresh = too_fresh(reading.scan.files, reading.read_ns) | reading.mapped
    for path, read in reading.reads.items():
        if is_changed(path) or read.status is None or path in fresh:
            continue
        baseline.files[path] = read.status
        baseline.doubtful.discard(path)
        (baseline.opaque.add if read.opaque else baseline.opaque.discard)(path)
    # Stores to pages that are dirty now leave no trace, and the mapping may be
    # gone by the next turn.
    baseline.doubtful |= reading.mapped
    for path in [path for path in reading.gone if not is_changed(path)]:
        baseline.files.pop(path, None)
        baseline.opaque.discard(path)
