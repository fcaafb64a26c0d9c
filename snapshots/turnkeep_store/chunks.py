"""Content in and out of blobs, as extents.

A file of many chunks would make its directory long, and every directory is
held in memory. So beyond `MAX_INLINE` extents they go into blobs of their own,
at most `FAN_OUT` each, which are listed in turn; both memory and the depth of
such lists stay bounded however large the file is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from turnkeep_store.blobs import BlobSink, BlobSource
from turnkeep_store.chunker import cut, cut_stream, is_zero
from turnkeep_store.codec import MAX_RAW_BYTES
from turnkeep_store.errors import Damaged, LimitExceeded
from turnkeep_store.ids import BlobId
from turnkeep_store.kinds import BlobKind
from turnkeep_store.tree import Extent, ExtentKind, decode_extents, encode_extents

MAX_INLINE = 64
FAN_OUT = 4096
MAX_LIST_DEPTH = 4
MAX_LIST_BYTES = FAN_OUT * 64
MAX_FILE_BYTES = 2**63 - 1
MAX_STREAM_BYTES = 64 * 1024 * 1024


def write_file(
    sink: BlobSink, segments: Iterable[tuple[int, bytes | bytearray | memoryview]], size: int
) -> tuple[Extent, ...]:
    """Store a file of `size` bytes given as ascending (offset, data); gaps are holes.

    Equal content gives equal extents, however it is segmented.

    Raises:
        LimitExceeded: the file is longer than the store accepts.
        ValueError: segments overlap, are out of order or pass the file's end.
    """
    if not 0 <= size <= MAX_FILE_BYTES:
        raise LimitExceeded(f"file of {size} bytes: the limit is {MAX_FILE_BYTES}")
    lists = _Lists(sink)
    for kind, length, data in cut(segments, size):
        blob = sink.put(data, BlobKind.DATA) if kind is ExtentKind.DATA else BlobId(b"")
        lists.add(Extent(kind, length, blob))
    return lists.finish()


def write_stream(sink: BlobSink, chunks: Iterable[bytes]) -> tuple[Extent, ...]:
    """Store opaque bytes so that a later version of them shares most chunks.

    Raises:
        LimitExceeded: the stream is longer than `MAX_STREAM_BYTES`.
    """
    lists = _Lists(sink)
    total = 0
    for data in cut_stream(chunks):
        total += len(data)
        if total > MAX_STREAM_BYTES:
            raise LimitExceeded(f"stream of more than {MAX_STREAM_BYTES} bytes: store it as a file")
        lists.add(Extent(ExtentKind.DATA, len(data), sink.put(data, BlobKind.DATA)))
    return lists.finish()


def write_chunks(sink: BlobSink, chunks: Iterable[bytes]) -> tuple[Extent, ...]:
    """Store bytes that the caller has cut: where to cut is known from what they are.

    Chunks of zeros become holes.

    Raises:
        LimitExceeded: a chunk is longer than a blob may be.
    """
    lists = _Lists(sink)
    for data in chunks:
        if len(data) > MAX_RAW_BYTES:
            raise LimitExceeded(f"chunk of {len(data)} bytes: the limit is {MAX_RAW_BYTES}")
        if is_zero(data):
            lists.add(Extent(ExtentKind.HOLE, len(data), BlobId(b"")))
        elif data:
            lists.add(Extent(ExtentKind.DATA, len(data), sink.put(data, BlobKind.DATA)))
    return lists.finish()


def read_extents(source: BlobSource, extents: Iterable[Extent]) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, data) in ascending order; holes are skipped.

    Raises:
        BlobNotFound: a chunk is missing.
        Damaged: a chunk or a list is not as long as its extent says.
    """
    offset = 0
    for extent in leaves(source, extents):
        if extent.kind is ExtentKind.DATA:
            data = source.get(extent.blob)
            if len(data) != extent.length:
                raise Damaged(f"chunk {extent.blob.hex()}: {len(data)} bytes, not {extent.length}")
            yield offset, data
        offset += extent.length


def changed_extents(
    source: BlobSource, before: Iterable[Extent], after: Iterable[Extent]
) -> list[tuple[int, Extent]] | None:
    """Return the (offset, chunk) of `after` that `before` does not have there.

    None if a hole is among what differs: what lies there cannot be taken away by
    writing. Chunks lie on a fixed grid, so a changed block is one chunk.
    """
    there = dict(_placed(source, before))
    changed = []
    for offset, extent in _placed(source, after):
        if there.get(offset) == extent:
            continue
        if extent.kind is not ExtentKind.DATA:
            return None
        changed.append((offset, extent))
    return changed


def _placed(source: BlobSource, extents: Iterable[Extent]) -> Iterator[tuple[int, Extent]]:
    offset = 0
    for extent in leaves(source, extents):
        yield offset, extent
        offset += extent.length


def leaves(source: BlobSource, extents: Iterable[Extent], depth: int = 0) -> Iterator[Extent]:
    """Yield the holes and chunks that `extents` stand for, in order.

    Raises:
        BlobNotFound: a list is missing.
        Damaged: a list is too deep, too long, or not as long as its extent says.
    """
    for extent in extents:
        check_extent(extent)
        if extent.kind is not ExtentKind.LIST:
            yield extent
            continue
        yield from leaves(source, read_list(source, extent, depth), depth + 1)


def read_list(source: BlobSource, extent: Extent, depth: int) -> tuple[Extent, ...]:
    """Return what the list that `extent` points to holds."""
    if depth >= MAX_LIST_DEPTH:
        raise Damaged(f"extent list {extent.blob.hex()}: more than {MAX_LIST_DEPTH} deep")
    data = source.get(extent.blob)
    if len(data) > MAX_LIST_BYTES:
        raise Damaged(f"extent list {extent.blob.hex()}: {len(data)} bytes, the limit is {MAX_LIST_BYTES}")
    listed = decode_extents(data)
    total = sum(each.length for each in listed)
    if total != extent.length:
        raise Damaged(f"extent list {extent.blob.hex()}: {total} bytes of content, not {extent.length}")
    return listed


def check_extent(extent: Extent) -> None:
    """Refuse an extent no writer makes.

    Raises:
        Damaged: it is empty, or a chunk longer than a blob.
    """
    # Empty extents would let a short list stand for endless work.
    if extent.length == 0 or (extent.kind is ExtentKind.DATA and extent.length > MAX_RAW_BYTES):
        raise Damaged(f"extent of {extent.length} bytes ({extent.kind.name})")


class _Lists:
    """Gathers extents into lists of lists; holds at most `FAN_OUT` a level."""

    def __init__(self, sink: BlobSink) -> None:
        self._sink = sink
        self._levels: list[list[Extent]] = [[]]

    def add(self, extent: Extent, level: int = 0) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(extent)
        if len(self._levels[level]) == FAN_OUT:
            self._fold(level)

    def finish(self) -> tuple[Extent, ...]:
        level = 0
        while level < len(self._levels):
            is_top = level == len(self._levels) - 1
            if is_top and len(self._levels[level]) <= MAX_INLINE:
                break
            if self._levels[level]:
                self._fold(level)
            level += 1
        return tuple(self._levels[-1])

    def _fold(self, level: int) -> None:
        listed = self._levels[level]
        self._levels[level] = []
        blob = self._sink.put(encode_extents(listed), BlobKind.EXTENTS)
        self.add(Extent(ExtentKind.LIST, sum(each.length for each in listed), blob), level + 1)
