"""From an overlay's upper layer to the normal form of what differs from the image.

The upper layer says the same state in many ways: a folder may be opaque or its
missing children whited out, a file may be a copy equal to the image's, a
whiteout may hide nothing. Trees say it in one way (see `tree`), so that equal
states have equal digests: entries equal to the image are left out, and an
opaque folder becomes whiteouts of just those image names that are gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from turnkeep_store.archiver import (
    Change,
    Remove,
    Segments,
    TreeSource,
    Upsert,
    extents_of,
    same_attributes,
)
from turnkeep_store.ids import TreeId
from turnkeep_store.layers import LayerView
from turnkeep_store.nodes import read_segments
from turnkeep_store.tree import Directory, Entry, NodeType


@dataclass(frozen=True, slots=True)
class RawChange:
    """A path of the upper layer as it is now; `entry` is None if it is gone.

    `linked` says that other names share the inode, so that equality with the
    image's file does not mean equal state. `same_folder` says that it is the
    folder that it was, as opaque as it was: each child that came or went since
    the parent tree is a change of its own.
    """

    path: bytes
    entry: Entry | None
    segments: Segments | None = None
    linked: bool = False
    same_folder: bool = False


class UpperView(Protocol):
    """The upper layer as a whole, for questions about paths that did not change."""

    def has(self, path: bytes) -> bool:
        """Whether the upper layer names the path."""
        ...

    def hides_image(self, path: bytes) -> bool:
        """Whether the folder or one above it is opaque."""
        ...

    def folder(self, path: bytes) -> Entry:
        """Describe a folder of the upper layer."""
        ...


def normalise(
    changes: Iterable[RawChange],
    upper: UpperView,
    image: LayerView,
    source: TreeSource,
    parent: TreeId | None,
) -> list[Change]:
    """Return what to change in the tree `parent` so that it says what the upper layer says."""
    out: dict[bytes, Change] = {}
    folders = TreeFolders(source, parent)
    for raw in changes:
        change = _normal(raw, upper, image)
        # What a folder's reconciliation said of a child gives way to the child's
        # own change, whichever comes first.
        out[raw.path] = change
        if raw.entry is not None and raw.entry.is_directory and not raw.same_folder:
            for extra in _reconcile(raw.path, upper, image, folders):
                out.setdefault(extra.path, extra)
    for path in [change.path for change in out.values() if isinstance(change, Upsert)]:
        for folder in _ancestors(path):
            # The folders above a known one are known, or follow from its own
            # change; looking at them all would cost the depth for each path.
            if folder in out:
                break
            out[folder] = Upsert(folder, upper.folder(folder))
    return list(out.values())


def _normal(raw: RawChange, upper: UpperView, image: LayerView) -> Change:
    entry = raw.entry
    if entry is None or entry.type is NodeType.WHITEOUT:
        gone = entry is not None or upper.hides_image(raw.path.rpartition(b"/")[0])
        if gone and image.lookup(raw.path) is not None:
            return Upsert(raw.path, whiteout(raw.path))
        return Remove(raw.path)
    if entry.is_directory:
        return Upsert(raw.path, entry)
    if not raw.linked and entry.type is not NodeType.HARDLINK:
        present = image.lookup(raw.path)
        if present is not None and same_attributes(present, entry) and _same_content(raw, image):
            return Remove(raw.path)
    return Upsert(raw.path, entry, raw.segments)


def _reconcile(path: bytes, upper: UpperView, image: LayerView, folders: TreeFolders) -> Iterator[Change]:
    """Yield what a changed folder says of children that the upper layer does not name."""
    hidden = set(image.names(path)) if upper.hides_image(path) else set()
    for name in sorted(hidden):
        child = path + b"/" + name
        if not upper.has(child):
            yield Upsert(child, whiteout(child))
    for name in folders.at(path).entries:
        child = path + b"/" + name
        if name not in hidden and not upper.has(child):
            yield Remove(child)


def whiteout(path: bytes) -> Entry:
    """Return the entry which says that the image's `path` is gone."""
    return Entry(name=path.rpartition(b"/")[2], type=NodeType.WHITEOUT)


class TreeFolders:
    """The folders of a tree by their paths, each looked for from the last one.

    From the top every time, a chain of nested folders would cost the square of its depth.
    """

    def __init__(self, source: TreeSource, tree: TreeId | None) -> None:
        self._source = source
        self._path = b""
        self._trees: list[TreeId | None] = [tree]

    def at(self, path: bytes) -> Directory:
        """Return the tree's folder at `path`; an empty one where it names none."""
        while self._path and path != self._path and not path.startswith(self._path + b"/"):
            self._path = self._path.rpartition(b"/")[0]
            self._trees.pop()
        rest = path[len(self._path) :].lstrip(b"/")
        for name in rest.split(b"/") if rest else ():
            entry = self._directory().entries.get(name)
            self._trees.append(entry.subtree if entry is not None else None)
        self._path = path
        return self._directory()

    def _directory(self) -> Directory:
        tree = self._trees[-1]
        return self._source.read_directory(tree) if tree is not None else Directory()


def _ancestors(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def _same_content(raw: RawChange, image: LayerView) -> bool:
    if raw.segments is None or raw.entry is None:
        return True
    size = raw.entry.size
    with image.content(raw.path) as fd:
        return extents_of(raw.segments(), size) == extents_of(read_segments(fd, size), size)
