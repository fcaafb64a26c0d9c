"""What a sandbox does to its files, step by step: between two steps of an operation, events may be read.

Each is a generator over the merged view of `fill_image` below `fill_upper`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECOND = 10**9
Steps = Iterator[None]
Operation = Callable[[Path], Steps]

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_EXCHANGE = 2
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def fill_image(root: Path) -> None:
    """The image: what has to be copied up before it changes."""
    (root / "low/folder/deep").mkdir(parents=True)
    for name in ("file", "other", "third", "folder/a", "folder/b", "folder/deep/c"):
        (root / "low" / name).write_bytes(name.encode() * 100)
    os.link(root / "low/other", root / "low/folder/other")
    os.symlink("file", root / "low/link")
    os.mkfifo(root / "low/fifo")


def fill_upper(root: Path) -> None:
    """What is in the upper layer from the beginning."""
    (root / "own/folder/deep").mkdir(parents=True)
    (root / "own/empty").mkdir()
    (root / "far/away").mkdir(parents=True)
    for name in ("file", "other", "folder/x", "folder/y", "folder/deep/z"):
        (root / "own" / name).write_bytes(name.encode() * 100)
    (root / "own/linked").write_bytes(b"of many names")
    os.link(root / "own/linked", root / "own/folder/linked")
    os.link(root / "own/linked", root / "far/away/linked")
    os.symlink("file", root / "own/link")


# Content


def create(root: Path) -> Steps:
    (root / "own/new").write_bytes(b"new")
    yield
    (root / "new").write_bytes(b"new")
    (root / "low/folder/deep/new").write_bytes(b"its folders are copied up")
    yield
    append(root / "low/folder/deep/new")


def write(root: Path) -> Steps:
    with open(root / "own/file", "r+b") as file:
        yield
        file.write(b"other")
        file.flush()
        yield
        file.write(b"more")


def append_to_both(root: Path) -> Steps:
    for name in ("own/file", "low/file", "own/file", "low/file"):
        append(root / name)
        yield


def append_of_old(root: Path) -> Steps:
    """Through descriptors that stay open."""
    with open(root / "own/file", "ab", buffering=0) as own, open(root / "low/file", "ab", buffering=0) as low:
        for _ in range(3):
            own.write(b"+")
            low.write(b"+")
            yield


def truncate(root: Path) -> Steps:
    os.truncate(root / "own/file", 3)
    yield
    os.truncate(root / "low/file", 3)
    yield
    os.truncate(root / "own/file", 30_000)
    with open(root / "low/file", "wb"):
        yield


def allocate(root: Path) -> Steps:
    with open(root / "own/file", "r+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)
        yield
        _fallocate(file.fileno(), _PUNCH_HOLE | _KEEP_SIZE, 4096, 8192)
        yield


def copy_range(root: Path) -> Steps:
    with open(root / "own/other", "rb") as source, open(root / "own/file", "r+b") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 20)
        yield
    with open(root / "low/file", "rb") as source, open(root / "low/third", "r+b") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 20)
        yield


def send_and_close(root: Path) -> Steps:
    with open(root / "own/other", "rb") as source, open(root / "own/file", "r+b") as target:
        os.sendfile(target.fileno(), source.fileno(), 0, 20)
    yield


def splice_and_close(root: Path) -> Steps:
    with open(root / "own/file", "r+b", buffering=0) as file, pipe_with(b"spliced") as pipe:
        os.splice(pipe, file.fileno(), 7)
    yield


def map_and_unmap(root: Path) -> Steps:
    for name in ("own/file", "low/file"):
        with open(root / name, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            mapping[:5] = b"store"
        yield


# Attributes


def change_mode(root: Path) -> Steps:
    for name in ("own/file", "own/folder", "low/file", "low/folder", "low/folder/deep", "low/file", "own"):
        os.chmod(root / name, stat.S_IMODE(os.stat(root / name).st_mode) ^ stat.S_IXOTH)
        yield


def change_owner(root: Path) -> Steps:
    for name in ("own/file", "own/link", "own/folder", "low/file", "low/link", "low/folder", "low/fifo"):
        os.chown(root / name, 1000, 1001, follow_symlinks=False)
        yield


def change_time(root: Path) -> Steps:
    for name in ("own/file", "own/link", "own/folder", "low/file", "low/link", "low/folder"):
        os.utime(root / name, ns=(SECOND, 2 * SECOND), follow_symlinks=False)
        yield


def change_attributes(root: Path) -> Steps:
    for name in ("own/file", "own/link", "own/folder", "low/file", "low/link", "low/folder"):
        os.setxattr(root / name, "trusted.t", b"value", follow_symlinks=False)
        yield
        os.setxattr(root / name, "trusted.t", b"other", follow_symlinks=False)
        yield
        os.removexattr(root / name, "trusted.t", follow_symlinks=False)
        yield


def change_access_list(root: Path) -> Steps:
    entries = ((1, 6, -1), (2, 4, 1000), (4, 4, -1), (0x10, 6, -1), (0x20, 4, -1))
    value = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + mode.to_bytes(2, "little") + who.to_bytes(4, "little", signed=True)
        for tag, mode, who in entries
    )
    for name in ("own/file", "low/file"):
        os.setxattr(root / name, "system.posix_acl_access", value)
        yield
        os.removexattr(root / name, "system.posix_acl_access")
        yield


# Names


def rename_file(root: Path) -> Steps:
    os.rename(root / "own/file", root / "own/renamed")
    yield
    append(root / "own/renamed")
    os.rename(root / "low/file", root / "own/from-low")
    yield
    append(root / "own/from-low")


def rename_over(root: Path) -> Steps:
    os.rename(root / "own/file", root / "own/linked")
    yield
    os.rename(root / "own/other", root / "low/file")
    yield
    os.rename(root / "own/empty", root / "far/empty")
    os.mkdir(root / "own/empty")
    yield
    os.rename(root / "own/folder", root / "own/empty")
    yield


def rename_folder(root: Path) -> Steps:
    append(root / "own/folder/x")
    os.rename(root / "own/folder", root / "far/folder")
    yield
    append(root / "far/folder/deep/z")
    yield
    os.rename(root / "far", root / "further")
    append(root / "further/folder/deep/z")
    yield


def move_away_and_back(root: Path) -> Steps:
    for _ in range(2):
        os.rename(root / "own/folder", root / "far/folder")
        yield
        append(root / "far/folder/deep/z")
        (root / "far/folder/deep/new").write_bytes(b"new")
        yield
        os.rename(root / "far/folder", root / "own/folder")
        yield
        append(root / "own/folder/deep/z")
        (root / "own/folder/deep/new").unlink()
        yield


def change_while_away(root: Path) -> Steps:
    """What is read then is read of a folder that will have its old name, and inode, again."""
    (root / "own/folder/deep/er").mkdir()
    yield
    os.rename(root / "own/folder", root / "far/folder")
    yield
    (root / "far/folder/new").write_bytes(b"new")
    (root / "far/folder/deep/made").mkdir()
    os.symlink("to", root / "far/folder/new-link")
    os.rmdir(root / "far/folder/deep/er")
    os.unlink(root / "far/folder/y")
    yield
    os.rename(root / "far/folder", root / "own/folder")
    yield


def change_while_above_is_away(root: Path) -> Steps:
    """The same, one level up."""
    for _ in change_while_away(root):
        yield
        os.rename(root / "own", root / "away")
        if (root / "away/folder").exists():
            (root / "away/folder/deep/made-while-away").mkdir(exist_ok=True)
        yield
        os.rename(root / "away", root / "own")


def move_and_replace(root: Path) -> Steps:
    """Another folder gets the name while the first is away."""
    append(root / "own/folder/deep/z")
    os.rename(root / "own/folder", root / "far/folder")
    (root / "own/folder/deep").mkdir(parents=True)
    yield
    (root / "own/folder/deep/z").write_bytes(b"another")
    append(root / "far/folder/deep/z")
    yield
    shutil.rmtree(root / "own/folder")
    yield
    os.rename(root / "far/folder", root / "own/folder")
    append(root / "own/folder/deep/z")


def move_parent_and_child(root: Path) -> Steps:
    """A folder changes its name while the one above it does."""
    append(root / "own/folder/deep/z")
    os.rename(root / "own/folder/deep", root / "own/folder/deeper")
    yield
    os.rename(root / "own/folder", root / "far/folder")
    yield
    append(root / "far/folder/deeper/z")
    os.rename(root / "far/folder/deeper", root / "deep")
    os.rename(root / "far/folder", root / "deep/folder")
    yield
    append(root / "deep/z")
    append(root / "deep/folder/x")


def exchange(root: Path) -> Steps:
    for one, other in (("own/file", "own/other"), ("own/folder", "far/away"), ("own/file", "far/away")):
        _exchange(root / one, root / other)
        yield
        append(root / "far/away/x" if (root / "far/away/x").exists() else root / "own/other")
        yield


def write_in_moved(root: Path) -> Steps:
    """Through a descriptor of the folder and of a file in it."""
    folder = os.open(root / "own/folder/deep", os.O_RDONLY | os.O_DIRECTORY)
    file = os.open("z", os.O_WRONLY | os.O_APPEND, dir_fd=folder)
    try:
        for name in ("far/folder", "folder", "own/folder"):
            os.rename(_find(root, "folder"), root / name)
            os.write(file, b"+")
            yield
            os.close(os.open("made", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
            yield
            os.unlink("made", dir_fd=folder)
    finally:
        os.close(file)
        os.close(folder)


# Links


def link(root: Path) -> Steps:
    for name in ("own/file", "low/file", "low/other", "own/link", "low/link"):
        os.link(root / name, root / "far/name", follow_symlinks=False)
        yield
        os.chown(root / "far/name", 7, 7, follow_symlinks=False)
        yield
        os.unlink(root / "far/name")
        yield


def write_by_one_name(root: Path) -> Steps:
    for name in ("own/linked", "own/folder/linked", "far/away/linked"):
        append(root / name)
        yield


def unlink_one_name(root: Path) -> Steps:
    append(root / "own/linked")
    yield
    os.unlink(root / "own/linked")
    yield
    append(root / "far/away/linked")
    yield
    os.unlink(root / "own/folder/linked")
    append(root / "far/away/linked")


def write_by_lost_name(root: Path) -> Steps:
    with open(root / "own/linked", "ab", buffering=0) as file:
        os.unlink(root / "own/linked")
        yield
        for _ in range(3):
            file.write(b"+")
            yield
        shutil.rmtree(root / "own")
        yield
        for _ in range(3):
            file.write(b"+")
            yield


def write_in_lost_folder(root: Path) -> Steps:
    """By the only other name, while the folder of the one that is known to the kernel is gone."""
    append(root / "own/folder/linked")
    shutil.rmtree(root / "own/folder")
    os.unlink(root / "own/linked")
    yield
    for _ in range(3):
        append(root / "far/away/linked")
        yield


def link_unlink_append(root: Path) -> Steps:
    for old, new in (("own/file", "far/file"), ("low/file", "far/low"), ("far/file", "own/empty/file")):
        os.link(root / old, root / new)
        os.unlink(root / old)
        yield
        append(root / new)
        yield


def link_in_moved_folder(root: Path) -> Steps:
    append(root / "own/linked")
    os.rename(root / "far/away", root / "moved")
    yield
    append(root / "own/folder/linked")
    yield
    os.rename(root / "own/linked", root / "moved/another")
    os.rename(root / "own", root / "moved/own")
    append(root / "moved/linked")
    yield
    append(root / "moved/another")


def no_name_at_first(root: Path) -> Steps:
    for folder, name in (("own/folder", "own/new"), ("own/folder", "far/new"), ("low/folder", "low/new")):
        fd = os.open(root / folder, os.O_TMPFILE | os.O_RDWR)
        try:
            os.write(fd, b"before")
            yield
            link_open(fd, root / name)
            yield
            for _ in range(2):
                os.write(fd, b"after")
                yield
        finally:
            os.close(fd)
        append(root / name)
        yield


def no_name_in_lost_folder(root: Path) -> Steps:
    fd = os.open(root / "own/folder/deep", os.O_TMPFILE | os.O_RDWR)
    try:
        link_open(fd, root / "far/new")
        yield
        shutil.rmtree(root / "own")
        for _ in range(3):
            os.write(fd, b"after")
            yield
    finally:
        os.close(fd)


# Making and removing


def remove(root: Path) -> Steps:
    os.unlink(root / "own/file")
    os.unlink(root / "low/file")
    yield
    os.rmdir(root / "own/empty")
    shutil.rmtree(root / "own/folder")
    yield
    shutil.rmtree(root / "low/folder")
    yield
    shutil.rmtree(root / "low")


def make_deep(root: Path) -> Steps:
    (root / "/".join([str(root / "a"), *"bcdefghijklmnop"])).mkdir(parents=True)
    for top, _, _ in os.walk(root / "a"):
        (Path(top) / "file").write_bytes(b"")
    yield
    append(root / "a/b/c/d/file")
    shutil.rmtree(root / "a/b/c/d/e")
    yield
    shutil.rmtree(root / "a")


def make_anew(root: Path) -> Steps:
    """Often with the inode of what was there."""
    for _ in range(4):
        os.rmdir(root / "own/empty")
        os.mkdir(root / "own/empty")
        yield
        (root / "own/empty/file").write_bytes(b"")
        yield
        os.unlink(root / "own/empty/file")
        yield


def make_tree_anew(root: Path) -> Steps:
    for number in range(4):
        shutil.rmtree(root / "own/folder")
        (root / "own/folder/deep").mkdir(parents=True)
        yield
        (root / f"own/folder/deep/{number}").write_bytes(b"")
        yield


def make_less_anew(root: Path) -> Steps:
    """What was in it and is gone is no file whose inode would tell."""
    for _ in range(4):
        (root / "own/folder/deep/deeper").mkdir(parents=True, exist_ok=True)
        yield
        shutil.rmtree(root / "own/folder")
        (root / "own/folder").mkdir()
        yield


def change_kind(root: Path) -> Steps:
    path = root / "own/file"
    os.unlink(path)
    path.mkdir()
    (path / "inside").mkdir()
    yield
    shutil.rmtree(path)
    os.symlink("folder", path)
    yield
    os.unlink(path)
    os.mkfifo(path)
    yield
    os.unlink(path)
    path.write_bytes(b"")
    shutil.rmtree(root / "own/folder")
    os.symlink("../far/away", root / "own/folder")
    yield
    append(root / "own/folder/linked")


def special_files(root: Path) -> Steps:
    os.symlink("to", root / "own/new-link")
    os.mkfifo(root / "own/fifo")
    os.mknod(root / "own/null", 0o640 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(root / "own/disk", 0o640 | stat.S_IFBLK, os.makedev(7, 99))
    yield
    with socket.socket(socket.AF_UNIX) as listening, _inside(root / "own") as folder:
        listening.bind(f"{folder}/socket")
    yield
    for name in ("new-link", "fifo", "null", "disk", "socket"):
        os.chown(root / "own" / name, 1, 1, follow_symlinks=False)
        yield
        os.unlink(root / "own" / name)
        yield


def opaque_folder(root: Path) -> Steps:
    shutil.rmtree(root / "low/folder")
    os.mkdir(root / "low/folder")
    yield
    (root / "low/folder/a").write_bytes(b"in an opaque folder")
    yield
    append(root / "low/folder/a")
    shutil.rmtree(root / "low/folder")
    yield
    (root / "low/folder/deep").mkdir(parents=True)
    yield
    os.rmdir(root / "low/folder/deep")
    os.rmdir(root / "low/folder")


def whiteouts(root: Path) -> Steps:
    for name in ("low/file", "low/folder/a", "low/folder/b", "low/other", "low/link", "low/fifo"):
        os.unlink(root / name)
        yield
    (root / "low/file").write_bytes(b"back")
    os.mkdir(root / "low/other")
    yield
    os.unlink(root / "low/file")
    os.rmdir(root / "low/other")
    # Whiteouts in it are removed with it, in a folder of overlayfs's own.
    shutil.rmtree(root / "low/folder")


def copy_up(root: Path) -> Steps:
    os.chmod(root / "low/file", 0o600)
    yield
    os.chmod(root / "low/file", 0o640)
    append(root / "low/third")
    yield
    append(root / "low/third")
    os.link(root / "low/folder/deep/c", root / "c")
    yield
    append(root / "low/folder/deep/c")
    yield
    append(root / "c")
    os.rename(root / "low/folder/a", root / "low/folder/b")
    yield
    append(root / "low/folder/b")
    append(root / "low/other")
    yield
    append(root / "low/folder/other")


def move_low_folder(root: Path) -> Steps:
    """As mv(1) does, since the kernel refuses to rename one."""
    shutil.move(root / "low/folder", root / "own/moved")
    yield
    append(root / "own/moved/deep/c")
    yield
    shutil.move(root / "own/moved", root / "low/folder")
    yield
    append(root / "low/folder/deep/c")


ALL: tuple[Operation, ...] = (
    create,
    write,
    append_to_both,
    append_of_old,
    truncate,
    allocate,
    copy_range,
    send_and_close,
    splice_and_close,
    map_and_unmap,
    change_mode,
    change_owner,
    change_time,
    change_attributes,
    change_access_list,
    rename_file,
    rename_over,
    rename_folder,
    move_away_and_back,
    change_while_away,
    change_while_above_is_away,
    move_and_replace,
    move_parent_and_child,
    exchange,
    write_in_moved,
    link,
    write_by_one_name,
    unlink_one_name,
    write_by_lost_name,
    write_in_lost_folder,
    link_unlink_append,
    link_in_moved_folder,
    no_name_at_first,
    no_name_in_lost_folder,
    remove,
    make_deep,
    make_anew,
    make_tree_anew,
    make_less_anew,
    change_kind,
    special_files,
    opaque_folder,
    whiteouts,
    copy_up,
    move_low_folder,
)


def append(path: Path) -> None:
    """Write to the end of a file that is there."""
    with open(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
        file.write(b"+")


@contextmanager
def pipe_with(content: bytes) -> Iterator[int]:
    """Give the end to read from of a pipe that holds something."""
    reading, writing = os.pipe()
    try:
        os.write(writing, content)
        os.close(writing)
        yield reading
    finally:
        os.close(reading)


@contextmanager
def _inside(folder: Path) -> Iterator[str]:
    """Give a short path of a folder: a socket's is bounded."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _find(root: Path, name: str) -> Path:
    return next(path for path in (root / "own" / name, root / "far" / name, root / name) if path.exists())


def _fallocate(fd: int, mode: int, start: int, length: int) -> None:
    _check(_libc.fallocate64(fd, mode, ctypes.c_int64(start), ctypes.c_int64(length)))


def link_open(fd: int, path: Path) -> None:
    _check(_libc.linkat(fd, b"", _AT_FDCWD, os.fsencode(path), _AT_EMPTY_PATH))


def _exchange(one: Path, other: Path) -> None:
    _check(_libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE))


def _check(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
