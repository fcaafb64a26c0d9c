"""Making a directory equal to a tree, whatever is in it.

Everything is compared, content included, so the work can be repeated after an
interruption and ends the same. It also writes an overlay's upper layer while
that is not mounted: whiteouts become character devices 0/0, and no folder stays
opaque.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import NamedTuple, Protocol

from turnkeep_store.archiver import extents_of, same_attributes
from turnkeep_store.beneath import O_DIRECTORY_READ, O_PATH_NOFOLLOW, Descent, open_beneath
from turnkeep_store.blobs import BulkSource
from turnkeep_store.chunks import read_extents
from turnkeep_store.ids import TreeId
from turnkeep_store.nodes import (
    clear_marks,
    create_node,
    entry_of,
    read_segments,
    remove_tree,
    set_attributes,
    set_attributes_of,
    write_segments,
)
from turnkeep_store.readahead import ReadAhead
from turnkeep_store.restorer import Source, Written, link_to
from turnkeep_store.tree import Directory, Entry, Extent, ExtentKind, NodeType

_AHEAD_BYTES = 1024 * 1024
"""Files up to this size are read ahead; in larger ones the kernel does it by itself."""

_AHEAD_FOLDERS = 256
_NOTHING = Extent(ExtentKind.HOLE, 0)

_SYNC_BYTES = 16 * 1024 * 1024
"""So much is written before the file system begins to write it out."""


class TreeSource(Source, BulkSource, Protocol):
    """Where trees and blobs are read, also many at one go; a repository is one."""

    def fetch_directories(self, trees: Iterable[TreeId]) -> None: ...


class _Pending(NamedTuple):
    """A folder to be filled; a tree of None is nothing, and what was made just now holds nothing yet."""

    path: bytes
    tree: TreeId | None
    is_new: bool = False


_libc = ctypes.CDLL(None, use_errno=True)


def synchronise(
    root_fd: int,
    source: TreeSource,
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
    with (
        ThreadPoolExecutor(2, thread_name_prefix="synchronise") as pool,
        closing(_Syncing(root_fd, pool)) as syncing,
    ):
        ahead = ReadAhead(source, pool)
        work = _Synchronisation(
            root_fd, source, ahead, syncing, upper=upper, keep=frozenset(keep), progress=progress
        )
        try:
            work.run(want)
        finally:
            work.close()
        syncing.finish()
    return work.written


class _Syncing:
    """Has the file system written out while more is being written, so that little is left at the end."""

    def __init__(self, root_fd: int, pool: Executor) -> None:
        self._pool = pool
        self._unsynced = 0
        self._begun: Future[None] | None = None
        # An error since then is reported to whoever syncs through it (syncfs(2)).
        self._folder = open_beneath(root_fd, b"", O_DIRECTORY_READ)

    def wrote(self, count: int) -> None:
        """Take notice of bytes that were written."""
        self._unsynced += count
        if self._unsynced < _SYNC_BYTES or (self._begun is not None and not self._begun.done()):
            return
        self._unsynced = 0
        if self._begun is not None:
            self._begun.result()
        self._begun = self._pool.submit(_sync_file_system, self._folder)

    def finish(self) -> None:
        """Return when all is on the disk.

        Raises:
            OSError: something could not be written.
        """
        if self._begun is not None:
            self._begun.result()
        _sync_file_system(self._folder)

    def close(self) -> None:
        """Close the folder, when nobody syncs through it any more."""
        if self._begun is not None:
            self._begun.exception()
        os.close(self._folder)


def _sync_file_system(folder: int) -> None:
    if _libc.syncfs(folder) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class _Synchronisation:
    def __init__(
        self,
        root_fd: int,
        source: TreeSource,
        ahead: ReadAhead,
        syncing: _Syncing,
        *,
        upper: bool,
        keep: frozenset[bytes],
        progress: Callable[[int], None] | None,
    ) -> None:
        self._way = Descent(root_fd)
        self._target_way = Descent(root_fd)
        self._source = source
        self._ahead = ahead
        self._syncing = syncing
        self._upper = upper
        self._keep = keep
        self._progress = progress
        self._compared = 0
        self._pending: list[_Pending] = []
        self._folders: list[tuple[bytes, Entry]] = []
        self._links: list[tuple[bytes, Entry]] = []
        self._inodes: dict[int, bytes] = {}
        self.written = Written()

    def close(self) -> None:
        """Close the folders that are open."""
        self._way.close()
        self._target_way.close()

    def run(self, want: TreeId) -> None:
        self._pending = [_Pending(b"", want)]
        while self._pending:
            self._fill(self._pending.pop())
        for path, entry in self._links:
            self._link(path, entry)
        # Children were written after their folders' entries were read: times last.
        for path, entry in reversed(self._folders):
            parent, name = self._way.parent(path)
            set_attributes(parent, name, entry, overlay=self._upper)

    def _fill(self, folder: _Pending) -> None:
        """Bring what lies in a folder to what is wanted; the folders in it become pending."""
        directory = self._directory(folder)
        fd = self._way.open(folder.path, O_DIRECTORY_READ)
        try:
            names = frozenset(map(os.fsencode, () if folder.is_new else os.listdir(fd)))
            self._pending.extend(self._remove_extra(fd, folder.path, names, directory))
            nodes = self._folders_and_links(fd, folder.path, directory, names)
            if not folder.is_new:
                # What was to come before depended on what is there.
                self._ahead.follow(self._coming(nodes, names, list(self._pending)))
            for entry in nodes:
                have = self._present(fd, entry.name) if entry.name in names else None
                self._node(fd, _join(folder.path, entry.name), entry, have)
        finally:
            os.close(fd)

    def _directory(self, folder: _Pending) -> Directory:
        return self._source.read_directory(folder.tree) if folder.tree is not None else Directory()

    def _folders_and_links(
        self, fd: int, path: bytes, directory: Directory, names: frozenset[bytes]
    ) -> list[Entry]:
        """Make the folders of a folder, note its links; return what else is to be there."""
        nodes = []
        for entry in directory:
            child = _join(path, entry.name)
            if child in self._keep:
                continue
            self._count()
            if entry.type is NodeType.HARDLINK:
                self._links.append((child, entry))
            elif entry.is_directory and entry.subtree is not None:
                have = self._present(fd, entry.name) if entry.name in names else None
                is_new = self._folder(fd, entry, have)
                self._folders.append((child, entry))
                self._pending.append(_Pending(child, entry.subtree, is_new))
            else:
                nodes.append(entry)
        return nodes

    def _coming(
        self, nodes: Iterable[Entry], names: frozenset[bytes], folders: list[_Pending]
    ) -> Iterator[Extent]:
        """Yield the content that is written next, up to the first folder that may hold something.

        For each folder there is at least an empty hole, so that who asks can stop anywhere.
        """
        for entry in nodes:
            if _is_small(entry) and entry.name not in names:
                yield from entry.content
        while folders and folders[-1].is_new:
            yield _NOTHING
            folder = folders.pop()
            inside = []
            for entry in self._directory(folder):
                child = _join(folder.path, entry.name)
                if child in self._keep:
                    continue
                if entry.is_directory and entry.subtree is not None:
                    inside.append(_Pending(child, entry.subtree, is_new=True))
                elif _is_small(entry):
                    yield from entry.content
            soon = islice(reversed(inside), _AHEAD_FOLDERS)
            self._source.fetch_directories(each.tree for each in soon if each.tree is not None)
            folders.extend(inside)

    def _count(self) -> None:
        self._compared += 1
        if self._progress is not None and self._compared % 256 == 0:
            self._progress(self._compared)

    def _remove_extra(
        self, fd: int, path: bytes, names: frozenset[bytes], directory: Directory
    ) -> list[_Pending]:
        """Remove what the tree does not name; return folders that stay as the way to a kept path."""
        ways: list[_Pending] = []
        for name in names:
            child = _join(path, name)
            if name in directory.entries or child in self._keep:
                continue
            if any(kept.startswith(child + b"/") for kept in self._keep):
                ways.append(_Pending(child, None))
                continue
            self.written.paths += remove_tree(fd, name)
        return ways

    def _folder(self, parent: int, entry: Entry, have: Entry | None) -> bool:
        """See that a folder is there; return whether it had to be made."""
        is_new = have is None or not have.is_directory
        if is_new:
            if have is not None:
                self.written.paths += remove_tree(parent, entry.name)
            create_node(parent, entry.name, entry)
            self.written.paths += 1
        self._clear_marks(parent, entry.name)
        return is_new

    def _node(self, parent: int, path: bytes, entry: Entry, have: Entry | None) -> None:
        if have is not None and self._is_already(parent, entry.name, path, entry, have):
            self._clear_marks(parent, entry.name)
            return
        if have is not None:
            remove_tree(parent, entry.name)
        if entry.type is NodeType.FILE:
            self._write(parent, entry)
        else:
            create_node(parent, entry.name, entry)
            set_attributes(parent, entry.name, entry, overlay=self._upper)
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

    def _write(self, parent: int, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(entry.name, flags, 0o600, dir_fd=parent)
        try:
            count = write_segments(fd, read_extents(self._ahead, entry.content), entry.size)
            set_attributes_of(fd, entry, overlay=self._upper, opened=True)
        finally:
            os.close(fd)
        self.written.bytes += count
        self._syncing.wrote(count)

    def _link(self, path: bytes, entry: Entry) -> None:
        target_parent, target = self._target_way.parent(entry.target)
        parent, name = self._way.parent(path)
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


def _join(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _is_small(entry: Entry) -> bool:
    return entry.size <= _AHEAD_BYTES
