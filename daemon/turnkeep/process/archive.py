"""Images of processes in the store.

A tree's images become a folder. `pages-N.img` are files of their own, cut where
the memory they hold is, so that a range of memory that did not change is the same
chunk in every dump, whatever was dumped before it. So are other large ones. All
others, many and small, lie one after the other in a single stream.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgpack
from turnkeep_store.blobcache import BlobCache, CachingSource
from turnkeep_store.blobs import BlobSink, BlobSource, BulkSource
from turnkeep_store.chunks import leaves, read_extents, write_chunks, write_stream
from turnkeep_store.errors import Damaged
from turnkeep_store.ids import BlobId, TreeId
from turnkeep_store.kinds import BlobKind
from turnkeep_store.readahead import ReadAhead
from turnkeep_store.tree import Directory, Entry, Extent, NodeType

from turnkeep.process.wire import read_fields

PAGE = 4096
CHUNK_BYTES = 64 * 1024
_SMALL = b"images"
_PAGES = re.compile(r"pages-(\d+)\.img")
_PAGEMAP = re.compile(r"pagemap-[\w-]+\.img")
_PRESENT, _PARENT = 4, 1
_HEADER_BYTES = 4
_LARGE_BYTES = 1024 * 1024


class Folder(Protocol):
    """A folder of images."""

    def names(self) -> list[str]: ...

    def open(self, name: str, flags: int = os.O_RDONLY) -> int: ...

    def read(self, name: str) -> bytes: ...

    def size(self, name: str) -> int: ...

    def write(self, name: str, content: bytes) -> None: ...


def store(sink: BlobSink, folder: Folder) -> tuple[Entry, int]:
    """Store a folder of images; return its content as a folder entry, and its size in bytes.

    Raises:
        StoreError, OSError: storing or reading failed.
    """
    names = folder.names()
    large = [name for name in names if _PAGES.fullmatch(name) or folder.size(name) > _LARGE_BYTES]
    cuts = _cuts(folder, names)
    entries = {}
    total = 0
    for name in large:
        fd = folder.open(name)
        try:
            content = write_chunks(sink, _chunks(fd, cuts.get(name, [])))
        finally:
            os.close(fd)
        size = sum(extent.length for extent in content)
        total += size
        entries[name.encode()] = _file(name.encode(), size, content)
    small = write_stream(sink, _packed(folder, sorted(set(names) - set(large))))
    size = sum(extent.length for extent in small)
    entries[_SMALL] = _file(_SMALL, size, small)
    directory = Directory(entries)
    tree = TreeId(sink.put(directory.encode(), BlobKind.TREE))
    entry = Entry(name=b"", type=NodeType.DIRECTORY, mode=0o700, subtree=tree, digest=directory.digest())
    return entry, total + size


def load(store: BulkSource, cache: BlobCache, tree: TreeId, folder: Folder) -> None:
    """Write stored images into an empty folder. What the cache lacks a thread reads ahead.

    Raises:
        Damaged: they are not what was stored.
        StoreError, OSError: reading or writing failed.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        kept = CachingSource(store, cache)
        source = ReadAhead(kept, pool)
        directory = Directory.decode(kept.get(BlobId(tree)))
        content = (extent for entry in directory for extent in leaves(kept, entry.content))
        source.follow(extent for extent in content if extent.blob not in cache)
        for entry in directory:
            if entry.name == _SMALL:
                _unpack(b"".join(data for _, data in _all(source, entry)), folder)
                continue
            name = entry.name.decode()
            if "/" in name or name in (".", ".."):
                raise Damaged(f"process images {tree.hex()}: {name!r} does not belong there")
            _write(source, entry, folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))


def _write(source: BlobSource, entry: Entry, fd: int) -> None:
    try:
        os.truncate(fd, entry.size)
        for offset, data in read_extents(source, entry.content):
            os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def _all(source: BlobSource, entry: Entry) -> Iterator[tuple[int, bytes]]:
    done = 0
    for offset, data in read_extents(source, entry.content):
        if offset > done:
            yield done, bytes(offset - done)
        yield offset, data
        done = offset + len(data)
    if done < entry.size:
        yield done, bytes(entry.size - done)


def _file(name: bytes, size: int, content: tuple[Extent, ...]) -> Entry:
    return Entry(name=name, type=NodeType.FILE, mode=0o600, size=size, content=content)


def _packed(folder: Folder, names: list[str]) -> Iterator[bytes]:
    for name in names:
        yield msgpack.packb([name, folder.read(name)])


def _unpack(data: bytes, folder: Folder) -> None:
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) + 1, use_list=False)
    unpacker.feed(data)
    try:
        images = list(unpacker)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise Damaged(f"process images do not decode: {error}") from error
    for image in images:
        match image:
            case (str(name), bytes(content)) if "/" not in name and name not in ("", ".", ".."):
                folder.write(name, content)
            case _:
                raise Damaged(f"process images: {str(image)[:80]} is no image with its name")


def _cuts(folder: Folder, names: list[str]) -> dict[str, list[int]]:
    """Return, for each file of pages, the lengths of the pieces to cut it into."""
    found = {}
    for name in names:
        if _PAGEMAP.fullmatch(name):
            pages_id, ranges = read_pagemap(folder.read(name))
            found[f"pages-{pages_id}.img"] = [length for _, length in _aligned(ranges)]
    return found


def pages_of(folder: Folder, pid: int) -> Iterator[tuple[int, bytes]]:
    """Yield the memory that a dump holds of a process, as (address, bytes) in ascending order."""
    pages_id, ranges = read_pagemap(folder.read(f"pagemap-{pid}.img"))
    fd = folder.open(f"pages-{pages_id}.img")
    try:
        position = 0
        for address, length in _aligned(ranges):
            yield address, os.pread(fd, length, position)
            position += length
    finally:
        os.close(fd)


def read_pagemap(image: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Return which pages image a pagemap speaks of, and the (address, bytes) in it, in order.

    Raises:
        ValueError: it is no pagemap.
    """
    position, pages_id, ranges = 2 * _HEADER_BYTES, -1, []
    while position + _HEADER_BYTES <= len(image):
        (length,) = struct.unpack_from("<I", image, position)
        position += _HEADER_BYTES
        fields = dict(read_fields(image[position : position + length]))
        position += length
        if pages_id < 0:
            pages_id = _number(fields, 1)
            continue
        flags = _number(fields, 4, _PRESENT)
        count = _number(fields, 5) or _number(fields, 2)
        if flags & _PRESENT and not flags & _PARENT:
            ranges.append((_number(fields, 1), count * PAGE))
    return pages_id, ranges


def _number(fields: dict[int, int | bytes], number: int, default: int = 0) -> int:
    value = fields.get(number, default)
    return value if isinstance(value, int) else default


def _aligned(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut ranges of memory at multiples of the chunk's length."""
    for address, length in ranges:
        end = address + length
        while address < end:
            piece = min(end, address - address % CHUNK_BYTES + CHUNK_BYTES) - address
            yield address, piece
            address += piece


def _chunks(fd: int, lengths: list[int]) -> Iterator[bytes]:
    """Yield a file in pieces of these lengths, and what is left in pieces of any."""
    position = 0
    for length in lengths:
        data = os.pread(fd, length, position)
        if not data:
            return
        yield data
        position += len(data)
    while data := os.pread(fd, CHUNK_BYTES, position):
        yield data
        position += len(data)
