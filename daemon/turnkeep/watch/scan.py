"""Finding changed files by comparing every file's status with an earlier one's.

The status tuple (type and mode, inode, ctime, mtime, size, owner, device, links)
missed nothing in thousands of writes, renames, links, xattrs, truncates and
time resets, with one exception: stores through a shared mapping to a page that
is dirty already. `mapped_files` finds the files in question.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from turnkeep_store.beneath import O_DIRECTORY_READ, O_PATH_NOFOLLOW, open_beneath
from turnkeep_store.errors import UnsafePath

from turnkeep.errors import ResourceExhausted

Status = tuple[int, int, int, int, int, int, int, int, int]
"""(mode, inode, ctime_ns, mtime_ns, size, uid, gid, rdev, links)."""

WHITEOUT: Status = (stat.S_IFCHR, 0, 0, 0, 0, 0, 0, 0, 0)
"""Of every whiteout. They share one inode, whose ctime and link count say nothing of any of them."""

NEVER: Status = (-1, -1, -1, -1, -1, -1, -1, -1, -1)
"""Of no file: what is recorded with it counts as changed."""

PATH_BYTES = 256
"""How long paths may be on average: each is kept whole, so nested folders cost their depth squared."""

TICK_NS = 20_000_000
"""Two changes closer than this may carry the same ctime: a kernel before 6.13
takes it from the last timer tick, 1 to 10 ms long, and scheduling adds to that."""


@dataclass(slots=True)
class Scan:
    """The status of every path beneath a root, at about one time."""

    files: dict[bytes, Status] = field(default_factory=dict)
    started_ns: int = 0

    def hardlinks(self) -> dict[bytes, bytes]:
        """Map every name whose inode has several names here to the first of them."""
        groups: dict[int, list[bytes]] = {}
        for path, status in self.files.items():
            if status[8] > 1 and not stat.S_ISDIR(status[0]) and status is not WHITEOUT:
                groups.setdefault(status[1], []).append(path)
        return {path: min(paths) for paths in groups.values() if len(paths) > 1 for path in paths}

    def has(self, path: bytes) -> bool:
        """Whether the path exists."""
        return path in self.files


def scan(root_fd: int, *, overlay: bool, exclude: Collection[bytes] = (), max_paths: int = 2_000_000) -> Scan:
    """Take the status of everything beneath `root_fd`, but for `exclude` and all beneath those.

    With `overlay`, character devices 0/0 are whiteouts. Paths that vanish while
    the scan runs are left out; a caller that needs one instant freezes first.

    Raises:
        ResourceExhausted: there are more than `max_paths` paths, or they are too long together.
    """
    result = Scan(started_ns=time.time_ns())
    _walk(root_fd, b"", result.files, overlay=overlay, exclude=exclude, max_paths=max_paths)
    return result


def rescan(
    root_fd: int, earlier: Scan, touched: Collection[bytes], *, overlay: bool, exclude: Collection[bytes] = ()
) -> Scan:
    """Return what a scan would find now if only `touched` paths, and all beneath them, changed.

    The folders above them, whose times and names changed with them, are looked
    at again, and so is every other name of an inode that was touched.
    """
    tops = set(touched)
    above = {folder for path in tops for folder in _folders_above(path)}
    files: dict[bytes, Status] = {}
    inodes = set()
    for path, status in earlier.files.items():
        if path in tops or path in above or any(each in tops for each in _folders_above(path)):
            if status[8] > 1:
                inodes.add(status[1])
        else:
            files[path] = status
    again = tops | above | {path for path, status in files.items() if status[1] in inodes}
    result = Scan(files, time.time_ns())
    for path in again:
        found = _status_at(root_fd, path, overlay=overlay)
        files.pop(path, None)
        if found is None or path in exclude:
            continue
        files[path] = found
        if path in tops and stat.S_ISDIR(found[0]):
            _walk(root_fd, path, files, overlay=overlay, exclude=exclude, max_paths=sys.maxsize)
    return result


def _folders_above(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def _status_at(root_fd: int, path: bytes, *, overlay: bool) -> Status | None:
    try:
        fd = open_beneath(root_fd, path, O_PATH_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError, UnsafePath):
        return None
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if overlay and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return WHITEOUT
    return status_of(status)


def _walk(
    root_fd: int,
    top: bytes,
    files: dict[bytes, Status],
    *,
    overlay: bool,
    exclude: Collection[bytes],
    max_paths: int,
) -> None:
    path_bytes = 0
    pending = [top]
    while pending:
        folder = pending.pop()
        prefix = folder + b"/" if folder else b""
        try:
            fd = open_beneath(root_fd, folder, O_DIRECTORY_READ)
        except (FileNotFoundError, NotADirectoryError, UnsafePath):
            continue
        try:
            with os.scandir(fd) as listing:
                for item in listing:
                    path = prefix + os.fsencode(item.name)
                    if path in exclude:
                        continue
                    path_bytes += len(path)
                    if len(files) >= max_paths or path_bytes > max_paths * PATH_BYTES:
                        raise _too_many(max_paths)
                    try:
                        status = item.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    mode = status.st_mode
                    if overlay and stat.S_ISCHR(mode) and status.st_rdev == 0:
                        files[path] = WHITEOUT
                        continue
                    files[path] = status_of(status)
                    if stat.S_ISDIR(mode):
                        pending.append(path)
        finally:
            os.close(fd)


def _too_many(max_paths: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"more than {max_paths} paths in the writable state,"
        f" or paths longer than {PATH_BYTES} bytes on average",
        hint="raise limits.max_paths, or keep such data in a bind mount",
    )


def status_of(status: os.stat_result) -> Status:
    """Return what is compared of a file's status."""
    return (
        status.st_mode,
        status.st_ino,
        status.st_ctime_ns,
        status.st_mtime_ns,
        status.st_size,
        status.st_uid,
        status.st_gid,
        status.st_rdev,
        status.st_nlink,
    )


def differences(
    baseline: Mapping[bytes, Status], now: Mapping[bytes, Status], doubtful: Iterable[bytes] = ()
) -> tuple[list[bytes], list[bytes]]:
    """Return the paths that are new or have another status, and those that are gone.

    `doubtful` paths count as changed whatever their status says.
    """
    changed = [path for path, status in now.items() if baseline.get(path) != status]
    known = set(changed)
    changed.extend(path for path in doubtful if path in now and path not in known)
    gone = [path for path in baseline if path not in now]
    return changed, gone


def too_fresh(files: Mapping[bytes, Status], moment_ns: int) -> set[bytes]:
    """Return the paths whose ctime lies so close to `moment_ns` that a change
    right after it could carry the same. Whiteouts have none."""
    limit = moment_ns - TICK_NS
    return {path for path, status in files.items() if status[2] >= limit and status is not WHITEOUT}


def mapped_files(pids: Iterable[int]) -> set[bytes]:
    """Return the paths, absolute inside their mount namespace, that processes map shared and writable.

    A process that exits meanwhile has no mappings any more. Files that were
    deleted may be named, too, since nothing tells them from others: a name that
    ends in " (deleted)" or holds a backslash can be a file's own.
    """
    found: set[bytes] = set()
    for pid in pids:
        try:
            with open(f"/proc/{pid}/maps", "rb") as maps:
                for line in maps:
                    fields = line.split(None, 5)
                    if len(fields) == 6 and fields[1][1:2] == b"w" and fields[1][3:4] == b"s":
                        path = fields[5].rstrip(b"\n")
                        if path.startswith(b"/"):
                            found |= {path, path.replace(b"\\012", b"\n")}
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
