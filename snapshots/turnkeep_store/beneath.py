"""Opening paths that somebody else wrote, without ever leaving a directory.

The content of a sandbox is hostile: any name may be a symlink to the host's
`/etc/shadow` by the time it is opened. Every function here resolves from a
directory descriptor with openat2(2) and refuses symlinks, "..", magic links and
mount points on the way; there is no other way into a sandbox's files.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

from turnkeep_store.errors import UnsafePath

_SYS_OPENAT2 = 437  # the same on every architecture that has it
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH

_MAX_SEGMENT = 3900  # below PATH_MAX, which bounds one system call, not a tree's depth
_RACE_RETRIES = 64
_LANDING_BYTES = 2048
_MAX_LANDINGS = 64


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

O_PATH_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
O_DIRECTORY_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_beneath(root_fd: int, path: bytes, flags: int, mode: int = 0, *, cross_mounts: bool = False) -> int:
    """Open `path`, relative to and beneath the directory `root_fd`.

    An empty path opens the directory itself. A last component that is a symlink
    is refused unless `flags` hold O_PATH and O_NOFOLLOW, which opens the link
    itself. With `cross_mounts`, mount points on the way are entered.

    Raises:
        UnsafePath: a symlink, a magic link, ".." or a mount point lies on the way.
        OSError: any other failure of open(2).
    """
    fd = root_fd
    resolve = _RESOLVE & ~_RESOLVE_NO_XDEV if cross_mounts else _RESOLVE
    try:
        # Without a slash to cut at, a name is too long, which the kernel says.
        while len(path) > _MAX_SEGMENT and (cut := path.rfind(b"/", 0, _MAX_SEGMENT)) > 0:
            fd = _replace(fd, root_fd, _openat2(fd, path[:cut], O_PATH_NOFOLLOW | os.O_DIRECTORY, 0, resolve))
            path = path[cut + 1 :]
        return _openat2(fd, path or b".", flags | os.O_CLOEXEC, mode, resolve)
    finally:
        if fd != root_fd:
            os.close(fd)


@contextlib.contextmanager
def parent_beneath(root_fd: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield a descriptor of the directory that holds `path`, and its last name.

    Operations on that name with `dir_fd` and without following symlinks stay
    beneath `root_fd`, whatever is renamed meanwhile: the descriptor is of the
    directory, not of a path.

    Raises:
        UnsafePath: the way there is not safe, or `path` ends in no name.
        OSError: any other failure of open(2).
    """
    head, name = _split(path)
    # Without O_NOFOLLOW a symlink is refused as one, not as what is no directory.
    fd = open_beneath(root_fd, head, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd, name
    finally:
        os.close(fd)


class _Step(NamedTuple):
    """A folder that is open; its path ends in a slash."""

    path: bytes
    fd: int


class Descent:
    """Opens paths beneath a directory, each from the top or, where it lies deep, from a folder on the way.

    From the top every time, a chain of nested folders would cost the square of
    its depth. Kept open are the last folder and, on the way to it, one every
    few thousand bytes: at most some dozens, however deep it lies. Those stay
    the ones that were opened, whatever is renamed meanwhile, as with
    `parent_beneath`. Every step is one of `open_beneath`. For one thread.
    """

    def __init__(self, root_fd: int) -> None:
        self._root = root_fd
        self._last: _Step | None = None
        self._landings: list[_Step] = []
        self._spacing = _LANDING_BYTES // 2

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open. It can be used again."""
        self._close_last()
        while self._landings:
            os.close(self._landings.pop().fd)

    def forget(self, path: bytes) -> None:
        """Close the folder `path`, and those beneath it: other ones may come in their places."""
        whole = path + b"/"
        if self._last is not None and self._last.path.startswith(whole):
            self._close_last()
        while self._landings and self._landings[-1].path.startswith(whole):
            os.close(self._landings.pop().fd)

    def folder(self, path: bytes) -> int:
        """Return a descriptor (O_PATH) of a folder, good until the next call. Raises as `open_beneath`."""
        if not path:
            return self._root
        whole = path + b"/"
        if self._last is not None and self._last.path == whole:
            return self._last.fd
        self._close_last()
        while self._landings and not whole.startswith(self._landings[-1].path):
            os.close(self._landings.pop().fd)
        at = self._landings[-1] if self._landings else _Step(b"", self._root)
        while len(at.path) < len(whole):
            start, end = len(at.path), len(path)
            if end - start > _LANDING_BYTES and (cut := path.rfind(b"/", start, start + _LANDING_BYTES)) > 0:
                end = cut
            # Without O_NOFOLLOW a symlink is refused as one, not as what is no directory.
            fd = _openat2(at.fd, path[start:end], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE)
            self._land()
            at = self._last = _Step(whole[: end + 1], fd)
        return at.fd

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Return a descriptor of the folder that holds `path`, and its last name (see `folder`).

        Raises:
            UnsafePath: the way there is not safe, or `path` ends in no name.
            OSError: any other failure of open(2).
        """
        head, name = _split(path)
        return self.folder(head), name

    def open(self, path: bytes, flags: int) -> int:
        """Open `path` as `open_beneath` does; the caller closes it."""
        head, _, name = path.rpartition(b"/")
        return open_beneath(self.folder(head), name, flags)

    def _land(self) -> None:
        """Keep the last folder as one on the way, if the one before is far enough above it."""
        if self._last is None:
            return
        above = len(self._landings[-1].path) if self._landings else 0
        if len(self._last.path) - above < self._spacing:
            self._close_last()
            return
        if len(self._landings) >= _MAX_LANDINGS:
            self._spacing *= 2
            for each in self._landings[::2]:
                os.close(each.fd)
            del self._landings[::2]
        self._landings.append(self._last)
        self._last = None

    def _close_last(self) -> None:
        if self._last is not None:
            os.close(self._last.fd)
        self._last = None


def _split(path: bytes) -> tuple[bytes, bytes]:
    head, _, name = path.rpartition(b"/")
    if not name or name in (b".", b".."):
        raise UnsafePath(f"not a path beneath a directory: {path!r}")
    return head, name


def openat2_works() -> bool:
    """Whether the kernel has openat2 (5.6 or later)."""
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.close(_openat2(fd, b".", O_PATH_NOFOLLOW | os.O_DIRECTORY, 0, _RESOLVE))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _replace(old: int, keep: int, new: int) -> int:
    if old != keep:
        os.close(old)
    return new


def _openat2(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
    how = _OpenHow(flags, mode, resolve)
    for _ in range(_RACE_RETRIES):
        fd: int = _syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        # EAGAIN: a rename somewhere raced with the resolution; the kernel asks
        # to try again.
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    if code in (errno.ELOOP, errno.EXDEV, errno.EAGAIN):
        raise UnsafePath(f"{path!r} leads over a symlink, a mount point or out of its directory")
    raise OSError(code, os.strerror(code), os.fsdecode(path))
