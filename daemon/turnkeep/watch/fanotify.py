"""fanotify(7): what happens on a file system, by the handle of a folder and a name.

Groups are made in the mode FAN_REPORT_DFID_NAME_TARGET (Linux 5.17), so that
events name the file's inode as well: an overlay writes through one name of an
inode, which need not be one that is still there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from turnkeep.watch.kernel import checked, libc

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
ON_FOLDER, OVERFLOW = 0x4000_0000, 0x4000
MOVED = MOVED_FROM | MOVED_TO
NAMING = MOVED | CREATE | DELETE
"""What changes which names there are. Such events always tell the folder and the name."""

_CLOEXEC, _NONBLOCK = 0x1, 0x2
_REPORT_FID, _REPORT_DIR_FID, _REPORT_NAME, _REPORT_TARGET_FID = 0x200, 0x400, 0x800, 0x1000
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_WATCHED = MODIFY | ATTRIB | CLOSE_WRITE | MOVED | CREATE | DELETE | ON_FOLDER

_EVENT = struct.Struct("=IBxHQ4x4x")
_INFO = struct.Struct("=BxH8xI")
"""The beginning of a record: its kind and length, past a file system's id the length of a handle."""
_FILE_ID, _FOLDER_NAME, _FOLDER_ID = 1, 2, 3
_HANDLE_AT = _INFO.size - 4
_HANDLE = struct.Struct("=Ii")
_VERSION = 3

QUEUED_BYTES = _EVENT.size
"""What each event in the queue adds to FIONREAD, whatever its size."""

_MAX_HANDLE_BYTES = 128
_AT_EMPTY_PATH = 0x1000
_INODE_BYTES = {_HANDLE.pack(8, 1): 4, _HANDLE.pack(12, 0x81): 8, _HANDLE.pack(20, 0x4D): 8}
"""How many bytes of a handle are the inode's number, by its length and kind that come before it
(include/linux/exportfs.h): ext4 and xfs, xfs with large numbers, btrfs."""

_BUSY_RETRIES = 64

libc.fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
)
libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
libc.name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)

Handle = bytes
"""A file handle as open_by_handle_at(2) takes it: length, kind, and what only the file system reads."""


class Event(NamedTuple):
    """What happened at a name in a folder; `file` is the handle of what has, or had, the name."""

    mask: int
    folder: Handle
    name: bytes
    file: Handle


def open_group() -> int:
    """Return the descriptor of a new group: non-blocking, its queue bounded by the kernel.

    Raises:
        OSError: this is not root, or the kernel is older than Linux 5.17.
    """
    reported = _REPORT_FID | _REPORT_DIR_FID | _REPORT_NAME | _REPORT_TARGET_FID
    flags = _CLOEXEC | _NONBLOCK | reported
    return checked(libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC))


def mark_file_system(group: int, folder_fd: int) -> None:
    """Have everything that changes on the file system of a folder reported.

    Raises:
        OSError: the file system cannot, or there are too many marks.
    """
    checked(libc.fanotify_mark(group, _MARK_ADD | _MARK_FILESYSTEM, _WATCHED, folder_fd, b"."))


def parse(data: bytes) -> list[Event]:
    """Return the events that were read from a group.

    An event without a folder (an overflow, one of an inode that lost its name)
    has an empty one.

    Raises:
        OSError: these are no events, or of a version that is not known.
    """
    try:
        return _parse(data)
    except (struct.error, ValueError) as error:
        raise OSError(0, f"fanotify: events of an unknown form: {error}") from error


def _parse(data: bytes) -> list[Event]:
    events = []
    position, end = 0, len(data)
    while position < end:
        length, version, header, mask = _EVENT.unpack_from(data, position)
        if version != _VERSION:
            raise OSError(0, f"fanotify: events of version {version} are not known")
        if length < _EVENT.size or header < _EVENT.size or position + length > end:
            raise ValueError(f"an event of {length} bytes")
        folder = name = file = b""
        at, limit = position + header, position + length
        while at < limit:
            kind, size, handle_bytes = _INFO.unpack_from(data, at)
            if size < _INFO.size or at + size > limit:
                raise ValueError(f"information of {size} bytes")
            handle_end = at + _HANDLE_AT + _HANDLE.size + handle_bytes
            handle = data[at + _HANDLE_AT : handle_end]
            if kind == _FOLDER_NAME:
                folder, name = handle, data[handle_end : data.index(b"\0", handle_end)]
            elif kind == _FILE_ID:
                file = handle
            elif kind == _FOLDER_ID:
                folder, name = handle, b"."
            at += size
        events.append(Event(mask, folder, name, file))
        position += length
    return events


def handle_of(fd: int) -> Handle:
    """Return the handle of an open file.

    Raises:
        OSError: its file system has none.
    """
    buffer = ctypes.create_string_buffer(_HANDLE.size + _MAX_HANDLE_BYTES)
    _HANDLE.pack_into(buffer, 0, _MAX_HANDLE_BYTES, 0)
    mount = ctypes.c_int()
    checked(libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), _AT_EMPTY_PATH))
    return buffer.raw[: _HANDLE.size + _HANDLE.unpack_from(buffer, 0)[0]]


def open_handle(mount_fd: int, handle: Handle) -> int:
    """Return a descriptor (O_PATH) of what a handle stands for.

    Raises:
        OSError: ESTALE if it is gone.
    """
    for _ in range(_BUSY_RETRIES):
        fd = libc.open_by_handle_at(mount_fd, handle, os.O_PATH | os.O_CLOEXEC)
        if fd >= 0 or ctypes.get_errno() != errno.ENOMEM:
            return checked(fd)
        # It is gone, and its inode is being made into that of another file: ext4
        # says so in this way until that is done (iget_locked, I_CREATING).
        os.sched_yield()
    return checked(fd)


def inode_of(handle: Handle) -> int | None:
    """Return the inode number that a handle begins with; None where that cannot be told from it."""
    size = _INODE_BYTES.get(handle[: _HANDLE.size])
    return None if size is None else int.from_bytes(handle[_HANDLE.size : _HANDLE.size + size], "little")
