"""Disks that lose power or fill up."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from turnkeep_store.durable import Bytes, Disk, DiskFile, Lock, OsDisk


class PowerCut(BaseException):
    """The machine is off. No code of ours runs any more, so nothing may catch this."""


@dataclass
class _Inode:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass
class _Folder:
    names: dict[str, _Inode] = field(default_factory=dict)
    synced: dict[str, _Inode] = field(default_factory=dict)
    pending: list[dict[str, _Inode | None]] = field(default_factory=list)

    def change(self, **names: _Inode | None) -> None:
        self.pending.append(names)
        _apply(self.names, names)


def _apply(names: dict[str, _Inode], change: dict[str, _Inode | None]) -> None:
    for name, inode in change.items():
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode


class PowerCutDisk:
    """A disk in memory that forgets, when power goes, what was not synced.

    A name is durable once its folder was synced, bytes once their file was.
    What was not may survive all the same, in any combination: each change of a
    folder on its own, each file cut short, or with a stretch of it never written.
    """

    def __init__(self) -> None:
        self.folders: dict[str, _Folder] = {}
        self.calls = 0
        self.syncs = 0
        self.cut_at: int | None = None
        self.log: list[str] = []

    def cut(self, rng: random.Random) -> None:
        """Lose power, and come back with what the disk happened to keep."""
        self.cut_at = None
        for folder in self.folders.values():
            kept = dict(folder.synced)
            for change in folder.pending:
                if rng.random() < 0.5:
                    _apply(kept, change)
            folder.names, folder.synced, folder.pending = dict(kept), kept, []
            for inode in kept.values():
                _lose(inode, rng)

    def create(self, path: str) -> DiskFile:
        self._step("create", path)
        folder, name = self._where(path)
        if name in folder.names:
            raise FileExistsError(errno.EEXIST, "exists", path)
        inode = _Inode()
        folder.change(**{name: inode})
        return _File(self, path, inode)

    def read(self, path: str, offset: int, length: int) -> bytes:
        folder, name = self._where(path)
        if name not in folder.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return bytes(folder.names[name].data[offset : offset + length])

    def size(self, path: str) -> int:
        folder, name = self._where(path)
        if name not in folder.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return len(folder.names[name].data)

    def list(self, path: str) -> list[tuple[str, int]]:
        return [(name, len(inode.data)) for name, inode in self._folder(path).names.items()]

    def rename(self, source: str, target: str) -> None:
        self._step("rename", target)
        folder, name = self._where(source)
        if name not in folder.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", source)
        folder.change(**{name: None, os.path.basename(target): folder.names[name]})

    def unlink(self, path: str) -> None:
        self._step("unlink", path)
        folder, name = self._where(path)
        if name not in folder.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        folder.change(**{name: None})

    def mkdir(self, path: str) -> None:
        self._step("mkdir", path)
        if path in self.folders:
            raise FileExistsError(errno.EEXIST, "exists", path)
        # Folders are made once, at the beginning; that they survive is what
        # the sync of their parent is for, and not what this disk is about.
        self.folders[path] = _Folder()

    def sync_directory(self, path: str) -> None:
        self._step("sync_directory", path)
        self.syncs += 1
        if path in self.folders:
            folder = self.folders[path]
            folder.synced, folder.pending = dict(folder.names), []

    def lock(self, path: str) -> Lock:
        return _NoLock()

    def _step(self, call: str, path: str) -> None:
        if self.cut_at is not None and self.calls >= self.cut_at:
            raise PowerCut(f"{call} {path}")
        self.calls += 1
        self.log.append(f"{call} {os.path.basename(path)}")

    def _folder(self, path: str) -> _Folder:
        if path not in self.folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", path)
        return self.folders[path]

    def _where(self, path: str) -> tuple[_Folder, str]:
        return self._folder(os.path.dirname(path)), os.path.basename(path)


def _lose(inode: _Inode, rng: random.Random) -> None:
    """Keep of the bytes that were not synced what chance leaves."""
    synced, data = inode.synced, bytes(inode.data)
    if data != synced:
        fate = rng.randrange(4)
        if fate == 0:
            data = synced
        elif fate == 1:
            data = data[: rng.randint(len(synced), max(len(synced), len(data)))]
        elif fate == 2 and len(data) > len(synced):
            start = rng.randint(len(synced), len(data))
            end = rng.randint(start, len(data))
            data = data[:start] + bytes(end - start) + data[end:]
    inode.data, inode.synced = bytearray(data), data


class _File:
    def __init__(self, disk: PowerCutDisk, path: str, inode: _Inode) -> None:
        self._disk = disk
        self._path = path
        self._inode = inode

    def write(self, data: Bytes) -> None:
        self._disk._step("write", self._path)
        self._inode.data += data

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._inode.data[offset : offset + length])

    def size(self) -> int:
        return len(self._inode.data)

    def sync(self) -> None:
        self._disk._step("sync", self._path)
        self._disk.syncs += 1
        self._inode.synced = bytes(self._inode.data)

    def close(self) -> None:
        return None


class _NoLock:
    def release(self) -> None:
        return None


CALLS = ("create", "write", "sync", "rename", "unlink", "sync_directory", "read")


class FaultyDisk:
    """The operating system's disk, failing on demand.

    While `error` is set, every changing call from the `skip`-th on fails with
    it; with `only`, calls of that kind only.
    """

    def __init__(self, inner: Disk | None = None) -> None:
        self._inner = inner or OsDisk()
        self.error: int | None = None
        self.only: str | None = None
        self.skip = 0
        self.calls = 0
        self.failed = 0

    @contextmanager
    def failing(self, error: int, *, skip: int = 0, only: str | None = None) -> Iterator[None]:
        """Fail in this block."""
        self.error, self.only, self.skip = error, only, skip
        self.calls = self.failed = 0
        try:
            yield
        finally:
            self.error = None

    def create(self, path: str) -> DiskFile:
        self._step("create", path)
        return _FaultyFile(self, path, self._inner.create(path))

    def read(self, path: str, offset: int, length: int) -> bytes:
        if self.only == "read":
            self._step("read", path)
        return self._inner.read(path, offset, length)

    def size(self, path: str) -> int:
        return self._inner.size(path)

    def list(self, path: str) -> list[tuple[str, int]]:
        return self._inner.list(path)

    def rename(self, source: str, target: str) -> None:
        self._step("rename", target)
        self._inner.rename(source, target)

    def unlink(self, path: str) -> None:
        # A full disk can always unlink; a broken one cannot.
        if self.error not in (errno.ENOSPC, errno.EDQUOT):
            self._step("unlink", path)
        self._inner.unlink(path)

    def mkdir(self, path: str) -> None:
        self._step("mkdir", path)
        self._inner.mkdir(path)

    def sync_directory(self, path: str) -> None:
        self._step("sync_directory", path)
        self._inner.sync_directory(path)

    def lock(self, path: str) -> Lock:
        return self._inner.lock(path)

    def _step(self, call: str, path: str) -> None:
        self.calls += 1
        if self.error is None or (self.only is not None and self.only != call):
            return
        if self.calls > self.skip:
            self.failed += 1
            raise OSError(self.error, os.strerror(self.error), path)


class _FaultyFile:
    def __init__(self, disk: FaultyDisk, path: str, inner: DiskFile) -> None:
        self._disk = disk
        self._path = path
        self._inner = inner

    def write(self, data: Bytes) -> None:
        try:
            self._disk._step("write", self._path)
        except OSError:
            self._inner.write(memoryview(data)[: len(data) // 2])  # a full disk writes a part
            raise
        self._inner.write(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._inner.read(offset, length)

    def size(self) -> int:
        return self._inner.size()

    def sync(self) -> None:
        self._disk._step("sync", self._path)
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()
