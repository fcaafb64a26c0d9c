"""Changed paths and a parent tree make a new tree.

Only folders on the way to a change are read and written again; everything else
is shared with the parent by its id, which is what makes a checkpoint cost what
changed and not what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from turnkeep_store.blobs import BlobSink
from turnkeep_store.chunks import write_file
from turnkeep_store.errors import BlobNotFound, StoreError
from turnkeep_store.ids import BlobId, Digest, TreeId, blob_id
from turnkeep_store.kinds import BlobKind
from turnkeep_store.layers import LayerView
from turnkeep_store.tree import EMPTY_DIGEST, Directory, Entry, Extent, NodeType

Segments = Callable[[], Iterable[tuple[int, bytes]]]
"""Gives a file's content as ascending (offset, data); gaps are holes. May be called again."""


@dataclass(frozen=True, slots=True)
class Upsert:
    """The path is, or becomes, this entry.

    A file's content comes as `segments`, or is in the sink already and named by
    the entry. For a folder, `entry` sets the attributes; its children stay as they are.
    """

    path: bytes
    entry: Entry
    segments: Segments | None = None


@dataclass(frozen=True, slots=True)
class Remove:
    """The tree no longer names the path, nor anything beneath it."""

    path: bytes


Change = Upsert | Remove

Keep = Callable[[TreeId, Directory, int], None]
"""Takes a folder that was put, with the length of its encoding (`Repository.remember`)."""


@dataclass(frozen=True, slots=True)
class Archived:
    """A tree in a sink: its root folder and the digest of its normal form."""

    tree: TreeId
    digest: Digest


class TreeSource(Protocol):
    """Where the parent's folders are read."""

    def read_directory(self, tree: TreeId) -> Directory: ...


@dataclass(slots=True)
class _Node:
    """What changes at one name; `path` is relative to the tree's root."""

    path: bytes
    change: Change | None = None
    children: dict[bytes, _Node] = field(default_factory=dict)


def archive(
    sink: BlobSink,
    source: TreeSource,
    parent: TreeId | None,
    changes: Iterable[Change],
    image: LayerView | None = None,
    keep: Keep | None = None,
) -> Archived:
    """Apply `changes` to the tree `parent` and return the new tree.

    Every folder that a change lies in must be in the parent or among the
    changes. With `image`, a folder that names nothing any more and equals the
    image's is left out, as the normal form wants it. `keep` is given each folder
    that was put.

    Raises:
        StoreError: a change lies in no folder, or the sink or source failed.
    """
    root = _Node(b"")
    nodes = {b"": root}
    for change in changes:
        _place(nodes, change)
    start = source.read_directory(parent) if parent is not None else Directory()
    # Folders are entered in pre-order and written in reverse, so that children
    # come before their parent without recursion.
    order: list[tuple[_Node, Directory]] = [(root, start.copy())]
    position = 0
    while position < len(order):
        node, directory = order[position]
        position += 1
        for name, child in node.children.items():
            if child.children:
                order.append((child, _below(source, directory.entries.get(name), child)))
    built: dict[bytes, Directory] = {}
    for node, directory in reversed(order):
        for name, child in node.children.items():
            _apply(sink, directory, name, child, built.pop(child.path, None), image, keep)
        built[node.path] = directory
    final = built[b""]
    return Archived(_put(sink, final, keep), final.digest())


def _put(sink: BlobSink, directory: Directory, keep: Keep | None) -> TreeId:
    data = directory.encode()
    tree = TreeId(sink.put(data, BlobKind.TREE))
    if keep is not None:
        keep(tree, directory, len(data))
    return tree


def _place(nodes: dict[bytes, _Node], change: Change) -> None:
    """Make the node of a changed path, and those above it that are not there yet."""
    missing = []
    path = change.path
    while path not in nodes:
        missing.append(path)
        path = path.rpartition(b"/")[0]
    node = nodes[path]
    for path in reversed(missing):
        child = nodes[path] = _Node(path)
        node.children[path.rpartition(b"/")[2]] = child
        node = child
    node.change = change


def _below(source: TreeSource, entry: Entry | None, node: _Node) -> Directory:
    """Return the folder that changes below `node` apply to."""
    replaced = isinstance(node.change, Upsert) and not node.change.entry.is_directory
    if replaced or entry is None or entry.subtree is None:
        return Directory()
    return source.read_directory(entry.subtree).copy()


def _apply(
    sink: BlobSink,
    directory: Directory,
    name: bytes,
    node: _Node,
    below: Directory | None,
    image: LayerView | None,
    keep: Keep | None,
) -> None:
    """Change one name in `directory`, whose changed children are in `below`."""
    entry = directory.entries.get(name)
    match node.change:
        case Remove():
            directory.entries.pop(name, None)
            return
        case Upsert(entry=wanted, segments=segments) if not wanted.is_directory:
            content = write_file(sink, segments(), wanted.size) if segments is not None else wanted.content
            directory.entries[name] = wanted.holding(content, name)
            return
        case Upsert(entry=wanted):
            old = entry if entry is not None and entry.is_directory else None
            entry = replace(
                wanted,
                name=name,
                subtree=old.subtree if old else None,
                digest=old.digest if old else None,
            )
    if entry is None or not entry.is_directory:
        if below is not None and below.entries:
            raise StoreError(f"changes below {node.path!r}, which is no folder")
        return
    if below is not None or entry.subtree is None:
        below = below or Directory()
        entry = replace(entry, subtree=_put(sink, below, keep), digest=below.digest())
    if image is not None and entry.digest == EMPTY_DIGEST and _as_image(image, node.path, entry):
        directory.entries.pop(name, None)
        return
    directory.entries[name] = entry


def _as_image(image: LayerView, path: bytes, entry: Entry) -> bool:
    present = image.lookup(path)
    if present is None or present.type is not NodeType.DIRECTORY:
        return False
    return same_attributes(present, entry)


def same_attributes(a: Entry, b: Entry) -> bool:
    """Whether two entries differ in content, names or times of folders only."""
    times = a.type is NodeType.DIRECTORY or a.mtime_ns == b.mtime_ns
    return times and (a.type, a.mode, a.uid, a.gid, a.rdev, a.size, a.xattrs, a.target) == (
        b.type,
        b.mode,
        b.uid,
        b.gid,
        b.rdev,
        b.size,
        b.xattrs,
        b.target,
    )


class _IdsOnly:
    """A sink that keeps nothing."""

    def put(self, data: bytes | bytearray | memoryview, kind: BlobKind) -> BlobId:
        return blob_id(data)

    def get(self, blob: BlobId) -> bytes:
        raise BlobNotFound(blob.hex())


def extents_of(segments: Iterable[tuple[int, bytes]], size: int) -> tuple[Extent, ...]:
    """Return what an entry's `content` would be, storing nothing.

    Equal extents mean equal content: cuts and holes follow from the bytes alone.
    """
    return write_file(_IdsOnly(), segments, size)
