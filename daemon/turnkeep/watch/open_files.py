"""The files that processes hold open for writing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

_WRITING = os.O_WRONLY | os.O_RDWR
_DELETED = b" (deleted)"


@dataclass(slots=True)
class WritableFiles:
    """Paths, absolute in their mount namespace, and inodes of files that lost the name they had."""

    paths: set[bytes] = field(default_factory=set)
    inodes: set[int] = field(default_factory=set)


def writable_files(pids: Iterable[int]) -> WritableFiles:
    """Return the files that processes hold open for writing.

    A process that exits meanwhile has no open files any more. What is no file
    with a path (a pipe, a socket) is left out; a device may be among them.
    """
    found = WritableFiles()
    for pid in pids:
        try:
            with os.scandir(f"/proc/{pid}/fdinfo") as listing:
                numbers = [item.name for item in listing]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        for number in numbers:
            _look_at(pid, number, found)
    return found


def _look_at(pid: int, number: str, found: WritableFiles) -> None:
    try:
        with open(f"/proc/{pid}/fdinfo/{number}", "rb", buffering=0) as file:
            if not _writes(file.read(256)):
                return
        link = f"/proc/{pid}/fd/{number}"
        path = os.readlink(os.fsencode(link))
        if not path.startswith(b"/"):
            return
        found.paths.add(path)
        if path.endswith(_DELETED):
            # Also of one that was linked after it was made without a name (O_TMPFILE).
            found.inodes.add(os.stat(link).st_ino)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return


def _writes(info: bytes) -> bool:
    """Whether the octal flags in a file of /proc/PID/fdinfo (proc(5)) say that it can be written."""
    for line in info.splitlines():
        if line.startswith(b"flags:"):
            return bool(int(line.split()[1], 8) & _WRITING)
    return False
