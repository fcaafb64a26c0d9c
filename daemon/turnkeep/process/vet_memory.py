"""Rules for address spaces and their pages. See `vet` for what they are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from turnkeep.process.allowance import Allowance, require
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import PAGE_BYTES, FileType, Images, PageMap, Task
from turnkeep.process.vet_tree import live_tasks, name_of

_END_OF_USER = 1 << 56
_VSYSCALL = (0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000)
_IS_VSYSCALL = 1 << 2
_IS_GUARD = 1 << 16
_IS_AIO_RING = 1 << 13
_FILE_PRIVATE, _FILE_SHARED, _ANON_SHARED, _ANON_PRIVATE = 1 << 6, 1 << 7, 1 << 8, 1 << 9
_PRIVATE = _FILE_PRIVATE | _ANON_PRIVATE | _IS_AIO_RING
_BACKINGS = (_FILE_PRIVATE, _FILE_SHARED, _ANON_SHARED, _ANON_PRIVATE)
_STATUS = (
    1  # what is restored at all
    | 1 << 1  # stack
    | _IS_VSYSCALL
    | 1 << 3  # vdso
    | 1 << 5  # heap
    | _FILE_PRIVATE
    | _FILE_SHARED
    | _ANON_SHARED
    | _ANON_PRIVATE
    | 1 << 12  # vvar
    | _IS_AIO_RING
    | 1 << 14  # memory file
    | 1 << 15  # shadow stack
    | _IS_GUARD
)
_PROT = 1 | 2 | 4
_MAP_FLAGS = (
    1  # shared
    | 2  # private
    | 0x20  # anonymous
    | 0x100  # grows down
    | 0x800
    | 0x1000
    | 0x2000  # locked
    | 0x4000  # no reserve
    | 0x20000  # stack
    | 0x40000  # huge pages, and their size
    | 0x3F << 26
)
_ADVICE = sum(1 << number for number in (1, 2, 10, 12, 14, 15, 16, 18))
"""How it is read, whether forks and core dumps have it, whether it is merged or huge. Not: to free it."""
_OPEN_FLAGS = 0o3 | 0o100000
_DUMPABLE = (0, 1, 2)
_PAGE_FLAGS = frozenset({2, 4, 6})
"""Not stored, stored, stored and fit to be loaded late. Not: in the images below these."""


def vet_memory(images: Images, allowed: Allowance) -> None:
    """Check the address space of every live process, and every page."""
    used: set[int] = set()
    for task in live_tasks(images):
        memory = images.memory.get(task.pid)
        require(memory is not None, name_of(task), "no image of its memory", "one")
        assert memory is not None
        _vet_space(images, task, memory, allowed)
        pages = images.page_maps.get(task.pid)
        require(pages is not None, name_of(task), "no pages", "its own")
        assert pages is not None
        private = [area for area in memory.vmas if area.status & _PRIVATE and not area.status & _IS_GUARD]
        _vet_pages(name_of(task), images, pages, used)
        _vet_covered(name_of(task), pages, private)
    for number, pages in images.shared_page_maps.items():
        _vet_pages(f"shared memory {number}", images, pages, used)


def _vet_space(images: Images, task: Task, memory: pb.Mm, allowed: Allowance) -> None:
    where = name_of(task)
    program = images.files.get(memory.exe_file_id)
    is_file = program is not None and program.type in (FileType.REG, FileType.MEMFD)
    require(is_file, where, f"program {memory.exe_file_id}", "a file of the images")
    require(memory.dumpable in _DUMPABLE, where, f"dumpable {memory.dumpable}", "0 to 2")
    end = allowed.lowest_address
    guard_end = allowed.lowest_address
    for area in memory.vmas:
        place = f"{where}, memory at {area.start:#x}"
        is_guard = bool(area.status & _IS_GUARD)
        require(is_guard or guard_end == allowed.lowest_address, place, "after guards", "guards at the end")
        last = guard_end if is_guard else end
        aligned = not area.start % PAGE_BYTES and not area.end % PAGE_BYTES
        require(aligned and last <= area.start < area.end, place, f"up to {area.end:#x}", f"from {last:#x}")
        if area.status & _IS_VSYSCALL:
            require((area.start, area.end) == _VSYSCALL, place, "vsyscall elsewhere", "where it is")
        else:
            require(area.end <= _END_OF_USER, place, f"up to {area.end:#x}", "below the kernel")
        guard_end, end = (area.end, end) if is_guard else (guard_end, area.end)
        _vet_area(images, place, area)
    _vet_rings(where, memory)


def _vet_area(images: Images, place: str, area: pb.Vma) -> None:
    require(not area.status & ~_STATUS, place, f"kind {area.status:#x}", f"within {_STATUS:#x}")
    require(not area.prot & ~_PROT, place, f"protection {area.prot:#x}", f"within {_PROT:#x}")
    require(not area.flags & ~_MAP_FLAGS, place, f"flags {area.flags:#x}", f"within {_MAP_FLAGS:#x}")
    require(not area.madv & ~_ADVICE, place, f"advice {area.madv:#x}", f"within {_ADVICE:#x}")
    require(not area.fdflags & ~_OPEN_FLAGS, place, f"open flags {area.fdflags:#o}", "read and write")
    require(area.fd == -1, place, f"descriptor {area.fd}", "none")
    backings = [each for each in _BACKINGS if area.status & each]
    special = bool(area.status & (_IS_VSYSCALL | _IS_GUARD | _IS_AIO_RING))
    require(len(backings) == 1 or special, place, f"kind {area.status:#x}", "one of private, shared, file")
    if area.status & (_FILE_PRIVATE | _FILE_SHARED):
        file = images.files.get(area.shmid)
        known = file is not None and file.type in (FileType.REG, FileType.MEMFD)
        require(known, place, f"file {area.shmid}", "a file of the images")


def _vet_rings(where: str, memory: pb.Mm) -> None:
    rings = {area.start: area.end - area.start for area in memory.vmas if area.status & _IS_AIO_RING}
    for ring in memory.aios:
        fits = rings.get(ring.id) == ring.ring_len
        require(fits, where, f"an AIO ring at {ring.id:#x}", "in an area of its size")


def _vet_pages(where: str, images: Images, pages: PageMap, used: set[int]) -> None:
    require(pages.pages_id in images.pages, where, f"file of pages {pages.pages_id}", "one that is there")
    require(pages.pages_id not in used, where, f"file of pages {pages.pages_id}", "one of its own")
    used.add(pages.pages_id)
    others = pages.flags - _PAGE_FLAGS
    require(not others, where, f"pages with flags {sorted(others)}", f"{sorted(_PAGE_FLAGS)}")
    end = stored = 0
    for run in pages.runs:
        place = f"{where}, pages at {run.address:#x}"
        whole = not run.address % PAGE_BYTES and run.pages > 0
        require(whole and run.address >= end, place, f"{run.pages} pages", "whole ones in order")
        end = run.address + run.pages * PAGE_BYTES
        require(end <= _END_OF_USER, place, f"up to {end:#x}", "below the kernel")
        stored += run.pages if run.offset is not None else 0
    size = images.pages[pages.pages_id]
    require(stored * PAGE_BYTES == size, where, f"{stored} pages", f"as the file of {size} bytes has")


def _vet_covered(where: str, pages: PageMap, areas: Sequence[pb.Vma]) -> None:
    """Check that all pages lie within areas. Both are in order already."""
    blocks = list(_blocks(areas))
    index = 0
    for run in pages.runs:
        end = run.address + run.pages * PAGE_BYTES
        while index < len(blocks) and blocks[index][1] < end:
            index += 1
        inside = index < len(blocks) and blocks[index][0] <= run.address
        require(inside, f"{where}, pages at {run.address:#x}", f"up to {end:#x}", "within private memory")


def _blocks(areas: Sequence[pb.Vma]) -> Iterator[tuple[int, int]]:
    """Yield areas as (start, end); those that touch are one."""
    start = end = 0
    for area in areas:
        if area.start == end:
            end = area.end
            continue
        if end:
            yield start, end
        start, end = area.start, area.end
    if end:
        yield start, end
