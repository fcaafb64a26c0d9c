"""File systems in memory that no path leads to.

A detached mount (fsopen(2), fsmount(2); Linux 5.2) is reached through its
descriptor alone: no process finds it by walking, nothing is left behind when
the last descriptor is closed, a SIGKILL included.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct

from turnkeep.errors import Unsupported

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_MOUNT_SETATTR = 430, 431, 432, 442
_CLOEXEC = 1
_SET_STRING, _CREATE = 1, 6
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_EMPTY_PATH = 0x1000

_libc = ctypes.CDLL(None, use_errno=True)


def memory_file_system(size_bytes: int) -> int:
    """Return the root of a new, empty file system in memory, bounded; the caller closes it.

    Raises:
        Unsupported: the kernel is older than Linux 5.2.
        OSError: there is no memory, or this is not root.
    """
    context = _call(_SYS_FSOPEN, b"tmpfs", _CLOEXEC)
    try:
        settings = {b"size": str(size_bytes).encode(), b"mode": b"0700"}
        for key, value in settings.items():
            _call(_SYS_FSCONFIG, context, _SET_STRING, key, value, 0)
        # Files of many megabytes, in memory that is had, and given back, in large pieces:
        # a third of the time. Kernels without large pages refuse.
        with contextlib.suppress(OSError):
            _call(_SYS_FSCONFIG, context, _SET_STRING, b"huge", b"within_size", 0)
        _call(_SYS_FSCONFIG, context, _CREATE, None, None, 0)
        return _call(_SYS_FSMOUNT, context, _CLOEXEC, _ATTR_NOSUID)
    finally:
        os.close(context)


def make_read_only(mount: int) -> None:
    """Refuse writes through this mount from now on (Linux 5.12)."""
    attributes = struct.pack("<4Q", _ATTR_RDONLY, 0, 0, 0)
    _call(_SYS_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, attributes, len(attributes))


def _call(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    if result >= 0:
        return result
    code = ctypes.get_errno()
    if code == 38:
        raise Unsupported(
            "this kernel has no detached mounts", hint="capturing processes needs Linux 5.12 or newer"
        )
    raise OSError(code, f"mounting in memory: {os.strerror(code)}")
