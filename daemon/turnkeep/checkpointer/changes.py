"""What changed in a sandbox's places, as the store takes it and as people count it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from turnkeep_store.archiver import Change, Remove, TreeSource, Upsert, extents_of, same_attributes
from turnkeep_store.diff import Delta, attributes
from turnkeep_store.ids import TreeId
from turnkeep_store.layers import LayerView
from turnkeep_store.overlay import RawChange, TreeFolders, normalise
from turnkeep_store.tree import Entry, NodeType

from turnkeep.checkpointer.inspection import PlaceReading, opaque_now
from turnkeep.checkpointer.view import ContainerView, PlaceBaseline
from turnkeep.errors import CaptureFailed
from turnkeep.paths import ROOTFS, display


def changes(
    reading: PlaceReading,
    image: LayerView | None,
    baseline: PlaceBaseline,
    source: TreeSource,
    parent: TreeId | None,
) -> list[Change]:
    raw = [_compared(change, reading, baseline) for change in reading.changes()]
    if image is not None:
        upper = _Upper(reading, baseline, image, source, parent)
        return normalise(raw, upper, image, source, parent)
    return [
        Remove(change.path) if change.entry is None else Upsert(change.path, change.entry, change.segments)
        for change in raw
    ]


def net_changes(
    reading: PlaceReading,
    image: LayerView | None,
    baseline: PlaceBaseline,
    source: TreeSource,
    old: Entry | None,
) -> list[Delta]:
    """Return the paths, from the top of the sandbox's tree, whose state is not that of the tree entry `old`.

    It is what differs between that tree and the one that a checkpoint would have,
    without building that; folders that differ in time only are left out. The place
    was read against a baseline of its own.
    """
    slot = reading.place.slot
    found = [] if old is not None and same_attributes(old, reading.root) else [Delta(slot, old, reading.root)]
    if reading.place.is_file:
        read = reading.reads.get(b"")
        if read is None or read.change.entry is None:
            return found
        now = _content_of(read.change)
        return [] if _is_same(old, now) else [Delta(slot, old, now)]
    parent = old.subtree if old is not None else None
    folders = TreeFolders(source, parent)
    for change in changes(reading, image, baseline, source, parent):
        head, _, name = change.path.rpartition(b"/")
        before = folders.at(head).entries.get(name)
        after = None if isinstance(change, Remove) else _content_of(change)
        delta = Delta(slot + b"/" + change.path, before, after)
        if not _is_same(before, after) and not only_folder_time(delta, image):
            found.append(delta)
    return found


def _content_of(change: Upsert | RawChange) -> Entry:
    """Return an entry as the tree would hold it, its content named."""
    assert change.entry is not None
    if change.segments is None:
        return change.entry
    return change.entry.holding(extents_of(change.segments(), change.entry.size))


def _is_same(before: Entry | None, after: Entry | None) -> bool:
    if before is None or after is None:
        return before is after
    return attributes(before) == attributes(after)


def _compared(change: RawChange, reading: PlaceReading, baseline: PlaceBaseline) -> RawChange:
    """Say of a folder whether it is the one that it was at the baseline."""
    if change.entry is None or not change.entry.is_directory:
        return change
    before, now = baseline.sight.get(change.path), reading.sight.get(change.path)
    read = reading.reads.get(change.path)
    same = (
        before is not None
        and now is not None
        and read is not None
        and before[:2] == now[:2]
        and read.opaque == (change.path in baseline.opaque)
    )
    return RawChange(change.path, change.entry, same_folder=True) if same else change


class _Upper:
    """The upper layer as a reading saw it (see `overlay.UpperView`)."""

    def __init__(
        self,
        reading: PlaceReading,
        baseline: PlaceBaseline,
        image: LayerView,
        source: TreeSource,
        parent: TreeId | None,
    ) -> None:
        self._reading = reading
        self._opaque = opaque_now(reading, baseline)
        self._hides: dict[bytes, bool] = {}
        self._image = image
        self._folders = TreeFolders(source, parent)

    def has(self, path: bytes) -> bool:
        return path in self._reading.sight

    def hides_image(self, path: bytes) -> bool:
        walked, hides = [], False
        while path and not hides:
            known = self._hides.get(path)
            if known is not None:
                hides = known
                break
            walked.append(path)
            hides = path in self._opaque
            path = path.rpartition(b"/")[0]
        self._hides.update(dict.fromkeys(walked, hides))
        return hides

    def folder(self, path: bytes) -> Entry:
        """Describe a folder that did not change: as the tree says, or else as the image does."""
        read = self._reading.reads.get(path)
        if read is not None and read.change.entry is not None:
            return read.change.entry
        head, _, name = path.rpartition(b"/")
        known = self._folders.at(head).entries.get(name)
        if known is not None and known.is_directory:
            return known
        present = self._image.lookup(path)
        if present is None or present.type is not NodeType.DIRECTORY:
            raise CaptureFailed(f"folder {display(path)} is in neither the last checkpoint nor the image")
        status = self._reading.sight.get(path)
        return present if status is None else replace(present, mtime_ns=status[3])


def is_in(changed: set[bytes], slot: bytes, path: bytes) -> bool:
    return (slot + b"/" + path if path else slot) in changed


def count(deltas: Iterable[Delta], image: LayerView | None) -> tuple[int, int]:
    """Return how many paths differ, folders that differ in time only left out, and their new bytes."""
    files = size = 0
    for delta in deltas:
        if only_folder_time(delta, image):
            continue
        files += 1
        if delta.after is not None and (delta.before is None or delta.before.content != delta.after.content):
            size += delta.after.size
    return files, size


def image_of(view: ContainerView) -> LayerView | None:
    """Return the layers below the root file system."""
    return next((view.image_view(place) for place in view.covered() if place.is_rootfs), None)


def only_folder_time(delta: Delta, image: LayerView | None) -> bool:
    """Whether a folder is named only because something beneath it changed.

    A tree leaves out a folder that equals the image's; once it names the folder,
    that alone is no change of it.
    """
    before, after = delta.before, delta.after
    slot, _, path = delta.path.partition(b"/")
    if image is not None and slot == ROOTFS and path and (before is None or after is None):
        present = image.lookup(path)
        before, after = before or present, after or present
    if before is None or after is None or not (before.is_directory and after.is_directory):
        return False
    return same_attributes(before, after)
