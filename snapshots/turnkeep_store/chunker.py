"""Cutting content into chunks.

Files are cut on a fixed grid: where a chunk begins follows from the logical
content alone, so equal files have equal extents however their bytes arrived
and whichever blocks the file system happened to allocate. Streams, whose
content shifts when something is inserted, are cut where the content says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from turnkeep_store.tree import ExtentKind

GRID = 128 * 1024
"""Length of a file's chunk; the last one is shorter."""

STREAM_MIN = 16 * 1024
STREAM_AVERAGE = 64 * 1024
STREAM_MAX = 256 * 1024
_STREAM_BUFFER = 1024 * 1024

_ZEROS = bytes(GRID)

Piece = tuple[ExtentKind, int, bytes]
"""A stretch of a file: its kind (hole or data), its length, its bytes if data."""


def cut(segments: Iterable[tuple[int, bytes | bytearray | memoryview]], size: int) -> Iterator[Piece]:
    """Cut a file of `size` bytes, given as ascending (offset, data), into pieces.

    Gaps between segments are zeros. Grid blocks of zeros become holes and
    neighbouring holes become one, so a sparse file costs what it holds.

    Raises:
        ValueError: segments overlap, are out of order or pass the file's end.
    """
    done = 0  # everything before this offset was yielded
    for start, block in _blocks(segments, size):
        if block[0] == 0 and block == _ZEROS[: len(block)]:
            continue
        if start > done:
            yield ExtentKind.HOLE, start - done, b""
        yield ExtentKind.DATA, len(block), block
        done = start + len(block)
    if done < size:
        yield ExtentKind.HOLE, size - done, b""


def _blocks(
    segments: Iterable[tuple[int, bytes | bytearray | memoryview]], size: int
) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of each grid block that a segment touches."""
    partial = bytearray()  # the begun block's bytes up to `end`
    end = 0
    for offset, data in segments:
        if not partial and offset >= end and isinstance(data, bytes) and _is_block(offset, len(data), size):
            # As most files come: whole, and no longer than a block.
            yield offset, data
            end = offset + len(data)
            continue
        with memoryview(data) as view:
            if offset < end or offset + len(view) > size:
                raise ValueError(f"segment at {offset} of {len(view)} bytes: {end} to {size} are open")
            position = 0
            while position < len(view):
                start = offset + position
                block = start - start % GRID
                if partial and block > end - len(partial):
                    yield _finished(partial, end, size)
                    partial = bytearray()
                length = min(GRID, size - block)
                part = view[position : position + block + length - start]
                position += len(part)
                if len(part) == length:
                    yield block, bytes(part)
                else:
                    held_to = end if partial else block
                    partial += bytes(start - held_to)
                    partial += part
                    if len(partial) == length:
                        yield block, bytes(partial)
                        partial = bytearray()
                end = start + len(part)
    if partial:
        yield _finished(partial, end, size)


def _is_block(offset: int, length: int, size: int) -> bool:
    return offset % GRID == 0 and length == min(GRID, size - offset)


def _finished(partial: bytearray, end: int, size: int) -> tuple[int, bytes]:
    start = end - len(partial)
    return start, bytes(partial) + bytes(min(GRID, size - start) - len(partial))


def is_zero(data: bytes) -> bool:
    """Whether these bytes are all zeros."""
    return not data or (data[0] == 0 and data.count(0) == len(data))


def cut_stream(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a stream where its content says so; the same bytes give the same cuts.

    Holds at most a few MiB, however the stream arrives.
    """
    pending = bytearray()
    for chunk in chunks:
        for start in range(0, len(chunk), _STREAM_BUFFER):
            pending += chunk[start : start + _STREAM_BUFFER]
            if len(pending) >= _STREAM_BUFFER:
                cuts = _cuts(pending)
                # The last one ended with the buffer, not where content says so.
                yield from _slices(pending, cuts[:-1])
                del pending[: sum(cuts[:-1])]
    yield from _slices(pending, _cuts(pending))


def _cuts(data: bytearray) -> list[int]:
    if not data:
        return []
    # It brings a command-line framework along, a sixth of a program's start: only who needs it pays.
    from fastcdc import fastcdc

    found = fastcdc(bytes(data), min_size=STREAM_MIN, avg_size=STREAM_AVERAGE, max_size=STREAM_MAX)
    return [chunk.length for chunk in found]


def _slices(data: bytearray, lengths: list[int]) -> Iterator[bytes]:
    position = 0
    for length in lengths:
        yield bytes(data[position : position + length])
        position += length
