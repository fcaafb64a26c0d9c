"""A process that does random things to a tree, as many at a time as it is told to.

Run with the tree and a seed: `python -m tests.watch.chaos TREE SEED`. For each
number on its standard input it does so many things, and then says "ready". Files
and folders that it opened stay open in between.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable
from contextlib import suppress

NAMES = (b"a", b"b", b"c", b"d", b"e", b"f", b"a (deleted)", b"\xff\n")
CREATE = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW
MOST_KEPT = 6
DEEPEST = 6
SECOND = 10**9

_libc = ctypes.CDLL(None, use_errno=True)


class Chaos:
    """Random operations on one tree."""

    def __init__(self, root: bytes, seed: int) -> None:
        self._root = root
        self._random = random.Random(seed)
        self._files: list[int] = []
        self._folders: list[int] = []
        self._pipe = os.pipe2(os.O_NONBLOCK)
        self._all: list[tuple[Callable[[], None], int]] = [
            (self.create, 6),
            (self.append, 8),
            (self.truncate, 2),
            (self.change_mode, 2),
            (self.change_owner, 2),
            (self.change_times, 2),
            (self.change_attribute, 2),
            (self.rename, 10),
            (self.exchange, 3),
            (self.link, 6),
            (self.unlink, 5),
            (self.make_folder, 5),
            (self.make_folders, 1),
            (self.remove_folder, 3),
            (self.remove_tree, 1),
            (self.replace_folder, 2),
            (self.make_link, 2),
            (self.make_node, 1),
            (self.link_what_has_no_name, 2),
            (self.copy_range, 2),
            (self.keep_file, 4),
            (self.write_to_kept, 8),
            (self.splice_to_kept, 4),
            (self.store_to_kept, 2),
            (self.forget_kept, 2),
            (self.keep_folder, 2),
            (self.work_in_kept, 6),
            (self.move_away_and_back, 3),
        ]

    def do(self, count: int) -> None:
        """Do so many things; those that are impossible count, too."""
        operations, weights = zip(*self._all, strict=True)
        for operation in self._random.choices(operations, weights, k=count):
            with suppress(OSError, shutil.Error):
                operation()

    def _path(self) -> bytes:
        """Return a path that is there, most likely."""
        path = self._root
        for _ in range(self._random.randrange(1, DEEPEST)):
            try:
                names = os.listdir(path)
            except OSError:
                break
            if not names:
                break
            path = os.path.join(path, self._random.choice(names))
        return path if path != self._root else self._new()

    def _folder(self) -> bytes:
        path = self._path()
        return path if os.path.isdir(path) and not os.path.islink(path) else os.path.dirname(path)

    def _new(self) -> bytes:
        folder = self._folder() if self._random.random() < 0.8 else self._root
        return os.path.join(folder, self._random.choice(NAMES))

    def _open(self, path: bytes, flags: int) -> int:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o644)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise IsADirectoryError(path)
        return fd

    def create(self) -> None:
        fd = os.open(self._new(), CREATE | os.O_TRUNC, 0o644)
        os.write(fd, b"new" * self._random.randrange(2000))
        os.close(fd)

    def append(self) -> None:
        fd = self._open(self._path(), os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"+")
        os.close(fd)

    def truncate(self) -> None:
        fd = self._open(self._path(), os.O_WRONLY)
        os.ftruncate(fd, self._random.randrange(9000))
        os.close(fd)

    def change_mode(self) -> None:
        path = self._path()
        if not os.path.islink(path):
            os.chmod(path, 0o700 | self._random.randrange(64))

    def change_owner(self) -> None:
        os.chown(self._path(), self._random.randrange(3), 0, follow_symlinks=False)

    def change_times(self) -> None:
        times = (0, self._random.randrange(9) * SECOND)
        os.utime(self._path(), ns=times, follow_symlinks=False)

    def change_attribute(self) -> None:
        value = bytes([self._random.randrange(256)])
        os.setxattr(self._path(), "trusted.t", value, follow_symlinks=False)

    def rename(self) -> None:
        os.rename(self._path(), self._random.choice([self._new, self._path])())

    def exchange(self) -> None:
        _libc.renameat2(-100, self._path(), -100, self._path(), 2)

    def link(self) -> None:
        os.link(self._path(), self._new(), follow_symlinks=False)

    def unlink(self) -> None:
        os.unlink(self._path())

    def make_folder(self) -> None:
        os.mkdir(self._new())

    def make_folders(self) -> None:
        names = self._random.choices(NAMES, k=DEEPEST - 2)
        os.makedirs(os.path.join(self._new(), *names))

    def remove_folder(self) -> None:
        os.rmdir(self._folder())

    def remove_tree(self) -> None:
        path = self._folder()
        if path != self._root:
            shutil.rmtree(path)

    def replace_folder(self) -> None:
        path = self._folder()
        if path != self._root:
            shutil.rmtree(path)
            os.mkdir(path)
            os.close(os.open(os.path.join(path, self._random.choice(NAMES)), CREATE))

    def make_link(self) -> None:
        os.symlink(self._random.choice(NAMES), self._new())

    def make_node(self) -> None:
        kind = self._random.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])
        os.mknod(self._new(), kind | 0o600, os.makedev(1, 3))

    def link_what_has_no_name(self) -> None:
        fd = os.open(self._folder(), os.O_TMPFILE | os.O_RDWR)
        os.write(fd, b"x")
        _libc.linkat(fd, b"", -100, self._new(), 0x1000)
        os.write(fd, b"y")
        self._keep(fd)

    def copy_range(self) -> None:
        source = self._open(self._path(), os.O_RDONLY)
        target = self._open(self._path(), os.O_WRONLY)
        with suppress(OSError):
            os.copy_file_range(source, target, 5)
        os.close(source)
        os.close(target)

    def keep_file(self) -> None:
        self._keep(self._open(self._path(), os.O_RDWR))

    def _keep(self, fd: int) -> None:
        self._files.append(fd)
        if len(self._files) > MOST_KEPT:
            os.close(self._files.pop(0))

    def _kept(self) -> int:
        if not self._files:
            raise FileNotFoundError
        return self._random.choice(self._files)

    def write_to_kept(self) -> None:
        os.write(self._kept(), b"+")

    def splice_to_kept(self) -> None:
        fd = self._kept()
        if self._is_told_apart(fd):
            os.write(self._pipe[1], b"spliced")
            os.splice(self._pipe[0], fd, 7)

    def store_to_kept(self) -> None:
        fd = self._kept()
        if not self._is_told_apart(fd):
            return
        os.ftruncate(fd, 10_000)
        child = os.fork()
        if child == 0:
            # Somebody may truncate the file at this very moment, which kills who stores to it.
            with suppress(ValueError), mmap.mmap(fd, 10_000) as mapping:
                mapping[0] = self._random.randrange(256)
            os._exit(0)
        os.waitpid(child, 0)

    def _is_told_apart(self, fd: int) -> bool:
        """Whether one can tell which file it is: a copy of the image's has that one's inode number,
        as far as the merged view tells, and no name to be known by once the one it was opened by is gone."""
        return not os.readlink(b"/proc/self/fd/%d" % fd).endswith(b" (deleted)")

    def forget_kept(self) -> None:
        if self._files:
            os.close(self._files.pop(self._random.randrange(len(self._files))))

    def keep_folder(self) -> None:
        self._folders.append(os.open(self._folder(), os.O_RDONLY | os.O_DIRECTORY))
        if len(self._folders) > MOST_KEPT:
            os.close(self._folders.pop(0))

    def work_in_kept(self) -> None:
        if not self._folders:
            return
        folder, name = self._random.choice(self._folders), self._random.choice(NAMES)
        what = self._random.randrange(4)
        if what == 0:
            os.close(os.open(name, CREATE, 0o644, dir_fd=folder))
        elif what == 1:
            os.unlink(name, dir_fd=folder)
        elif what == 2:
            os.mkdir(name, dir_fd=folder)
        else:
            other = self._random.choice(self._folders)
            os.rename(name, self._random.choice(NAMES), src_dir_fd=folder, dst_dir_fd=other)

    def move_away_and_back(self) -> None:
        here, there = self._folder(), self._new()
        os.rename(here, there)
        for _ in range(self._random.randrange(3)):
            with suppress(OSError):
                self._random.choice([self.append, self.create, self.rename, self.write_to_kept])()
        os.rename(there, here)


def main() -> None:
    chaos = Chaos(os.fsencode(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin:
        chaos.do(int(line))
        print("ready", flush=True)


if __name__ == "__main__":
    main()
