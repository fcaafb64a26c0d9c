"""Folders on the disk: what they take up, what of them is in memory, when they are written."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 512
_libc = ctypes.CDLL(None, use_errno=True)


def allocated_bytes(folder: Path) -> int:
    """Return what a folder takes up on the disk; what has several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for path in _below(folder):
        status = os.lstat(path)
        seen[status.st_dev, status.st_ino] = status.st_blocks
    return sum(seen.values()) * _BLOCK


def content(folder: Path) -> tuple[int, int]:
    """Return how many names there are below a folder, and how many bytes are in its files."""
    names = size = 0
    for path in _below(folder):
        status = os.lstat(path)
        names += 1
        size += status.st_size if os.path.isfile(path) and not os.path.islink(path) else 0
    return names, size


def used_bytes(root: Path) -> int:
    """Return how much of a file system is taken up."""
    status = os.statvfs(root)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def forget(folder: Path) -> None:
    """Have the kernel drop what it keeps in memory of the files' content.

    Names and attributes stay in memory: dropping those would slow down the whole machine.
    """
    write_out(folder)
    for path in _below(folder):
        if os.path.isfile(path) and not os.path.islink(path):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def read_all(folder: Path) -> None:
    """Read all files."""
    buffer = bytearray(1 << 20)
    for path in _below(folder):
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def write_out(folder: Path) -> None:
    """Have the file system that holds a folder write all that is new to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(fd)


def _below(folder: Path) -> Iterator[str]:
    pending = [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
