"""Reading many blobs at one go: one query, few reads, one call to decompress."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from turnkeep_store.backend import Area, Backend
from turnkeep_store.codec import Codec, decompress_all
from turnkeep_store.errors import StoreError
from turnkeep_store.ids import BlobId, blob_id
from turnkeep_store.index import Index, Location
from turnkeep_store.pack import BLOB_HEADER_BYTES, BlobHeader

_AT_ONCE = 256
"""So many blobs are looked for and decompressed in one call."""

_GAP_BYTES = 64 * 1024
"""Blobs this far apart in a pack are read together: the bytes between cost less than another read."""

_READ_BYTES = 4 * 1024 * 1024


def read_many(
    index: Index, backend: Backend, blobs: Iterable[BlobId], room: int | None = None
) -> dict[BlobId, bytes]:
    """Return blobs, each verified against its id, as far as they are found sound where the index says.

    Whatever stands in the way of one leaves it out: reading that blob alone
    tries every copy of it, or says what is wrong. With `room` the first ones are
    returned that come to no more bytes than that.
    """
    found: dict[BlobId, bytes] = {}
    left = iter(dict.fromkeys(blobs))
    while part := list(islice(left, _AT_ONCE)):
        places = index.lookup_many(part)
        if room is not None:
            places, room = _fitting(part, places, room)
        for run in _runs(places):
            try:
                _read(backend, run, found)
            except (StoreError, OSError):
                continue
    return found


def _fitting(
    part: Iterable[BlobId], places: dict[BlobId, Location], room: int
) -> tuple[dict[BlobId, Location], int]:
    """Return the first of a part that fit, and the room that is left."""
    fitting = {}
    for blob in part:
        place = places.get(blob)
        if place is None:
            continue
        room -= place.raw_length
        if room < 0:
            break
        fitting[blob] = place
    return fitting, max(room, 0)


_Placed = tuple[BlobId, Location]


def _runs(places: dict[BlobId, Location]) -> Iterator[list[_Placed]]:
    """Yield what is to be read together: neighbours in one pack, in their order."""
    run: list[_Placed] = []
    for placed in sorted(places.items(), key=lambda each: (each[1].pack, each[1].offset)):
        if run and not _belongs(run, placed[1]):
            yield run
            run = []
        run.append(placed)
    if run:
        yield run


def _belongs(run: list[_Placed], place: Location) -> bool:
    first, last = run[0][1], run[-1][1]
    near = place.offset - _end(last) <= _GAP_BYTES and _end(place) - first.offset <= _READ_BYTES
    return first.pack == place.pack and near


def _end(place: Location) -> int:
    return place.offset + BLOB_HEADER_BYTES + place.stored_length


def _read(backend: Backend, run: Sequence[_Placed], found: dict[BlobId, bytes]) -> None:
    first, last = run[0][1], run[-1][1]
    data = memoryview(backend.read(Area.PACKS, first.pack, first.offset, _end(last) - first.offset))
    packed: list[tuple[BlobId, memoryview, int]] = []
    for blob, place in run:
        start = place.offset - first.offset
        record = data[start : start + BLOB_HEADER_BYTES + place.stored_length]
        header = BlobHeader.unpack(bytes(record[:BLOB_HEADER_BYTES]))
        stored = record[BLOB_HEADER_BYTES:]
        if header.id != blob or header.stored_length != len(stored):
            continue
        if header.codec is Codec.ZSTD:
            packed.append((blob, stored, header.raw_length))
        elif blob_id(stored) == blob:
            found[blob] = bytes(stored)
    unpacked = decompress_all([(stored, length) for _, stored, length in packed])
    for (blob, _, _), raw in zip(packed, unpacked, strict=True):
        if blob_id(raw) == blob:
            found[blob] = raw
