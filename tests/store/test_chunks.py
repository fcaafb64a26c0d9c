"""Cutting, lists of extents, and reading them back."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Iterable, Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from turnkeep_store import chunks
from turnkeep_store.chunker import GRID, STREAM_MAX, cut, cut_stream
from turnkeep_store.chunks import MAX_INLINE, read_extents, write_file, write_stream
from turnkeep_store.codec import MAX_RAW_BYTES, Codec, Compressor, decompress
from turnkeep_store.durable import Bytes
from turnkeep_store.errors import BlobNotFound, Damaged, LimitExceeded
from turnkeep_store.ids import BlobId, blob_id
from turnkeep_store.kinds import BlobKind
from turnkeep_store.tree import Extent, ExtentKind, encode_extents

NOISE = random.Random(11)


class DictSink:
    """Blobs in a dict."""

    def __init__(self) -> None:
        self.blobs: dict[BlobId, bytes] = {}

    def put(self, data: Bytes, kind: BlobKind) -> BlobId:
        blob = blob_id(data)
        self.blobs[blob] = bytes(data)
        return blob

    def get(self, blob: BlobId) -> bytes:
        try:
            return self.blobs[blob]
        except KeyError:
            raise BlobNotFound(blob.hex()) from None


class CountingSink(DictSink):
    """Keeps lists only, and hands out zeros of the right length for the rest."""

    def put(self, data: Bytes, kind: BlobKind) -> BlobId:
        return super().put(data, kind) if kind is BlobKind.EXTENTS else BlobId(bytes(32))


@st.composite
def _sparse_files(draw: st.DrawFn) -> tuple[int, dict[int, bytes]]:
    size = draw(st.integers(0, 5 * GRID))
    starts = draw(st.lists(st.integers(0, max(0, size - 1)), max_size=5, unique=True))
    data: dict[int, bytes] = {}
    position = 0
    for start in sorted(starts):
        start = max(start, position)
        length = min(draw(st.sampled_from([1, 500, GRID - 1, GRID, GRID + 1, 2 * GRID])), size - start)
        if length > 0:
            data[start] = draw(st.sampled_from([b"\0", b"x", b"\0\0y"])) * length
            data[start] = data[start][:length]
            position = start + length
    return size, data


@given(_sparse_files(), st.integers(1, 3 * GRID))
@settings(max_examples=60, deadline=None)
def test_cuts_follow_from_the_content_alone(file: tuple[int, dict[int, bytes]], step: int) -> None:
    size, segments = file
    content = bytearray(size)
    for offset, data in segments.items():
        content[offset : offset + len(data)] = data
    whole = list(cut([(0, bytes(content))] if size else [], size))
    pieces = [(start, content[start : start + step]) for start in range(0, size, step)]
    assert list(cut(segments.items(), size)) == whole == list(cut(pieces, size))
    kinds = [kind for kind, _, _ in whole]
    assert (ExtentKind.HOLE, ExtentKind.HOLE) not in itertools.pairwise(kinds)
    assert b"".join(data if kind else bytes(length) for kind, length, data in whole) == content
    sink = DictSink()
    found = bytearray(size)
    for offset, data in read_extents(sink, write_file(sink, segments.items(), size)):
        found[offset : offset + len(data)] = data
    assert found == content


def test_a_huge_hole_costs_nothing() -> None:
    size = 2**60
    assert list(cut([], size)) == [(ExtentKind.HOLE, size, b"")]
    far = 2**59 + 5
    pieces = list(cut([(far, b"x")], size))
    assert [kind for kind, _, _ in pieces] == [ExtentKind.HOLE, ExtentKind.DATA, ExtentKind.HOLE]
    assert sum(length for _, length, _ in pieces) == size
    assert pieces[0][1] % GRID == 0


@pytest.mark.parametrize(
    ("segments", "size"),
    [([(5, b"x"), (4, b"y")], 10), ([(0, b"xx"), (1, b"y")], 10), ([(9, b"xx")], 10)],
    ids=["out of order", "overlapping", "past the end"],
)
def test_impossible_segments_are_refused(segments: list[tuple[int, bytes]], size: int) -> None:
    with pytest.raises(ValueError, match="segment at"):
        list(cut(segments, size))


def test_lists_of_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "FAN_OUT", 4)
    monkeypatch.setattr(chunks, "MAX_INLINE", 2)
    for count in range(130):
        content = b"".join(bytes([1 + number]) * GRID for number in range(count))
        sink = DictSink()
        extents = write_file(sink, [(0, content)] if content else [], len(content))
        assert len(extents) <= 2
        assert b"".join(data for _, data in read_extents(sink, extents)) == content


def _blocks(count: int) -> Iterator[tuple[int, bytes]]:
    block = b"x" * GRID
    for number in range(count):
        yield number * GRID, block


def test_a_long_file_needs_little_memory() -> None:
    count = 40_000  # 5 GiB
    tracemalloc.start()
    extents = write_file(CountingSink(), _blocks(count), count * GRID)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(extents) <= MAX_INLINE
    assert sum(extent.length for extent in extents) == count * GRID
    assert peak < 8 * 1024 * 1024


def test_damaged_lists() -> None:
    sink = DictSink()
    data = Extent(ExtentKind.DATA, 1, sink.put(b"x", BlobKind.DATA))

    def listing(*extents: Extent, length: int | None = None) -> Extent:
        blob = sink.put(encode_extents(extents), BlobKind.EXTENTS)
        total = sum(each.length for each in extents) if length is None else length
        return Extent(ExtentKind.LIST, total, blob)

    deep = data
    for _ in range(chunks.MAX_LIST_DEPTH + 1):
        deep = listing(deep)
    bad = [
        listing(data, length=2),
        deep,
        Extent(ExtentKind.DATA, 2, data.blob),
        Extent(ExtentKind.DATA, 0, data.blob),
        Extent(ExtentKind.LIST, 1, data.blob),
        listing(Extent(ExtentKind.HOLE, 0)),
        Extent(ExtentKind.DATA, MAX_RAW_BYTES + 1, data.blob),
    ]
    for extent in bad:
        with pytest.raises(Damaged):
            list(read_extents(sink, [extent]))


def _random_slices(data: bytes) -> Iterable[bytes]:
    position = 0
    while position < len(data):
        length = NOISE.choice([1, 1000, 70_000, 3_000_000])
        yield data[position : position + length]
        position += length


def test_stream_cuts_follow_from_the_content() -> None:
    data = NOISE.randbytes(5_000_000)
    whole = list(cut_stream([data]))
    assert b"".join(whole) == data
    assert list(cut_stream(_random_slices(data))) == whole
    assert max(map(len, whole)) <= STREAM_MAX
    shifted = list(cut_stream([b"inserted at the front", data]))
    assert len(set(whole) - set(shifted)) <= 2


def test_streams_are_read_back_and_bounded() -> None:
    sink = DictSink()
    data = NOISE.randbytes(300_000) + bytes(300_000)
    extents = write_stream(sink, [data[:100], b"", data[100:]])
    assert b"".join(part for _, part in read_extents(sink, extents)) == data
    assert write_stream(sink, []) == ()
    endless = itertools.repeat(bytes(1024 * 1024))
    with pytest.raises(LimitExceeded):
        write_stream(sink, endless)


@given(st.binary(max_size=2000), st.integers(1, 4))
def test_compression_gives_back_what_it_got(data: bytes, times: int) -> None:
    data = data * times
    codec, stored = Compressor().compress(data)
    assert len(stored) <= len(data)
    assert decompress(codec, bytes(stored), len(data)) == data


def test_decompression_is_bounded() -> None:
    codec, bomb = Compressor().compress(bytes(100_000_000))
    tracemalloc.start()
    for length in (10, 1_000_000):
        with pytest.raises(Damaged):
            decompress(codec, bytes(bomb), length)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()
    for length in (99_999_999, 2**31):
        with pytest.raises(Damaged):
            decompress(codec, bytes(bomb), length)
    with pytest.raises(Damaged):
        decompress(Codec.ZSTD, b"no frame at all", 100)
    with pytest.raises(Damaged):
        decompress(Codec.ZSTD, bytes(bomb)[:-3], 100_000_000)
    with pytest.raises(Damaged):
        decompress(Codec.RAW, b"abc", 4)
