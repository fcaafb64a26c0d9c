"""Finding the path of a folder by its handle, wherever it is now.

Paths are relative to the root of the file system. A mount of our own that no
path leads to is what handles are opened by: one that others see could be moved
or taken away, and every path would be another one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Container

from turnkeep_store.beneath import O_PATH_NOFOLLOW, open_beneath
from turnkeep_store.errors import UnsafePath

from turnkeep.watch import fanotify
from turnkeep.watch.fanotify import Handle
from turnkeep.watch.kernel import checked, libc, system_call

_LOCAL = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0x01021994: "tmpfs",
}
"""File systems (statfs(2)) that only this host changes, and that are known to report all of it."""

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DELETED = " (deleted)"

_UP_AT_ONCE = 1024
"""So many times ".." are no longer than a path may be."""

_SYS_OPEN_TREE, _SYS_MOUNT_SETATTR = 428, 442
_CLONE, _HERE, _AT_EMPTY_PATH = 1, -100, 0x1000
_PRIVATE = struct.pack("=4Q", 0, 0, 1 << 18, 0)
"""struct mount_attr with the propagation MS_PRIVATE."""


class Folders:
    """The folders of one file system, as far as a mount of it shows them."""

    def __init__(self, folder: str) -> None:
        """Make a mount of the file system that a folder lies in.

        Raises:
            OSError: it cannot be followed.
        """
        with contextlib.ExitStack() as stack:
            kind = _kind_of(folder)
            if kind not in _LOCAL:
                raise OSError(errno.EOPNOTSUPP, f"file systems of its kind ({kind:#x}) are not followed")
            self._mount = _clone_of_mount(folder)
            stack.callback(os.close, self._mount)
            self.fd = os.open(".", os.O_RDONLY | _FOLDER, dir_fd=self._mount)
            stack.callback(os.close, self.fd)
            self.reads_inodes = fanotify.inode_of(fanotify.handle_of(self.fd)) == os.fstat(self.fd).st_ino
            self._close = stack.pop_all().close

    def close(self) -> None:
        """Take the mount away."""
        self._close()

    def way_to(self, folder: str) -> tuple[Handle, str, list[tuple[Handle, bytes]]]:
        """Return a folder's handle, path, and each step of the way: a folder's handle and the next name.

        Raises:
            OSError: no way leads to it.
        """
        fd = os.open(folder, os.O_PATH | _FOLDER)
        try:
            handle = fanotify.handle_of(fd)
        finally:
            os.close(fd)
        if handle == fanotify.handle_of(self.fd):
            return handle, "/", []
        found = self.path_of(handle)
        path, whole = found if isinstance(found, tuple) else ("/", False)
        if not whole or path == "/":
            raise OSError(errno.ENOENT, "it cannot be found by its handle")
        steps = []
        with contextlib.ExitStack() as stack:
            above = self.fd
            for name in os.fsencode(path).strip(b"/").split(b"/"):
                steps.append((fanotify.handle_of(above), name))
                above = os.open(name, os.O_PATH | _FOLDER, dir_fd=above)
                stack.callback(os.close, above)
            if fanotify.handle_of(above) != handle:
                raise OSError(errno.ENOENT, "it was moved")
        return handle, path, steps

    def path_of(self, handle: Handle, known: Container[Handle] = ()) -> tuple[str, bool] | Handle | None:
        """Return the path of a folder, and True; None if the folder is gone.

        Where the path is too long for the kernel to tell, it is that of a folder
        above, and False; or the handle of the one right above, if that is `known`.
        What no path leads to is said to be the root.

        Raises:
            OSError: that cannot be told.
        """
        try:
            fd = fanotify.open_handle(self.fd, handle)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return None
            raise
        try:
            if os.fstat(fd).st_nlink == 0:
                return None
            path = _path_if_short(fd)
            if path is None:
                above = _handle_above(fd)
                return above if above in known else (_path_above(fd), False)
            return (self._without_note(fd, path) if path.endswith(_DELETED) else path), True
        finally:
            os.close(fd)

    def inode_of(self, handle: Handle) -> int:
        """Return the inode number of a file; 0 if it is gone, and with it all its names.

        Raises:
            OSError: that cannot be told.
        """
        if self.reads_inodes:
            inode = fanotify.inode_of(handle)
            if inode is not None:
                return inode
        try:
            fd = fanotify.open_handle(self.fd, handle)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return 0
            raise
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    def _without_note(self, fd: int, path: str) -> str:
        """Return a path without the kernel's note that it is gone, if that is no part of a name."""
        for each in (path, path.removesuffix(_DELETED)):
            with contextlib.suppress(OSError, UnsafePath):
                there = open_beneath(self.fd, os.fsencode(each).lstrip(b"/"), O_PATH_NOFOLLOW)
                try:
                    if os.path.samestat(os.fstat(there), os.fstat(fd)):
                        return each
                finally:
                    os.close(there)
        if os.fstat(fd).st_nlink == 0:
            return path
        raise OSError(errno.ENOENT, "its name cannot be told")


def _handle_above(fd: int) -> Handle:
    above = os.open("..", os.O_PATH | _FOLDER, dir_fd=fd)
    try:
        return fanotify.handle_of(above)
    finally:
        os.close(above)


def _path_above(fd: int) -> str:
    """Return the path of the nearest folder above one whose path is short enough."""
    above, path = fd, ""
    try:
        # Many at a step and then ever fewer: one by one, each asked for its path, a
        # deeply nested folder would keep all who follow its file system waiting.
        steps = _UP_AT_ONCE
        while steps:
            higher = os.open("/".join([".."] * steps), os.O_PATH | _FOLDER, dir_fd=above)
            found = _path_if_short(higher)
            if found is None:
                if above != fd:
                    os.close(above)
                above = higher
                continue
            os.close(higher)
            path = found
            steps //= 2
        return path
    finally:
        if above != fd:
            os.close(above)


def _path_if_short(fd: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None


def _kind_of(folder: str) -> int:
    """Return the kind of file system, the first number of `struct statfs`."""
    buffer = (ctypes.c_long * 32)()
    checked(libc.statfs(os.fsencode(folder), buffer))
    return int(buffer[0]) & 0xFFFF_FFFF


def _clone_of_mount(folder: str) -> int:
    """Return a descriptor of a mount of our own, of as much of a folder's file system as there is mounted.

    That is all of it where its root is mounted. Else it is the part that the folder lies in.
    """
    fd = os.open(folder, os.O_PATH | _FOLDER)
    try:
        device, own = os.fstat(fd).st_dev, _mount_id(fd)
    finally:
        os.close(fd)
    with open("/proc/self/mountinfo", "rb") as mounts:
        fields = [line.split() for line in mounts]
    roots = [each for each in fields if each[3] == b"/"]
    for each in roots + [each for each in fields if int(each[0]) == own]:
        # Spaces and the like are written as octal numbers.
        target = each[4].decode("unicode_escape").encode("latin-1")
        with contextlib.suppress(OSError):
            clone = system_call(_SYS_OPEN_TREE, _HERE, target, _CLONE | os.O_CLOEXEC)
            if os.fstat(clone).st_dev == device:
                system_call(_SYS_MOUNT_SETATTR, clone, b"", _AT_EMPTY_PATH, _PRIVATE, len(_PRIVATE))
                return clone
            os.close(clone)
    raise OSError(errno.ENOENT, "its mount was not found")


def _mount_id(fd: int) -> int:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(b"mnt_id:"))
