"""Calling the kernel where Python has no function for it."""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)


def system_call(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call by its number.

    Raises:
        OSError: it failed.
    """
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return checked(int(libc.syscall(ctypes.c_long(number), *converted)))


def checked(result: int) -> int:
    """Return what a function of the C library returned.

    Raises:
        OSError: it failed, which is -1.
    """
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
