"""What ties a tree of processes to the world outside of its dump."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable

from turnkeep.process.table import Table, Tree

NULL = "null"
INIT_FD = "init:"
FILE = "file"
_NULL_DEVICE = os.makedev(1, 3)
_PIPE = re.compile(r"pipe:\[(\d+)\]")


def ties_of(tree: Tree, table: Table) -> tuple[dict[str, str], list[str]]:
    """Return what stands for each pipe that leads out of a tree, and that in words.

    A pipe whose other end nobody in the tree has belongs to somebody outside: the
    client of a `docker exec`, or the container's log. The log goes on; a client
    is gone when the tree comes back, and `/dev/null` stands for its pipe.
    """
    ends: dict[str, set[str]] = {}
    for row in tree.rows:
        for target, mode in _pipes(row.host):
            ends.setdefault(target, set()).add(mode)
    own = {target: fd for fd, target in _standard_pipes(table.init)}
    replaced, notes = {}, []
    for target, modes in sorted(ends.items()):
        if target in own:
            replaced[target] = f"{INIT_FD}{own[target]}"
        elif len(modes) == 1 and modes != {"rw"}:
            replaced[target] = NULL
    closed = len(replaced) - len(own.keys() & replaced.keys())
    if closed:
        notes.append(f"{closed} pipes lead out of the sandbox; after a restore /dev/null stands for them")
    known = _mounts(table.init)
    replaced.update({name: NULL for row in tree.rows for name in _host_nulls(row.host, known)})
    return replaced, notes


def _mounts(init: int) -> frozenset[int]:
    with open(f"/proc/{init}/mountinfo", "rb") as file:
        return frozenset(int(line.split(None, 1)[0]) for line in file)


def _host_nulls(pid: int, known: frozenset[int]) -> Iterable[str]:
    """Yield CRIU's names of the host's own /dev/null: the engine gives it to its execs as standard input."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError, ValueError, StopIteration):
                mount = _fdinfo(pid, fd, "mnt_id:", 10)
                status = os.stat(f"/proc/{pid}/fd/{fd}")
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL_DEVICE and mount not in known:
                    yield f"{FILE}[{mount:x}:{status.st_ino:x}]"


def _standard_pipes(init: int) -> Iterable[tuple[int, str]]:
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{init}/fd/{fd}")
            if _PIPE.fullmatch(target):
                yield fd, target


def _pipes(pid: int) -> Iterable[tuple[str, str]]:
    """Yield each pipe that a process holds, and how: "r", "w" or "rw"."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError, ValueError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if _PIPE.fullmatch(target):
                    yield target, _mode(pid, fd)


def _fdinfo(pid: int, fd: str, key: str, base: int) -> int:
    with open(f"/proc/{pid}/fdinfo/{fd}") as file:
        return next(int(line.split()[1], base) for line in file if line.startswith(key))


def _mode(pid: int, fd: str) -> str:
    flags = _fdinfo(pid, fd, "flags:", 8)
    return {os.O_RDONLY: "r", os.O_WRONLY: "w"}.get(flags & os.O_ACCMODE, "rw")
