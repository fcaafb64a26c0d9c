"""Checking one tree: is everything there that it needs?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from turnkeep_store.blobset import BlobSet
from turnkeep_store.blobstore import BlobStore
from turnkeep_store.chunks import leaves
from turnkeep_store.diff import MAX_DEPTH
from turnkeep_store.errors import StoreError
from turnkeep_store.ids import BlobId, TreeId
from turnkeep_store.tree import Directory, Entry, ExtentKind, NodeType

Problem = tuple[bytes, str]
"""The path that is affected, from the tree's root, and what is wrong."""


@dataclass(slots=True)
class _Frame:
    """A directory on the way down."""

    tree: TreeId
    name: bytes
    entries: Iterator[Entry]
    sound: bool = True


class TreeCheck:
    """Checks trees one after the other; what was found sound is not visited again."""

    def __init__(self, blobs: BlobStore, bad: BlobSet, sound: BlobSet) -> None:
        self._blobs = blobs
        self._bad = bad
        self._sound = sound

    def check(self, root: TreeId) -> Iterator[Problem]:
        """Yield all that is wrong below a root, with the paths affected."""
        stack: list[_Frame] = []
        yield from self._enter(stack, root, Entry(name=b"", type=NodeType.DIRECTORY))
        while stack:
            frame = stack[-1]
            entry = next(frame.entries, None)
            if entry is None:
                stack.pop()
                if frame.sound:
                    self._sound.add(BlobId(frame.tree))
                elif stack:
                    stack[-1].sound = False
            elif entry.subtree is not None:
                for problem in self._enter(stack, entry.subtree, entry):
                    frame.sound = False
                    yield problem
            else:
                wrong = self._wrong_with_file(entry)
                if wrong is not None:
                    frame.sound = False
                    yield _path(stack, entry.name), wrong

    def _enter(self, stack: list[_Frame], tree: TreeId, entry: Entry) -> Iterator[Problem]:
        """Push a directory unless it is known to be sound; yield what is wrong with itself."""
        if BlobId(tree) in self._sound:
            return
        if len(stack) >= MAX_DEPTH:
            yield _path(stack, entry.name), f"deeper than {MAX_DEPTH} folders"
            return
        try:
            directory = Directory.decode(self._blobs.get(BlobId(tree)))
        except StoreError as error:
            yield _path(stack, entry.name), str(error)
            return
        fits = entry.digest is None or directory.digest() == entry.digest
        if not fits:
            yield _path(stack, entry.name), "the folder's digest is not that of its entries"
        stack.append(_Frame(tree, entry.name, iter(directory), fits))

    def _wrong_with_file(self, entry: Entry) -> str | None:
        if not entry.content and not (entry.type is NodeType.FILE and entry.size):
            return None
        total = 0
        try:
            for extent in leaves(self._blobs, entry.content):
                total += extent.length
                if extent.kind is ExtentKind.DATA:
                    self._require(extent.blob, extent.length)
        except StoreError as error:
            return str(error)
        return None if total == entry.size else f"{total} bytes of content, not {entry.size}"

    def _require(self, blob: BlobId, length: int) -> None:
        places = self._blobs.locate(blob)
        if not places:
            raise StoreError(f"chunk {blob.hex()} is missing")
        if blob in self._bad:
            raise StoreError(f"chunk {blob.hex()} is damaged")
        if any(place.raw_length != length for place in places):
            raise StoreError(f"chunk {blob.hex()} is not {length} bytes long")


def _path(stack: list[_Frame], name: bytes) -> bytes:
    return b"/".join([frame.name for frame in stack if frame.name] + ([name] if name else []))
