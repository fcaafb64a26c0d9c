"""What a process's own memory holds, as hashes: to tell whether it changed.

Own memory are the pages that no file stands behind: anonymous ones, and private
copies of a file's pages. They are exactly the pages that a dump holds, so that a
print can be taken of a process or of its dump. Reading them neither runs the
process nor brings in a page that is not there.

See ioctl(PAGEMAP_SCAN) (Linux 6.7), Documentation/admin-guide/mm/pagemap.rst,
process_vm_readv(2).
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from blake3 import blake3

from turnkeep.process.proc import Folder

BLOCK = 65536
PAGE = os.sysconf("SC_PAGESIZE")

Run = tuple[int, int]
"""Addresses of pages, from and up to, page-aligned."""

_PAGEMAP_SCAN = 0xC0606610
_FILE, _PRESENT, _SWAPPED, _ZERO = 0x4, 0x8, 0x10, 0x20
_SCAN = struct.Struct("=12Q")
_WALK_END = 4
_REGIONS = 4096
_MAPPING = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) ...([ps]) .*$", re.MULTILINE)
_KERNELS = 1 << 63
"""Addresses above are the kernel's, whatever it lists there ([vsyscall])."""
_ENTRY_BYTES = 8
_ENTRIES = 1 << 16
_MAX_WALKED = 1 << 32
"""Without PAGEMAP_SCAN every page of an address range is looked at: not more than these bytes."""
_RUN = struct.Struct("=II")

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class CannotTell(Exception):
    """What was asked cannot be told, or not for the price that was allowed."""


@dataclass(frozen=True, slots=True)
class MemoryPrint:
    """A hash of each 64 KiB of a process's own memory, by address. Blocks without a page have none."""

    blocks: Mapping[int, bytes] = field(default_factory=dict)
    size: int = 0

    @classmethod
    def of_pages(cls, pages: Iterable[tuple[int, bytes]], scratch: Iterable[int] = ()) -> MemoryPrint:
        """Take the print of a dump: its pages by ascending address, several in a piece if they adjoin.

        `scratch` are the places that the kernel writes to, see `fingerprint`.
        """
        blocks: dict[int, bytes] = {}
        size, gaps = 0, _gaps(scratch)
        for start, pieces in _by_block(pages):
            blocks[start] = _digest(start, [_blanked(piece, gaps) for piece in pieces])
            size += sum(len(content) for _, content in pieces)
        return cls(blocks, size)


def fingerprint(pid: int, budget_bytes: int, scratch: Iterable[int] = ()) -> MemoryPrint:
    """Take the print of a frozen process's memory.

    `scratch` are the places where the kernel notes on which processor a thread is
    (rseq(2)): what it writes there does not count.

    Raises:
        CannotTell: there is more than the budget, or it cannot be read.
    """
    runs = own_pages(pid)
    size = sum(end - start for start, end in runs)
    if size > budget_bytes:
        raise CannotTell(f"process {pid} has {size >> 20} MiB of memory of its own")
    with _Reader(pid, _gaps(scratch)) as reader:
        blocks = {start: _digest(start, reader.pieces(parts)) for start, parts in _runs_by_block(runs)}
    return MemoryPrint(blocks, size)


def first_difference(
    pid: int, earlier: MemoryPrint, budget_bytes: int, scratch: Iterable[int] = ()
) -> int | None:
    """Return the address of a block that is not as it was, None if all are.

    Raises:
        CannotTell: there is more than the budget, or it cannot be read.
    """
    runs = own_pages(pid)
    size = sum(end - start for start, end in runs)
    if size > budget_bytes:
        raise CannotTell(f"process {pid} has {size >> 20} MiB of memory of its own")
    now = list(_runs_by_block(runs))
    different = earlier.blocks.keys() ^ {start for start, _ in now}
    if different:
        return min(different)
    with _Reader(pid, _gaps(scratch)) as reader:
        # From the top: the stack, which changes first, is there.
        for start, parts in reversed(now):
            if _digest(start, reader.pieces(parts)) != earlier.blocks[start]:
                return start
    return None


def own_pages(pid: int) -> list[Run]:
    """Return where the pages are that belong to a process alone, in memory or swapped out.

    Raises:
        CannotTell: the kernel does not say, or not cheaply.
    """
    try:
        with Folder(pid) as folder:
            mappings = _mappings(folder)
            pagemap = os.open("pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder.fd)
            try:
                return _join(_scan(pagemap, mappings))
            except OSError:
                return _join(_walk(pagemap, mappings))
            finally:
                os.close(pagemap)
    except (OSError, OverflowError) as error:
        raise CannotTell(f"the memory of process {pid} cannot be read: {error}") from error


def _mappings(folder: Folder) -> list[Run]:
    """Return the private mappings."""
    found = _MAPPING.findall(folder.read("maps"))
    mappings = [(int(start, 16), int(end, 16)) for start, end, kind in found if kind == b"p"]
    return [mapping for mapping in mappings if mapping[0] < _KERNELS]


def _scan(pagemap: int, mappings: list[Run]) -> Iterator[Run]:
    """Ask the kernel for the pages (Linux 6.7)."""
    found = (ctypes.c_uint64 * (3 * _REGIONS))()
    unwanted, wanted = _FILE | _ZERO, _PRESENT | _SWAPPED
    start, last = 0, mappings[-1][1] if mappings else 0
    while start < last:
        categories = (unwanted, unwanted, wanted, wanted)
        request = bytearray(
            _SCAN.pack(_SCAN.size, 0, start, last, 0, ctypes.addressof(found), _REGIONS, 0, *categories)
        )
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, request, True)
        for index in range(count):
            yield found[3 * index], found[3 * index + 1]
        start = _SCAN.unpack(request)[_WALK_END]


