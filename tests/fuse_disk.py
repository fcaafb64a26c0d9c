"""A disk whose every write and flush is written down, and that fails when it is told to.

`python -m tests.fuse_disk FOLDER IMAGE LOG CONTROL` mounts a file system (FUSE) with one
file, `disk`, that begins as IMAGE, and says so. A loop device over it is a block device
that does what no real one does on demand. A process of its own: who serves a file system
must not wait for it.

LOG gets an entry for each write and each flush, in the order in which they were done, before
whoever asked is told. While the file CONTROL holds `write` or `sync`, these fail with EIO.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ENTRY = struct.Struct("<QI")
_HEADER = struct.Struct("<IIQQIIIHH")
_ROOT, _DISK = 1, 2
_MOST = 1 << 20
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_DIRECT_IO = 1
_SILENT = frozenset({2, 36, 42})  # FORGET, INTERRUPT, BATCH_FORGET


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that were written to the disk."""

    offset: int
    data: bytes


def read_log(path: Path) -> Iterator[Write | None]:
    """Yield what was done to the disk; None is a flush."""
    with path.open("rb") as log:
        while head := log.read(ENTRY.size):
            offset, size = ENTRY.unpack(head)
            yield Write(offset, log.read(size)) if size else None


class _Server:
    def __init__(self, fd: int, image: Path, log: Path, control: Path) -> None:
        self._fd = fd
        self._data = bytearray(image.read_bytes())
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._control = control
        self._calls: dict[int, Callable[[int, memoryview], bytes]] = {
            1: self._lookup,
            3: self._attributes,
            4: self._attributes,
            14: lambda node, body: struct.pack("<QIi", 0, _DIRECT_IO, 0),
            15: self._read,
            16: self._write,
            17: lambda node, body: struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0),
            18: lambda node, body: b"",
            20: self._sync,
            25: lambda node, body: b"",
            26: self._init,
            38: lambda node, body: b"",
        }

    def serve(self) -> None:
        """Answer until it is unmounted."""
        while True:
            try:
                request = os.read(self._fd, 2 * _MOST)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                continue
            _, call, unique, node, *_ = _HEADER.unpack_from(request)
            if call in _SILENT:
                continue
            status, answer = self._answer(call, node, memoryview(request)[_HEADER.size :])
            os.write(self._fd, struct.pack("<IiQ", 16 + len(answer), -status, unique) + answer)
            if call == 26:
                print("mounted", flush=True)

    def _answer(self, call: int, node: int, body: memoryview) -> tuple[int, bytes]:
        try:
            return 0, self._calls[call](node, body)
        except KeyError:
            return errno.ENOSYS, b""
        except OSError as error:
            return error.errno or errno.EIO, b""

    def _init(self, node: int, body: memoryview) -> bytes:
        flags = _BIG_WRITES | _MAX_PAGES
        return struct.pack("<4I2H2I2HI7I", 7, 31, 0, flags, 8, 6, _MOST, 1, _MOST >> 12, 0, 0, *[0] * 7)

    def _lookup(self, node: int, body: memoryview) -> bytes:
        if bytes(body) != b"disk\0":
            raise OSError(errno.ENOENT, "no such file")
        return struct.pack("<4QII", _DISK, 0, 3600, 3600, 0, 0) + self._of(_DISK)

    def _attributes(self, node: int, body: memoryview) -> bytes:
        return struct.pack("<QII", 3600, 0, 0) + self._of(node)

    def _of(self, node: int) -> bytes:
        size = len(self._data) if node == _DISK else 0
        mode = stat.S_IFREG | 0o600 if node == _DISK else stat.S_IFDIR | 0o700
        return struct.pack("<6Q10I", node, size, size >> 9, *[0] * 6, mode, 1, 0, 0, 0, 4096, 0)

    def _read(self, node: int, body: memoryview) -> bytes:
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(self._data[offset : offset + size])

    def _write(self, node: int, body: memoryview) -> bytes:
        self._fail_if_told("write")
        _, offset, size = struct.unpack_from("<QQI", body)
        data = body[40 : 40 + size]
        os.writev(self._log, [ENTRY.pack(offset, size), data])
        self._data[offset : offset + size] = data
        return struct.pack("<II", size, 0)

    def _sync(self, node: int, body: memoryview) -> bytes:
        self._fail_if_told("sync")
        os.write(self._log, ENTRY.pack(0, 0))
        return b""

    def _fail_if_told(self, what: str) -> None:
        try:
            told = self._control.read_text()
        except FileNotFoundError:
            return
        if what in told.split():
            raise OSError(errno.EIO, "as told")


def main() -> None:
    """Mount it, and serve until it is unmounted."""
    folder, image, log, control = map(Path, sys.argv[1:])
    fd = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"disk", os.fsencode(folder), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "cannot mount it")
    _Server(fd, image, log, control).serve()


if __name__ == "__main__":
    main()
