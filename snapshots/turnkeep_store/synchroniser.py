"""Making a directory equal to a tree, whatever is in it.

Everything is compared, content included, so the work can be repeated after an
interruption and ends the same. It also writes an overlay's upper layer while
that is not mounted: whiteouts become character devices 0/0, and no folder stays
opaque.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection

from turnkeep_store.archiver import extents_of, same_attributes
from turnkeep_store.beneath import O_DIRECTORY_READ, O_PATH_NOFOLLOW, open_beneath, parent_beneath
from turnkeep_store.chunks import read_extents
from turnkeep_store.ids import TreeId
from turnkeep_store.nodes import (
    clear_marks,
    create_node,
    entry_of,
    read_segments,
    remove_tree,
    set_attributes,
    write_segments,
)
from turnkeep_store.restorer import Source, Written, link_to
from turnkeep_store.tree import Directory, Entry, NodeType

_libc = ctypes.CDLL(None, use_errno=True)


def synchronise(
    root_fd: int,
    source: Source,
    want: TreeId,
    *,
    upper: bool = False,
    keep: Collection[bytes] = (),
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Bring what lies under `root_fd` to the tree `want`, comparing everything.

    `upper` says that the directory is the upper layer of an overlay that is not
    mounted. Paths in `keep`, and all beneath them, are left as they are.
    `progress` is called with the number of paths compared so far. When this
    returns, what was written is on the disk.

    Raises:
        UnsafePath: something under `root_fd` is being moved about.
        OSError, StoreError: the file system or the repository failed.
    """
    work = _Synchronisation(root_fd, source, upper=upper, keep=frozenset(keep), progress=progress)
    work.run(source.read_directory(want))
    _sync_file_system(root_fd)
    return work.written


def _sync_file_system(root_fd: int) -> None:
    folder = open_beneath(root_fd, b"", O_DIRECTORY_READ)
    try:
        if _libc.syncfs(folder) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(folder)


class _Synchronisation:
    def __init__(
        self,
        root_fd: int,
        source: Source,
        *,
        upper: bool,
        keep: frozenset[bytes],
        progress: Callable[[int], None] | None,
    ) -> None:
        self._root = root_fd
        self._source = source
        self._upper = upper
        self._keep = keep
        self._progress = progress
        self._compared = 0
        self._folders: list[tuple[bytes, Entry]] = []
        self._links: list[tuple[bytes, Entry]] = []
        self._inodes: dict[int, bytes] = {}
        self.written = Written()

    def run(self, directory: Directory) -> None:
        pending: list[tuple[bytes, Directory]] = [(b"", directory)]
        while pending:
            path, directory = pending.pop()
            pending.extend((child, Directory()) for child in self._remove_extra(path, directory))
            for entry in directory:
                child = path + b"/" + entry.name if path else entry.name
                if child in self._keep:
                    continue
                self._count()
                if entry.type is NodeType.HARDLINK:
                    self._links.append((child, entry))
                elif entry.is_directory and entry.subtree is not None:
                    self._folder(child, entry)
                    pending.append((child, self._source.read_directory(entry.subtree)))
                else:
                    self._node(child, entry)
        for path, entry in self._links:
            self._link(path, entry)
        # Children were written after their folders' entries were read: times last.
        for path, entry in reversed(self._folders):
            with parent_beneath(self._root, path) as (parent, name):
                set_attributes(parent, name, entry, overlay=self._upper)

    def _count(self) -> None:
        self._compared += 1
        if self._progress is not None and self._compared % 256 == 0:
            self._progress(self._compared)

    def _remove_extra(self, path: bytes, directory: Directory) -> list[bytes]:
        """Remove what the tree does not name; return folders that stay as the way to a kept path."""
        ways = []
        fd = open_beneath(self._root, path, O_DIRECTORY_READ)
        try:
            for name in map(os.fsencode, os.listdir(fd)):
                child = path + b"/" + name if path else name
                if name in directory.entries or child in self._keep:
                    continue
                if any(kept.startswith(child + b"/") for kept in self._keep):
                    ways.append(child)
                    continue
                self.written.paths += remove_tree(fd, name)
        finally:
            os.close(fd)
        return ways

    def _folder(self, path: bytes, entry: Entry) -> None:
        with parent_beneath(self._root, path) as (parent, name):
            have = self._present(parent, name)
            if have is None or not have.is_directory:
                if have is not None:
                    self.written.paths += remove_tree(parent, name)
                create_node(parent, name, entry)
                self.written.paths += 1
            self._clear_marks(parent, name)
        self._folders.append((path, entry))

    def _node(self, path: bytes, entry: Entry) -> None:
        with parent_beneath(self._root, path) as (parent, name):
            have = self._present(parent, name)
            if have is not None and self._is_already(parent, name, path, entry, have):
                self._clear_marks(parent, name)
                return
            if have is not None:
                remove_tree(parent, name)
            if entry.type is NodeType.FILE:
                self._write(parent, name, entry)
            else:
                create_node(parent, name, entry)
            set_attributes(parent, name, entry, overlay=self._upper)
            self.written.paths += 1

    def _clear_marks(self, parent: int, name: bytes) -> None:
        if self._upper:
            fd = os.open(name, O_PATH_NOFOLLOW, dir_fd=parent)
            try:
                clear_marks(fd)
            finally:
                os.close(fd)

    def _is_already(self, parent: int, name: bytes, path: bytes, entry: Entry, have: Entry) -> bool:
        """Whether content and links are right; attributes then are made right in place."""
        if have.type is not entry.type or have.target != entry.target or have.rdev != entry.rdev:
            return False
        if entry.type is NodeType.WHITEOUT:
            return True
        inode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_ino
        # Two names that the tree holds apart must not share an inode.
        if self._inodes.setdefault(inode, path) != path:
            return False
        if entry.type is NodeType.FILE:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            try:
                same_size = have.size == entry.size
                if not same_size or extents_of(read_segments(fd, have.size), have.size) != entry.content:
                    return False
            finally:
                os.close(fd)
        if not same_attributes(have, entry):
            set_attributes(parent, name, entry, overlay=self._upper)
            self.written.paths += 1
        return True

    def _write(self, parent: int, name: bytes, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            self.written.bytes += write_segments(fd, read_extents(self._source, entry.content), entry.size)
        finally:
            os.close(fd)

    def _link(self, path: bytes, entry: Entry) -> None:
        with (
            parent_beneath(self._root, entry.target) as (target_parent, target),
            parent_beneath(self._root, path) as (parent, name),
        ):
            link_to(target_parent, target, parent, name)

    def _present(self, parent: int, name: bytes) -> Entry | None:
        try:
            fd = os.open(name, O_PATH_NOFOLLOW, dir_fd=parent)
        except FileNotFoundError:
            return None
        try:
            return entry_of(fd, name, overlay=self._upper)
        finally:
            os.close(fd)
