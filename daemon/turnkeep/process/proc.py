"""What the kernel says of one process, read raw from /proc.

Raw because it is read inside freezes: a library would read more files than are
wanted. A process is opened once, by its folder, so that a later process of the
same pid is never mistaken for it; when it ends, whatever is read next raises one
of `GONE`. What a process chose itself (names, links) may be anything and is not
interpreted beyond what the kernel guarantees.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from types import TracebackType
from typing import Self

GONE = (FileNotFoundError, ProcessLookupError)

_MAX_BYTES = 64 * 1024 * 1024
_READ_BYTES = 65536
_STATUS = re.compile(
    rb"^(?:Umask:\t(?P<umask>[0-7]+)|Tgid:\t(?P<tgid>\d+)|TracerPid:\t(?P<tracer>\d+)"
    rb"|NSpid:(?P<nspid>[\t\d]*)|NSsid:(?P<nssid>[\t\d]*)|Seccomp:\t(?P<seccomp>\d+))$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process, zombies included. Pids are the host's.

    `inner` are its pids in the namespaces below ours, the outermost first; the
    last is what itself calls its pid. `size` tells address spaces apart: two
    processes of unequal size do not share one.
    """

    pid: int
    inner: tuple[int, ...]
    parent: int
    group: int
    session: int
    inner_session: int
    terminal: int
    state: str
    name: str
    threads: int
    started: int
    tracer: int
    seccomp: int
    umask: int
    size: tuple[int, ...]

    @property
    def zombie(self) -> bool:
        """Whether its main thread has ended."""
        return self.state in "ZX"

    @property
    def dead(self) -> bool:
        """Whether all that is left of it is its exit code."""
        return self.zombie and self.threads <= 1

    def __str__(self) -> str:
        return f"{self.inner[-1] if self.inner else self.pid} {self.name}"


class Folder:
    """A process's folder in /proc."""

    __slots__ = ("fd", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def read(self, name: str, limit_bytes: int = _MAX_BYTES) -> bytes:
        """Return a file's content.

        Raises:
            OverflowError: there is more than the limit.
        """
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            content = os.read(fd, _READ_BYTES)
            if not content:
                return content
            parts, size = [content], len(content)
            # The kernel returns at most what it formatted in one go: only an
            # empty read is the end.
            while content := os.read(fd, _READ_BYTES):
                parts.append(content)
                size += len(content)
                if size > limit_bytes:
                    raise OverflowError(f"/proc/{self.pid}/{name} is larger than {limit_bytes} bytes")
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(fd)

    def link(self, name: str) -> str:
        """Return where a symbolic link leads, undecodable bytes as surrogates."""
        return os.readlink(name, dir_fd=self.fd)

    def open_folder(self, name: str) -> int:
        """Return a descriptor of a folder inside; the caller closes it."""
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)

    def names(self, name: str) -> list[str]:
        """Return the names in a folder inside."""
        fd = self.open_folder(name)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def process(self) -> Process:
        """Return what its `stat` and `status` say."""
        head, _, tail = self.read("stat").rpartition(b")")
        stat = tail.split()
        status: dict[str, bytes] = {}
        for found in _STATUS.finditer(self.read("status")):
            key = found.lastgroup
            if key is not None:
                status[key] = found[key]
        inner = tuple(int(each) for each in status.get("nspid", b"").split())[1:]
        inner_session = status.get("nssid", b"").split()
        # Of the numbers in stat(5), the first three are pid, name and state.
        return Process(
            pid=self.pid,
            inner=inner,
            parent=int(stat[1]),
            group=int(stat[2]),
            session=int(stat[3]),
            inner_session=int(inner_session[-1]) if inner_session else int(stat[3]),
            terminal=int(stat[4]),
            state=stat[0].decode(),
            name=printable(head.partition(b"(")[2]),
            threads=int(stat[17]),
            started=int(stat[19]),
            tracer=int(status.get("tracer", b"0")),
            seccomp=int(status.get("seccomp", b"0")),
            umask=int(status.get("umask", b"0"), 8),
            size=(int(stat[20]), int(stat[21]), int(stat[25])),
        )

    def children(self) -> list[int]:
        """Return the processes that it started or adopted, zombies included.

        Reliable only while they stand still (proc(5)).
        """
        found: list[int] = []
        for thread in self.names("task"):
            with contextlib.suppress(*GONE):
                found += map(int, self.read(f"task/{thread}/children").split())
        return found


def read_process(pid: int) -> Process | None:
    """Return what is known of a process, None if there is none."""
    try:
        with Folder(pid) as folder:
            return folder.process()
    except GONE:
        return None


def printable(name: bytes | str) -> str:
    """Return a name that others chose as text for people: one line, no control characters."""
    if isinstance(name, str):
        name = os.fsencode(name)
    text = name.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
