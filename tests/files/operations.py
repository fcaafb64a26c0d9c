"""What a sandbox may do to its files: single operations on a mounted tree, drawn by Hypothesis.

What is drawn may be impossible in the state at hand; the kernel then says so.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st

SECOND = 10**9


def image_base(root: Path) -> None:
    """The lower layer of the image that operations start from."""
    for folder in ("d", "d/sub", "e", "e/sub", "e/sub/deep"):
        (root / folder).mkdir()
    for path in ("d/a", "d/b", "d/sub/x", "e/a", "e/sub/y", "e/sub/deep/z", "f"):
        (root / path).write_bytes(path.encode() * 10)
        os.utime(root / path, ns=(SECOND, SECOND))
    os.symlink("d/a", root / "l")
    os.mkfifo(root / "e/p")


def image_top(root: Path) -> None:
    """Its upper layer, with a whiteout and an opaque folder."""
    (root / "d/b").unlink()
    (root / "d/c").write_bytes(b"of the top layer")
    shutil.rmtree(root / "e/sub")
    (root / "e/sub").mkdir()
    (root / "e/sub/new").write_bytes(b"in an opaque folder")


@dataclass(frozen=True, slots=True)
class Tree:
    """A mounted tree; numbers choose among what is there."""

    root: bytes

    def old(self, number: int) -> bytes:
        """Return a path that is there."""
        found = [
            os.path.join(top, name)
            for top, folders, files in os.walk(self.root)
            for name in (*folders, *files)
        ]
        return sorted(found)[number % len(found)] if found else self.root + b"/none"

    def folder(self, number: int) -> bytes:
        """Return a folder that is there."""
        found = sorted(top for top, _, _ in os.walk(self.root))
        return found[number % len(found)]

    def new(self, folder: int, name: bytes) -> bytes:
        """Return a path in a folder that is there."""
        return os.path.join(self.folder(folder), name)


def make_file(tree: Tree, folder: int, name: bytes, content: tuple[bytes, int]) -> None:
    _write(tree.new(folder, name), content[0] * content[1])


def write(tree: Tree, old: int, content: tuple[bytes, int]) -> None:
    _write(tree.old(old), content[0] * content[1])


def append(tree: Tree, old: int) -> None:
    _write(tree.old(old), b"+", os.O_APPEND)


def truncate(tree: Tree, old: int, size: int) -> None:
    path = tree.old(old)
    if os.path.isfile(path) and not os.path.islink(path):
        os.truncate(path, size)


def unlink(tree: Tree, old: int) -> None:
    os.unlink(tree.old(old))


def make_folder(tree: Tree, folder: int, name: bytes, mode: int) -> None:
    os.mkdir(tree.new(folder, name), mode)


def remove_folder(tree: Tree, old: int) -> None:
    os.rmdir(tree.old(old))


def remove_all(tree: Tree, old: int) -> None:
    _remove_folder(tree.old(old))


def make_anew(tree: Tree, old: int) -> None:
    """Delete a folder and make one of the same name, which hides the image's."""
    _remove_folder(path := tree.old(old))
    os.mkdir(path)


def delete_and_recreate(tree: Tree, old: int) -> None:
    """Delete a folder and put back what was in it."""
    path, aside = os.fsdecode(tree.old(old)), os.fsdecode(tree.root) + "/aside"
    if os.path.islink(path) or not os.path.isdir(path):
        return
    shutil.copytree(path, aside, symlinks=True, ignore=_no_files_to_read)
    shutil.rmtree(path)
    shutil.copytree(aside, path, symlinks=True)
    shutil.rmtree(aside)


def _no_files_to_read(folder: str, names: list[str]) -> list[str]:
    kinds = {name: os.lstat(os.path.join(folder, name)).st_mode for name in names}
    return [
        name
        for name, mode in kinds.items()
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))
    ]


def replace_folder_by_file(tree: Tree, old: int) -> None:
    _remove_folder(path := tree.old(old))
    _write(path, b"was a folder")


def replace_file_by_folder(tree: Tree, old: int) -> None:
    os.unlink(path := tree.old(old))
    os.mkdir(path)


def rename(tree: Tree, old: int, folder: int, name: bytes) -> None:
    os.rename(tree.old(old), tree.new(folder, name))


def rename_over(tree: Tree, old: int, other: int) -> None:
    os.rename(tree.old(old), tree.old(other))


def rename_folder(tree: Tree, old: int, folder: int, name: bytes) -> None:
    os.rename(tree.folder(old), tree.new(folder, name))


def link(tree: Tree, old: int, folder: int, name: bytes) -> None:
    os.link(tree.old(old), tree.new(folder, name), follow_symlinks=False)


def symlink(tree: Tree, folder: int, name: bytes, text: bytes) -> None:
    os.symlink(text, tree.new(folder, name))


