"""Durable changes to the disk: the only module that renames, syncs and locks.

A file is *published* when it has its final name and both its bytes and that
name survive a power cut. Until then it carries a name that starts with
`TEMPORARY`; after a crash such files are rubbish and `remove_leftovers` takes
them away. Everything reaches the operating system through a `Disk`, so that a
test can stand in one that fills up or loses power.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import Protocol

from turnkeep_store.errors import RepositoryLocked, StoreFull, StoreIOError

TEMPORARY = "tmp-"
BUFFER_BYTES = 1024 * 1024

Bytes = bytes | bytearray | memoryview


class DiskFile(Protocol):
    """A new file that is being appended to."""

    def write(self, data: Bytes) -> None: ...

    def read(self, offset: int, length: int) -> bytes: ...

    def size(self) -> int: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class Lock(Protocol):
    """A lock that is held. It ends with `release` or with the process."""

    def release(self) -> None: ...


class Disk(Protocol):
    """The calls that change or read the disk. All of them raise OSError."""

    def create(self, path: str) -> DiskFile: ...

    def read(self, path: str, offset: int, length: int) -> bytes: ...

    def size(self, path: str) -> int: ...

    def list(self, path: str) -> list[tuple[str, int]]: ...

    def rename(self, source: str, target: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def mkdir(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None: ...

    def lock(self, path: str) -> Lock: ...


class DurableFile:
    """A file under construction: append, then `publish` or `discard`.

    Not safe for use by several threads at once. Writes are gathered; an error
    of the disk may surface in a later call, and at the latest in `publish`.
    """

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self._directory = directory
        self._temporary = os.path.join(directory, TEMPORARY + secrets.token_hex(8))
        self._buffer = bytearray()
        self._written = 0
        with disk_errors("create", self._temporary):
            self._file = disk.create(self._temporary)
        self._open = True

    @property
    def size(self) -> int:
        """How many bytes were appended."""
        return self._written + len(self._buffer)

    def write(self, data: Bytes) -> None:
        """Append `data`."""
        self._buffer += data
        if len(self._buffer) >= BUFFER_BYTES:
            self._drain()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes appended earlier."""
        if offset + length > self._written:
            self._drain()
        with disk_errors("read", self._temporary):
            return self._file.read(offset, length)

    def publish(self, name: str, *, replace: bool = False) -> None:
        """Make the file durable under `name`.

        When this raises, the name was not made durable; the file is gone as far
        as the disk allowed. With `replace`, where another file has that name, the name
        leads to one of the two, also when this raises.
        """
        target = os.path.join(self._directory, name)
        try:
            self._drain()
            with disk_errors("sync", self._temporary):
                if self._file.size() != self._written:
                    raise OSError(errno.EIO, "the file's length is not what was written")
                self._file.sync()
            self._close()
            with disk_errors("rename", target):
                self._disk.rename(self._temporary, target)
        except BaseException:
            self.discard()
            raise
        try:
            with disk_errors("sync the directory of", target):
                self._disk.sync_directory(self._directory)
        except BaseException:
            if not replace:
                with contextlib.suppress(OSError):
                    self._disk.unlink(target)
            raise

    def discard(self) -> None:
        """Close and remove the file. Discarding twice does nothing."""
        if self._open:
            self._close()
        with contextlib.suppress(OSError):
            self._disk.unlink(self._temporary)

    def _drain(self) -> None:
        with disk_errors("write", self._temporary):
            self._file.write(self._buffer)
        self._written += len(self._buffer)
        self._buffer = bytearray()

    def _close(self) -> None:
        self._open = False
        with contextlib.suppress(OSError):  # the bytes were synced, or do not matter any more
            self._file.close()


def write_file_durably(disk: Disk, directory: str, name: str, chunks: Iterable[Bytes]) -> None:
    """Publish a file of these bytes; on return it survives a power cut."""
    file = DurableFile(disk, directory)
    try:
        for chunk in chunks:
            file.write(chunk)
    except BaseException:
        file.discard()
        raise
    file.publish(name)


def remove_durably(disk: Disk, directory: str, names: Iterable[str]) -> None:
    """Remove these files; on return none of them comes back after a power cut.

    Names that are not there are passed over, so an interrupted removal can be
    repeated.
    """
    for name in names:
        path = os.path.join(directory, name)
        with disk_errors("remove", path), contextlib.suppress(FileNotFoundError):
            disk.unlink(path)
    with disk_errors("sync", directory):
        disk.sync_directory(directory)


def make_directory_durably(disk: Disk, path: str) -> None:
    """Create a directory (0700) unless it is there; on return it survives a power cut."""
    with disk_errors("create", path):
        with contextlib.suppress(FileExistsError):
            disk.mkdir(path)
        disk.sync_directory(os.path.dirname(path))


def remove_leftovers(disk: Disk, directory: str) -> int:
    """Remove what a crash left half written. Returns the number of files."""
    with disk_errors("list", directory):
        names = [name for name, _ in disk.list(directory) if name.startswith(TEMPORARY)]
    for name in names:
        with disk_errors("remove", name), contextlib.suppress(FileNotFoundError):
            disk.unlink(os.path.join(directory, name))
    return len(names)


@contextlib.contextmanager
def disk_errors(action: str, path: str) -> Iterator[None]:
    """Turn an OSError of the block into the store's error, with object and hint."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(
                f"cannot {action} {path}: {cause}; free space (or inodes, or quota), or prune, and repeat"
            ) from error
        raise StoreIOError(f"cannot {action} {path}: {cause}; see the kernel's log for the disk") from error


class FileLock:
    """An advisory lock on a file, held until released or until the process ends.

    Raises:
        RepositoryLocked: somebody holds it; the message names the process.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise RepositoryLocked(
                f"{os.path.dirname(path)}: open in process {holder}; stop that process or use it"
            ) from error
        except BaseException:
            os.close(self._fd)
            raise
        # The number is for people only; a full disk must not keep the store shut.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next one in. Releasing twice does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OsFile:
    """A `DiskFile` of the operating system, readable by its owner only."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags, 0o600)

    def write(self, data: Bytes) -> None:
        with memoryview(data) as whole:
            position = 0
            while position < len(whole):
                position += os.write(self._fd, whole[position:])

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class OsDisk:
    """The operating system's disk."""

    def create(self, path: str) -> DiskFile:
        return OsFile(path)

    def read(self, path: str, offset: int, length: int) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)

    def size(self, path: str) -> int:
        return os.stat(path, follow_symlinks=False).st_size

    def list(self, path: str) -> list[tuple[str, int]]:
        files = []
        with os.scandir(path) as found:
            for each in found:
                with contextlib.suppress(FileNotFoundError):  # removed or renamed just now
                    if each.is_file(follow_symlinks=False):
                        files.append((each.name, each.stat(follow_symlinks=False).st_size))
        return files

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def lock(self, path: str) -> Lock:
        return FileLock(path)
