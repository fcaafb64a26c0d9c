"""Hashes of real processes' memory."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from turnkeep.process import memory
from turnkeep.process.btf import read_types
from turnkeep.process.memory import (
    BLOCK,
    PAGE,
    CannotTell,
    MemoryPrint,
    fingerprint,
    first_difference,
    own_pages,
)

PLENTY = 1 << 40


@contextlib.contextmanager
def child(prepare: Callable[[], object]) -> Iterator[int]:
    """Fork a process that prepares something, and then stands still."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        kept = prepare()
        os.write(tell, b"x")
        while kept is not told:
            signal.pause()
    try:
        assert os.read(told, 1) == b"x"
        # Past the write, into pause(2): nothing of its memory changes from here.
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)


def poke(pid: int, address: int, content: bytes) -> None:
    """Write to a process's memory, as a debugger does."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as file:
        file.seek(address)
        file.write(content)


def peek(pid: int, address: int, length: int) -> bytes:
    """Read a process's memory, as a debugger does."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        file.seek(address)
        return file.read(length)


STILL = "import os, signal; kept = os.urandom(1 << 20); print(flush=True); signal.pause()"


@pytest.fixture
def still() -> Iterator[int]:
    """A small process with a megabyte of its own, that stands still."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", STILL], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        yield process.pid
        process.kill()


def test_what_stands_still_is_the_same(still: int) -> None:
    print_ = fingerprint(still, PLENTY)
    assert print_.size > 1 << 20
    assert print_ == fingerprint(still, PLENTY)
    assert first_difference(still, print_, PLENTY) is None


def test_every_byte_counts(still: int) -> None:
    print_ = fingerprint(still, PLENTY)
    for start, end in own_pages(still):
        address = end - 1
        before = peek(still, address, 1)
        poke(still, address, bytes([before[0] ^ 1]))
        assert first_difference(still, print_, PLENTY) == address - address % BLOCK
        poke(still, address, before)
        assert first_difference(still, print_, PLENTY) is None
        assert start < end


def test_a_page_more_counts() -> None:
    area = mmap.mmap(-1, 8 * BLOCK, flags=mmap.MAP_PRIVATE)
    where = ctypes.addressof(ctypes.c_char.from_buffer(area)) + BLOCK
    with child(lambda: area) as pid:
        print_ = fingerprint(pid, PLENTY)
        assert not any(start <= where < end for start, end in own_pages(pid))
        poke(pid, where, b"x")
        # Not the only one, perhaps: the child is a copy of all of this process.
        assert first_difference(pid, print_, PLENTY) is not None
        assert _block(pid, where) != print_.blocks.get(where - where % BLOCK)


def _block(pid: int, address: int) -> bytes:
    return fingerprint(pid, PLENTY).blocks[address - address % BLOCK]


def test_memory_that_its_process_may_not_read_counts() -> None:
    area = mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE)
    area[:4] = b"SEEN"
    where = ctypes.addressof(ctypes.c_char.from_buffer(area))

    def prepare() -> object:
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(where), BLOCK, 0) == 0
        return area

    with child(prepare) as pid:
        print_ = fingerprint(pid, PLENTY)
        assert any(start <= where < end for start, end in own_pages(pid))
        poke(pid, where, b"ELSE")
        assert first_difference(pid, print_, PLENTY) is not None
        assert _block(pid, where) != print_.blocks[where - where % BLOCK]


def test_a_dump_has_the_same_print(still: int) -> None:
    pages = [(start, peek(still, start, end - start)) for start, end in own_pages(still)]
    assert MemoryPrint.of_pages(pages) == fingerprint(still, PLENTY)
    single = [
        (start + offset, content[offset : offset + PAGE])
        for start, content in pages
        for offset in range(0, len(content), PAGE)
    ]
    assert MemoryPrint.of_pages(single) == fingerprint(still, PLENTY)


def test_where_the_kernel_notes_the_processor_does_not_count(still: int) -> None:
    start, end = own_pages(still)[0]
    scratch = [start + PAGE - 8]
    print_ = fingerprint(still, PLENTY, scratch)
    poke(still, scratch[0], struct.pack("=II", 7, 7))
    poke(still, scratch[0] + 20, struct.pack("=II", 7, 7))
    assert first_difference(still, print_, PLENTY, scratch) is None
    pages = [(first, peek(still, first, upto - first)) for first, upto in own_pages(still)]
    assert MemoryPrint.of_pages(pages, scratch) == print_
    poke(still, scratch[0] + 8, b"\1")
    assert first_difference(still, print_, PLENTY, scratch) is not None
    assert end > start


def test_without_the_kernels_list_the_pages_are_found_one_by_one(
    still: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = own_pages(still)
    monkeypatch.setattr(memory, "_PAGEMAP_SCAN", 0)
    walked = own_pages(still)
    # The page of zeros that is everybody's is told from others by the list only.
    assert {page for start, end in listed for page in range(start, end, PAGE)} <= {
        page for start, end in walked for page in range(start, end, PAGE)
    }
    assert first_difference(still, fingerprint(still, PLENTY), PLENTY) is None
    monkeypatch.setattr(memory, "_MAX_WALKED", 1 << 16)
    with pytest.raises(CannotTell, match="address space"):
        own_pages(still)


def test_more_than_the_budget_cannot_be_told(still: int) -> None:
    with pytest.raises(CannotTell, match="MiB"):
        fingerprint(still, 1 << 20)
    with pytest.raises(CannotTell, match="MiB"):
        first_difference(still, MemoryPrint(), 1 << 20)


def test_a_process_that_is_gone_cannot_be_told() -> None:
    with child(lambda: None) as pid:
        pass
    with pytest.raises(CannotTell):
        fingerprint(pid, PLENTY)


def test_types_that_there_are_none_of_are_left_out(tmp_path: Path) -> None:
    types = read_types(["vfs_read", "no_such_function"], ["list_head", "no_such_struct"])
    assert types.functions.keys() == {"vfs_read"}
    assert types.structs["list_head"].size == 16
    assert types.structs["list_head"].members == {"next": 0, "prev": 8}
    assert types.structs.keys() == {"list_head"}


@pytest.mark.parametrize("content", [b"", b"\0" * 24, b"\x9f\xeb\1\0" + struct.pack("=5I", 24, 0, 40, 40, 0)])
def test_what_is_no_description_of_types_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "btf").write_bytes(content)
    with pytest.raises(ValueError, match="BTF"):
        read_types(["f"], [], tmp_path / "btf")