def _walk(pagemap: int, mappings: list[Run]) -> Iterator[Run]:
    """Look at each page of the private mappings."""
    if sum(end - start for start, end in mappings) > _MAX_WALKED:
        raise CannotTell("a large address space, and this kernel does not list its pages")
    for start, end in mappings:
        for first in range(start, end, _ENTRIES * PAGE):
            count = min(_ENTRIES, (end - first) // PAGE)
            entries = array.array("Q", os.pread(pagemap, count * _ENTRY_BYTES, first // PAGE * _ENTRY_BYTES))
            for index, entry in enumerate(entries):
                # Present or swapped out, and no file's page.
                if entry >> 62 and not entry >> 61 & 1:
                    yield first + index * PAGE, first + (index + 1) * PAGE


def _join(runs: Iterable[Run]) -> list[Run]:
    """Make one of runs that adjoin."""
    joined: list[Run] = []
    for start, end in runs:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


def _runs_by_block(runs: Iterable[Run]) -> Iterator[tuple[int, list[Run]]]:
    """Cut runs at the borders of blocks."""
    block, parts = -1, list[Run]()
    for start, end in runs:
        while start < end:
            own = start - start % BLOCK
            if own != block and parts:
                yield block, parts
                parts = []
            block = own
            upto = min(end, own + BLOCK)
            parts.append((start, upto))
            start = upto
    if parts:
        yield block, parts


def _by_block(pages: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """Cut pieces of content at the borders of blocks, and join those that adjoin."""
    block, pieces = -1, list[tuple[int, bytes]]()
    for start, content in pages:
        for own, ((first, upto),) in _runs_by_block([(start, start + len(content))]):
            if own != block and pieces:
                yield block, pieces
                pieces = []
            block = own
            part = content[first - start : upto - start]
            if pieces and pieces[-1][0] + len(pieces[-1][1]) == first:
                pieces[-1] = pieces[-1][0], pieces[-1][1] + part
            else:
                pieces.append((first, part))
    if pieces:
        yield block, pieces


def _gaps(scratch: Iterable[int]) -> list[Run]:
    """Return what the kernel writes in each rseq area: cpu_id_start and cpu_id, node_id and mm_cid."""
    return [(place + first, place + upto) for place in scratch if place for first, upto in ((0, 8), (20, 28))]


def _within(gaps: list[Run], start: int, end: int) -> Iterator[Run]:
    return ((max(first, start), min(upto, end)) for first, upto in gaps if first < end and upto > start)


def _blanked(piece: tuple[int, bytes], gaps: list[Run]) -> tuple[int, bytes]:
    start, content = piece
    for first, upto in _within(gaps, start, start + len(content)):
        content = content[: first - start] + bytes(upto - first) + content[upto - start :]
    return start, content


def _digest(block: int, pieces: Iterable[tuple[int, bytes | memoryview]]) -> bytes:
    hasher = blake3()
    for start, content in pieces:
        hasher.update(_RUN.pack(start - block, len(content)))
        hasher.update(content)
    return hasher.digest(16)


class _Reader:
    """Reads the pages of one process into a buffer of its own."""

    def __init__(self, pid: int, gaps: list[Run]) -> None:
        self._pid = pid
        self._gaps = gaps
        self._buffer = bytearray(BLOCK)
        self._view = memoryview(self._buffer)
        self._address = ctypes.addressof((ctypes.c_char * BLOCK).from_buffer(self._buffer))
        self._memory = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._memory >= 0:
            os.close(self._memory)

    def pieces(self, parts: list[Run]) -> Iterator[tuple[int, memoryview]]:
        """Yield the content of runs of one block; each is valid until the next."""
        for start, end in parts:
            length = end - start
            ours, theirs = _Vector(self._address, length), _Vector(start, length)
            if _libc.process_vm_readv(self._pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0) != length:
                self._read_anyway(start, length)
            for first, upto in _within(self._gaps, start, end):
                self._view[first - start : upto - start] = bytes(upto - first)
            yield start, self._view[:length]

    def _read_anyway(self, start: int, length: int) -> None:
        """Read what the process itself may not read (PROT_NONE), as a debugger can."""
        try:
            if self._memory < 0:
                self._memory = os.open(f"/proc/{self._pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            count = os.preadv(self._memory, [self._view[:length]], start)
        except OSError as error:
            raise CannotTell(f"the memory of process {self._pid} cannot be read: {error}") from error
        if count != length:
            raise CannotTell(f"the memory of process {self._pid} cannot be read at {start:x}")
