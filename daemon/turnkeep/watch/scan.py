"""Finding changed files by comparing every file's status with an earlier one's.

The status tuple (type and mode, inode, ctime, mtime, size, owner, device, links)
missed nothing in thousands of writes, renames, links, xattrs, truncates and
time resets, with one exception: stores through a shared mapping to a page that
is dirty already. `mapped_files` finds the files in question.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from turnkeep_store.beneath import O_DIRECTORY_READ, Descent
from turnkeep_store.errors import UnsafePath

from turnkeep.errors import ResourceExhausted
from turnkeep.watch.table import WHITEOUT, Sight, Status, weight_of

PATH_BYTES = 160
"""How long paths may be on average: each is kept whole, so nested folders cost their depth squared."""

TICK_NS = 20_000_000
"""Two changes closer than this may carry the same ctime: a kernel before 6.13
takes it from the last timer tick, 1 to 10 ms long, and scheduling adds to that."""


@dataclass(slots=True)
class Scan:
    """The status of every path beneath a root, at about one time."""

    files: dict[bytes, Status] = field(default_factory=dict)
    started_ns: int = 0


def scan(root_fd: int, *, overlay: bool, exclude: Collection[bytes] = (), max_paths: int = 2_000_000) -> Scan:
    """Take the status of everything beneath `root_fd`, but for `exclude` and all beneath those.

    With `overlay`, character devices 0/0 are whiteouts. Paths that vanish while
    the scan runs are left out; a caller that needs one instant freezes first.

    Raises:
        ResourceExhausted: there are more than `max_paths` paths, or they are too long together.
    """
    result = Scan(started_ns=time.time_ns())
    walk(root_fd, b"", result.files, overlay=overlay, exclude=exclude, max_paths=max_paths)
    return result


def walk(
    root_fd: int,
    top: bytes,
    files: dict[bytes, Status],
    *,
    overlay: bool,
    exclude: Collection[bytes],
    max_paths: int,
) -> None:
    """Add the status of every path beneath the folder `top` to `files`. Raises as `scan`."""
    weight = 0
    pending = [top]
    with Descent(root_fd) as way:
        while pending:
            folder = pending.pop()
            prefix = folder + b"/" if folder else b""
            try:
                fd = way.open(folder, O_DIRECTORY_READ)
            except (FileNotFoundError, NotADirectoryError, UnsafePath):
                continue
            try:
                with os.scandir(fd) as listing:
                    for item in listing:
                        path = prefix + os.fsencode(item.name)
                        if path in exclude:
                            continue
                        if len(files) >= max_paths or weight > max_paths * PATH_BYTES:
                            raise too_many(max_paths)
                        try:
                            status = item.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        mode = status.st_mode
                        if overlay and stat.S_ISCHR(mode) and status.st_rdev == 0:
                            files[path] = WHITEOUT
                            weight += len(path)
                            continue
                        files[path] = status_of(status)
                        weight += weight_of(path, files[path])
                        if stat.S_ISDIR(mode):
                            pending.append(path)
            finally:
                os.close(fd)


def too_many(max_paths: int) -> ResourceExhausted:
    """Return the error for more paths than are allowed."""
    return ResourceExhausted(
        f"more than {max_paths} paths in the writable state,"
        f" or folders nested so deeply that paths are longer than {PATH_BYTES} bytes on average",
        hint="raise limits.max_paths, or keep such data in a bind mount",
    )


class Excluded:
    """Paths that are no part of a place, with all beneath them."""

    __slots__ = ("_folders", "_paths")

    def __init__(self, paths: Iterable[bytes]) -> None:
        self._paths = frozenset(paths)
        self._folders = tuple(path + b"/" for path in self._paths)

    def __contains__(self, path: bytes) -> bool:
        return path in self._paths or path.startswith(self._folders)


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
    before: Sight, now: Sight, doubtful: Collection[bytes] = (), looked: Iterable[bytes] | None = None
) -> tuple[set[bytes], set[bytes]]:
    """Return the paths that are new or have another status, and those that are gone.

    `doubtful` paths count as changed whatever their status says. Only `looked`
    paths are compared; with None, all are.
    """
    if looked is None:
        changed = {path for path, status in now.items() if before.get(path) != status or path in doubtful}
        return changed, {path for path in before if path not in now}
    changed, gone = set(), set()
    for path in looked:
        earlier, status = before.get(path), now.get(path)
        if status is None:
            if earlier is not None:
                gone.add(path)
        elif earlier != status or path in doubtful:
            changed.add(path)
    return changed, gone


def too_fresh(files: Mapping[bytes, Status], moment_ns: int) -> set[bytes]:
    """Return the paths whose ctime lies so close to `moment_ns` that a change
    right after it could carry the same. Whiteouts have none."""
    limit = moment_ns - TICK_NS
    return {path for path, status in files.items() if status[2] >= limit and status is not WHITEOUT}