def make_node(tree: Tree, folder: int, name: bytes, kind: int) -> None:
    os.mknod(tree.new(folder, name), kind | 0o640, os.makedev(1, 3))


def chmod(tree: Tree, old: int, mode: int) -> None:
    path = tree.old(old)
    if not os.path.islink(path):
        os.chmod(path, mode)


def chown(tree: Tree, old: int, uid: int, gid: int) -> None:
    os.chown(tree.old(old), uid, gid, follow_symlinks=False)


def set_attribute(tree: Tree, old: int, name: str, value: bytes) -> None:
    os.setxattr(tree.old(old), name, value, follow_symlinks=False)


def remove_attribute(tree: Tree, old: int, name: str) -> None:
    os.removexattr(tree.old(old), name, follow_symlinks=False)


def set_time(tree: Tree, old: int, mtime_ns: int) -> None:
    os.utime(tree.old(old), ns=(0, mtime_ns), follow_symlinks=False)


def put_back(tree: Tree, path: bytes) -> None:
    """Make a file what it is in the image, in a copy."""
    there = os.path.join(tree.root, path)
    with suppress(OSError):
        os.unlink(there)
    _write(there, path * 10)
    os.utime(there, ns=(SECOND, SECOND))


def _remove_folder(path: bytes) -> None:
    if os.path.islink(path) or not os.path.isdir(path):
        raise NotADirectoryError(path)  # rmtree would open a FIFO, and wait
    shutil.rmtree(path)


def _write(path: bytes, content: bytes, flag: int = os.O_TRUNC) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | flag, 0o644)
    with open(fd, "wb") as file:
        file.write(content)


OLD = st.integers(0, 63)
NAMES = st.sampled_from([b"a", b"b", b"d", b"e", b"sub", b"n"])
CONTENTS = st.sampled_from(
    [(b"", 0), (b"x", 1), (b"other", 1), (b"d/a", 10), (b"\0", 9000), (b"yz", 100_000)]
)
"""Some bytes, and how often. (In full they would fill the report of a failure.)"""
SIZES = st.sampled_from([0, 1, 5, 100_000, 3_000_000])
MODES = st.sampled_from([0o644, 0o755, 0o600, 0, 0o4755, 0o2770, 0o1777])
OWNERS = st.sampled_from([0, 1000, 65534])
TIMES = st.sampled_from([SECOND, 0, -SECOND - 1, 1_700_000_000 * SECOND + 123_456_789])
ATTRIBUTES = st.sampled_from(["user.a", "user.b", "user.overlay.c", "trusted.t"])
VALUES = st.sampled_from([b"", b"1", b"\0\xff" * 20])
TEXTS = st.sampled_from([b"d/a", b"../..", b"/etc/passwd", b"n" * 99])
KINDS = st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
IN_IMAGE = st.sampled_from([b"d/a", b"d/sub/x", b"e/a", b"f"])

_TABLE: list[tuple[Callable[..., None], tuple[st.SearchStrategy[object], ...]]] = [
    (make_file, (OLD, NAMES, CONTENTS)),
    (write, (OLD, CONTENTS)),
    (append, (OLD,)),
    (truncate, (OLD, SIZES)),
    (unlink, (OLD,)),
    (make_folder, (OLD, NAMES, MODES)),
    (remove_folder, (OLD,)),
    (remove_all, (OLD,)),
    (make_anew, (OLD,)),
    (delete_and_recreate, (OLD,)),
    (replace_folder_by_file, (OLD,)),
    (replace_file_by_folder, (OLD,)),
    (rename, (OLD, OLD, NAMES)),
    (rename_over, (OLD, OLD)),
    (rename_folder, (OLD, OLD, NAMES)),
    (link, (OLD, OLD, NAMES)),
    (link, (OLD, OLD, NAMES)),
    (symlink, (OLD, NAMES, TEXTS)),
    (make_node, (OLD, NAMES, KINDS)),
    (chmod, (OLD, MODES)),
    (chown, (OLD, OWNERS, OWNERS)),
    (set_attribute, (OLD, ATTRIBUTES, VALUES)),
    (remove_attribute, (OLD, ATTRIBUTES)),
    (set_time, (OLD, TIMES)),
    (put_back, (IN_IMAGE,)),
]

Operation = tuple[Callable[..., None], tuple[object, ...]]

OPERATIONS: st.SearchStrategy[Operation] = st.one_of(
    [st.tuples(st.just(function), st.tuples(*arguments)) for function, arguments in _TABLE]
)


def apply(root: Path, operation: Operation) -> None:
    """Do it, if the kernel lets us."""
    function, arguments = operation
    with suppress(OSError, shutil.Error):
        function(Tree(os.fsencode(root)), *arguments)
