"""What a file tree holds, found out without any of the code under test."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Node:
    """Everything about one name that a restore has to bring back."""

    mode: int
    uid: int
    gid: int
    size: int
    rdev: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]
    content: bytes
    """A symlink's text, or the SHA-256 of a file."""
    names: tuple[bytes, ...]
    """All names of the inode."""


Listing = dict[bytes, Node]


def listing(root: Path) -> Listing:
    """Describe everything beneath `root`. Neither the depth nor a path's length is bounded."""
    found: dict[bytes, tuple[Node, tuple[int, int]]] = {}
    groups: dict[tuple[int, int], list[bytes]] = {}
    for folder, prefix in _folders(root):
        for text in os.listdir(folder):
            path = prefix + os.fsencode(text)
            status = os.stat(text, dir_fd=folder, follow_symlinks=False)
            inode = (status.st_dev, status.st_ino)
            found[path] = _describe(folder, text, status), inode
            if not stat.S_ISDIR(status.st_mode):
                groups.setdefault(inode, []).append(path)
    return {
        path: _with_names(node, groups.get(inode, [path])) for path, (node, inode) in sorted(found.items())
    }


def _folders(root: Path) -> Iterator[tuple[int, bytes]]:
    """Yield each folder's descriptor and its path with a slash behind it, with few descriptors open."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    prefix = b""
    pending: list[list[str]] = []
    names: list[bytes] = []
    try:
        while True:
            yield fd, prefix
            pending.append(_subfolders(fd))
            while pending and not pending[-1]:
                pending.pop()
                if not pending:
                    return
                fd = _go(fd, "..")
                prefix = prefix[: -len(names.pop()) - 1]
            child = pending[-1].pop()
            fd = _go(fd, child)
            names.append(os.fsencode(child))
            prefix += names[-1] + b"/"
    finally:
        os.close(fd)


def _go(fd: int, name: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    finally:
        os.close(fd)


def _subfolders(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _describe(folder: int, name: str, status: os.stat_result) -> Node:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
    here = f"/proc/self/fd/{fd}"
    try:
        content = b""
        if stat.S_ISLNK(status.st_mode):
            content = os.fsencode(os.readlink(name, dir_fd=folder))
        elif stat.S_ISREG(status.st_mode):
            with open(here, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        is_folder = stat.S_ISDIR(status.st_mode)
        return Node(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
            rdev=status.st_rdev,
            mtime_ns=0 if is_folder else status.st_mtime_ns,
            xattrs=tuple((each, os.getxattr(here, each)) for each in sorted(os.listxattr(here))),
            content=content,
            names=(),
        )
    finally:
        os.close(fd)


def _with_names(node: Node, names: list[bytes]) -> Node:
    return Node(
        node.mode,
        node.uid,
        node.gid,
        node.size,
        node.rdev,
        node.mtime_ns,
        node.xattrs,
        node.content,
        tuple(sorted(names)) if len(names) > 1 else (),
    )
