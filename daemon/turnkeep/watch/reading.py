"""Reading changed files, so that nothing is torn and nothing leads outside."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from turnkeep_store.archiver import Segments
from turnkeep_store.beneath import O_PATH_NOFOLLOW, Descent, open_beneath
from turnkeep_store.errors import UnsafePath
from turnkeep_store.nodes import entry_of, is_opaque, read_segments
from turnkeep_store.overlay import RawChange
from turnkeep_store.tree import Entry, Extent, NodeType

from turnkeep.watch.scan import status_of
from turnkeep.watch.table import WHITEOUT, Status

StoreContent = Callable[[Iterable[tuple[int, bytes]], int], tuple[Extent, ...]]
"""Puts a file's content somewhere and returns what an entry says of it."""

FirstName = Callable[[bytes], bytes | None]
"""Returns the first name of a path's inode if that has several, else None (`Sight.first_name`)."""


@dataclass(frozen=True, slots=True)
class Read:
    """One path as it was read. `status` is None if it changed during the reading."""

    path: bytes
    change: RawChange
    status: Status | None
    held_bytes: int = 0
    opaque: bool = False


def read_path(
    way: Descent,
    path: bytes,
    *,
    overlay: bool,
    first_name: FirstName,
    hold_below: int,
    store: StoreContent,
) -> Read:
    """Read what is at `path` now.

    Content smaller than `hold_below` bytes is held in memory; larger content
    goes to `store` piece by piece. For a further name of an inode than its first
    only the link is recorded.

    Raises:
        OSError, StoreError: reading or storing failed.
    """
    try:
        fd = way.open(path, O_PATH_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError, UnsafePath):
        return Read(path, RawChange(path, None), None)
    try:
        return read_node(fd, path, overlay=overlay, first_name=first_name, hold_below=hold_below, store=store)
    finally:
        os.close(fd)


def read_node(
    fd: int,
    path: bytes,
    *,
    overlay: bool,
    first_name: FirstName,
    hold_below: int,
    store: StoreContent,
) -> Read:
    """Read the open node `fd` (O_PATH), known as `path`, as `read_path` does."""
    before = os.fstat(fd)
    status = status_of(before)
    name = path.rpartition(b"/")[2]
    if overlay and stat.S_ISCHR(before.st_mode) and before.st_rdev == 0:
        return Read(path, RawChange(path, Entry(name=name, type=NodeType.WHITEOUT)), WHITEOUT)
    first = first_name(path)
    linked = first is not None
    if first is not None and first != path:
        entry = Entry(name=name, type=NodeType.HARDLINK, target=first)
        return Read(path, RawChange(path, entry, linked=True), status)
    if not stat.S_ISREG(before.st_mode):
        entry = entry_of(fd, name, overlay=overlay, status=before)
        opaque = overlay and entry.is_directory and is_opaque(fd)
        return Read(path, RawChange(path, entry, linked=linked), status, opaque=opaque)
    # The magic link opens exactly the inode that was found to be a regular
    # file: never a FIFO or a device that took its name meanwhile.
    content = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
    try:
        entry = entry_of(content, name, overlay=overlay, status=before, opened=True)
        entry, segments, held = _content(content, entry, hold_below, store)
    finally:
        os.close(content)
    unchanged = status_of(os.fstat(fd)) == status
    change = RawChange(path, entry, segments, linked=linked)
    return Read(path, change, status if unchanged else None, held)


def _content(
    content: int, entry: Entry, hold_below: int, store: StoreContent
) -> tuple[Entry, Segments | None, int]:
    if entry.size < hold_below:
        pieces = tuple(read_segments(content, entry.size))
        return entry, lambda: iter(pieces), sum(len(data) for _, data in pieces)
    extents = store(read_segments(content, entry.size), entry.size)
    return entry.holding(extents), None, 0


def sync_mapped(root_fd: int, paths: Iterable[bytes]) -> None:
    """Write back dirty pages of files that are mapped shared and writable.

    Afterwards their pages are clean, so that the next store through a mapping
    faults and changes the file's ctime (see `scan`).
    """
    for path in paths:
        try:
            fd = open_beneath(root_fd, path, O_PATH_NOFOLLOW)
        except (OSError, UnsafePath):
            continue
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                continue
            content = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fdatasync(content)
            finally:
                os.close(content)
        except OSError:
            continue
        finally:
            os.close(fd)
