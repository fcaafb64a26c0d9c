"""Finding all blobs that a tree needs."""

from __future__ import annotations

from collections.abc import Iterable

from turnkeep_store.blobs import BlobSource
from turnkeep_store.blobset import BlobSet
from turnkeep_store.chunks import read_list
from turnkeep_store.ids import BlobId, TreeId
from turnkeep_store.tree import Directory, Extent, ExtentKind


def mark(source: BlobSource, trees: Iterable[TreeId], live: BlobSet) -> None:
    """Add to `live` every blob that the trees need, themselves included.

    What is in `live` already is not read again.

    Raises:
        BlobNotFound, Damaged: something on the way cannot be read; `live` is
            then incomplete and of no use.
    """
    pending = list(trees)
    while pending:
        tree = pending.pop()
        if not live.add(BlobId(tree)):
            continue
        for entry in Directory.decode(source.get(BlobId(tree))).entries.values():
            if entry.subtree is not None:
                pending.append(entry.subtree)
            _mark_extents(source, entry.content, live, 0)


def _mark_extents(source: BlobSource, extents: Iterable[Extent], live: BlobSet, depth: int) -> None:
    for extent in extents:
        if extent.kind is ExtentKind.HOLE or not live.add(extent.blob):
            continue
        if extent.kind is ExtentKind.LIST:
            _mark_extents(source, read_list(source, extent, depth), live, depth + 1)
