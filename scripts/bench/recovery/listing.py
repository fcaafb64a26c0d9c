"""What a sandbox's file tree holds, found out from outside by a program of its own.

Nothing here is Turnkeep's: a mistake of its reading would otherwise hide itself. Nothing
runs in the sandbox either, which could change what is looked at.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

# What the kernel shows there is not kept anywhere.
_KERNELS = frozenset(("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "securityfs"))
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """All that one name has. Access and change times no restore can set; folders' times do not count."""

    type: str
    mode: int
    uid: int
    gid: int
    size: int = 0
    mtime_ns: int = 0
    device: int = 0
    target: str = ""
    sha256: str = ""
    xattrs: tuple[tuple[str, str], ...] = ()
    names: tuple[str, ...] = ()
    """All names of the inode, where it has several."""


Listing = dict[str, Node]
"""By absolute path; bytes that are not UTF-8 are surrogates, as in `os.fsdecode`."""


def listing(pid: int) -> Listing:
    """Describe the whole merged tree that a process sees, what is mounted in it included.

    It should be idle: what goes while it is looked at raises FileNotFoundError.
    """
    found: Listing = {}
    groups: dict[tuple[int, int], list[str]] = {}
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder, path, name in _entries(root, _kernels(pid)):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            found[path] = _node(folder, name, status)
            if not stat.S_ISDIR(status.st_mode):
                groups.setdefault((status.st_dev, status.st_ino), []).append(path)
    finally:
        os.close(root)
    for paths in groups.values():
        if len(paths) > 1:
            names = tuple(sorted(paths))
            found.update({path: replace(found[path], names=names) for path in paths})
    return found


def _entries(root: int, skipped: frozenset[str]) -> Iterator[tuple[int, str, str]]:
    """Yield everything there is, as the folder's descriptor, the whole path, the name in the folder."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        # From the sandbox's root; every part was seen to be a folder and no link.
        folder = os.open(prefix.lstrip("/") or ".", _FOLDER, dir_fd=root)
        try:
            for name in sorted(os.listdir(folder)):
                path = f"{prefix}/{name}"
                if path in skipped:
                    continue
                yield folder, path, name
                if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    pending.append(path)
        finally:
            os.close(folder)


def _node(folder: int, name: str, status: os.stat_result) -> Node:
    kind = stat.S_IFMT(status.st_mode)
    is_file = kind == stat.S_IFREG
    # By O_PATH: opening a FIFO or a device would do something.
    held = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        here = f"/proc/self/fd/{held}"
        return Node(
            type=_TYPES[kind],
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size if is_file else 0,
            mtime_ns=0 if kind == stat.S_IFDIR else status.st_mtime_ns,
            device=status.st_rdev,
            target=os.readlink(name, dir_fd=folder) if kind == stat.S_IFLNK else "",
            sha256=_digest(here) if is_file else "",
            xattrs=_xattrs(here) if kind in (stat.S_IFREG, stat.S_IFDIR) else (),
        )
    finally:
        os.close(held)


def _digest(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _xattrs(path: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, os.getxattr(path, name).hex()) for name in sorted(os.listxattr(path)))


def _kernels(pid: int) -> frozenset[str]:
    """Return where the kernel's own file systems are mounted, and what hides parts of them."""
    found = set()
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        target, fs_type = left.split()[4], right.split()[0]
        if fs_type in _KERNELS or target == "/dev/console":
            found.add(target)
    return frozenset(found)
