"""System calls about other processes that Python has no names for.

None of them makes the process do anything, so that they work on frozen ones.
See kcmp(2), pidfd_getfd(2) (Linux 5.6), statx(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

KCMP_FILE, KCMP_VM, KCMP_FILES, KCMP_FS = 0, 1, 2, 3

_SYS_KCMP = {
    "x86_64": 312,
    "aarch64": 272,
    "riscv64": 272,
    "loongarch64": 272,
    "ppc64le": 354,
    "s390x": 343,
}.get(platform.machine(), 272)
_SYS_PIDFD_GETFD = 438
_AT_STATX_DONT_SYNC = 0x4000
_STATX_WANTED = 0x1 | 0x4 | 0x100 | 0x1000
_STATX_BYTES = 256
_STATX_NLINK_MODE_INO = struct.Struct("=16xI8xH2xQ")
_STATX_DEVICES_MOUNT = struct.Struct("=128x4IQ")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
_libc.syscall.argtypes = [ctypes.c_long] * 6
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class Node:
    """What kind of file a descriptor leads to."""

    mode: int
    links: int
    device: tuple[int, int]
    inode: int
    special: tuple[int, int]
    mount: int

    @property
    def type(self) -> int:
        """The file's type, as in `stat.S_IFMT`."""
        return stat.S_IFMT(self.mode)

    @property
    def is_null(self) -> bool:
        """Whether it is the device /dev/null."""
        return self.type == stat.S_IFCHR and self.special == (1, 3)


def look_at(folder: int, name: str) -> Node:
    """Return what a link in /proc/PID/fd leads to, by what the kernel knows already.

    A file system that a process serves (FUSE) is not asked: while that process is
    frozen it would never answer.
    """
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(folder, os.fsencode(name), _AT_STATX_DONT_SYNC, _STATX_WANTED, buffer):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    links, mode, inode = _STATX_NLINK_MODE_INO.unpack_from(buffer)
    special_major, special_minor, major, minor, mount = _STATX_DEVICES_MOUNT.unpack_from(buffer)
    return Node(mode, links, (major, minor), inode, (special_major, special_minor), mount)


def compare(kind: int, first: tuple[int, int], second: tuple[int, int]) -> int:
    """Order two kernel objects of processes: 0 if they are one, else -1 or 1.

    Each is a pid and, for KCMP_FILE, a descriptor.

    Raises:
        OSError: one of them is gone, or this kernel cannot tell.
    """
    result = _libc.syscall(_SYS_KCMP, first[0], second[0], kind, first[1], second[1])
    if result in (0, 1, 2):
        return (0, -1, 1)[result]
    code = ctypes.get_errno() if result < 0 else 0
    raise OSError(code, f"kcmp: {os.strerror(code) if code else 'no order'}")


@contextlib.contextmanager
def borrowed(pid: int, fd: int) -> Iterator[int]:
    """Give a descriptor of our own for a process's open file, see `borrow`.

    Raises:
        OSError: it is gone, or this kernel is older than 5.6.
    """
    process = os.pidfd_open(pid)
    try:
        with borrow(process, fd) as ours:
            yield ours
    finally:
        os.close(process)


@contextlib.contextmanager
def borrow(process: int, fd: int) -> Iterator[int]:
    """Give a descriptor of our own for an open file of the process that a pidfd stands for.

    Only for pipes, sockets, terminals and the kernel's own objects: closing a
    file of a served file system would ask its server, which may be frozen.

    Raises:
        OSError: it is gone, or this kernel is older than 5.6.
    """
    ours = _libc.syscall(_SYS_PIDFD_GETFD, process, fd, 0, 0, 0)
    if ours < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"pidfd_getfd: {os.strerror(code)}")
    try:
        yield ours
    finally:
        os.close(ours)
