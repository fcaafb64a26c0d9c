"""The files that processes hold open for writing, or map so."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from turnkeep.watch.kernel import system_call

_WRITING = os.O_WRONLY | os.O_RDWR
_DELETED = b" (deleted)"

_SYS_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272}.get(platform.machine())
_FILES = 2
"""What kcmp(2) is to compare: the tables of open files."""

_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(slots=True)
class WritableFiles:
    """Paths, absolute in their mount namespace, and inodes of files that lost the name they had."""

    paths: set[bytes] = field(default_factory=set)
    inodes: set[int] = field(default_factory=set)


def writable_files(pids: Iterable[int]) -> WritableFiles:
    """Return the files that processes hold open for writing, in any of their threads.

    A process that exits meanwhile has no open files any more. What is no file
    with a path (a pipe, a socket) is left out; a device may be among them. Not
    found are files that are only on their way through a socket, or only
    registered with an io_uring.
    """
    found = WritableFiles()
    for pid in pids:
        for task in _tables_of(pid):
            try:
                with os.scandir(f"{task}/fdinfo") as listing:
                    numbers = [item.name for item in listing]
            except _GONE:
                continue
            for number in numbers:
                _look_at(task, number, found)
    return found


def _tables_of(pid: int) -> Iterator[str]:
    """Yield the folder in /proc of a task for each table of open files that a process has.

    Threads share one. But any may have its own, and the first may have ended.
    """
    yield f"/proc/{pid}"
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except _GONE:
        return
    for thread in threads:
        if thread != pid and not _same_table(pid, thread):
            yield f"/proc/{pid}/task/{thread}"


def _same_table(one: int, other: int) -> bool:
    if _SYS_KCMP is None:
        return False
    try:
        return system_call(_SYS_KCMP, one, other, _FILES, 0, 0) == 0
    except OSError:
        return False


def _look_at(task: str, number: str, found: WritableFiles) -> None:
    try:
        with open(f"{task}/fdinfo/{number}", "rb", buffering=0) as file:
            if not _writes(file.read(256)):
                return
        link = f"{task}/fd/{number}"
        path = _path_of(link)
        if path is not None and not path.startswith(b"/"):
            return
        if path is not None:
            found.paths.add(path)
        if path is None or path.endswith(_DELETED):
            # Also of one that was linked after it was made without a name (O_TMPFILE).
            found.inodes.add(os.stat(link).st_ino)
    except _GONE:
        return


def _path_of(link: str) -> bytes | None:
    """Return where a link in /proc leads to; None if that is too long to be told."""
    try:
        return os.readlink(os.fsencode(link))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def _writes(info: bytes) -> bool:
    """Whether the octal flags in a file of /proc/PID/fdinfo (proc(5)) say that it can be written."""
    for line in info.splitlines():
        if line.startswith(b"flags:"):
            return bool(int(line.split()[1], 8) & _WRITING)
    return False


def mapped_files(pids: Iterable[int]) -> WritableFiles:
    """Return the files that processes map shared and writable.

    A process that exits meanwhile has no mappings any more. A name that ends in
    " (deleted)" or holds a backslash can be a file's own, so files that were
    deleted are named, too; those that lost the name they had may have others,
    and are given by their inodes as well.
    """
    found = WritableFiles()
    for pid in pids:
        for mapping in _mappings_of(pid):
            fields = mapping.split(None, 5)
            if len(fields) < 6 or fields[1][1:2] != b"w" or fields[1][3:4] != b"s":
                continue
            path = fields[5].rstrip(b"\n")
            if not path.startswith(b"/"):
                continue
            found.paths |= {path, path.replace(b"\\012", b"\n")}
            if path.endswith(_DELETED):
                found.inodes.add(int(fields[4]))
    return found


def _mappings_of(pid: int) -> list[bytes]:
    """Return the lines of /proc/PID/maps; from another thread where the first has ended, which shows none."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            if lines := maps.readlines():
                return lines
        threads = os.listdir(f"/proc/{pid}/task")
    except _GONE:
        return []
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/maps", "rb") as maps:
                if lines := maps.readlines():
                    return lines
        except _GONE:
            continue
    return []
