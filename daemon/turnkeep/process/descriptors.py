"""What processes hold: descriptors and shared mappings, by the kernel object behind them.

One pass over the processes. What a process holds is entered under a key that two
processes share exactly if they share the thing: the pipe, the socket, the memory.
Open files have no such key that can be read; those that may be one are put into a
group, to be compared.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from turnkeep.process.inside import Mounts
from turnkeep.process.proc import GONE, Folder, Process
from turnkeep.process.syscalls import Node, look_at

MAX_DESCRIPTORS = 20_000
MAX_MAPS_BYTES = 32 * 1024 * 1024

Key = tuple[str, object]
"""`(what, which)`, see `Survey`."""

_NUMBERED = re.compile(r"(pipe|socket):\[(\d+)\]")
_SHARED_MAPPING = re.compile(
    rb"^([0-9a-f]+-[0-9a-f]+) [r-][w-][x-]s [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) *(.*)$", re.MULTILINE
)
_TTY_INDEX = re.compile(rb"^tty-index:\s*(\d+)$", re.MULTILINE)
_PID = re.compile(rb"^Pid:\s*(-?\d+)$", re.MULTILINE)
# Objects of the kernel's own that CRIU knows.
_ANONYMOUS = frozenset(
    f"anon_inode:{name}"
    for name in (
        "[eventfd]",
        "[eventpoll]",
        "[signalfd]",
        "[timerfd]",
        "inotify",
        "[fanotify]",
        "[pidfd]",
    )
)
_PIDFD = "anon_inode:[pidfd]"
_NAMESPACE_FILES = ("mnt:", "net:", "pid:", "ipc:", "uts:", "user:", "cgroup:", "time:")
# Names of memory that several may have: only the inode tells them apart.
_COMMON_NAMES = (b"/memfd:", b"/dev/zero", b"/SYSV", b"/[aio]", b"/anon_hugepage")
_INNER_NAMES = (*_COMMON_NAMES, b"/secretmem", b"/dmabuf:")
"""Files on mounts of the kernel's own."""
_MEM, _TTY, _TTYAUX, _MISC = 1, 4, 5, 10
_KNOWN_MISC = frozenset({200, 235})
_HARMLESS = frozenset({(_MEM, 3), (_MEM, 5), (_MEM, 7), (_MEM, 8), (_MEM, 9)})
MASTER = (_TTYAUX, 2)
SLAVES, _SERIAL, _VIRTUAL_CONSOLE = range(136, 144), 188, 229
_MINORS = 256


@dataclass(frozen=True, slots=True)
class Held:
    """One process's hold on something: a descriptor, or -1 for a mapping or the like."""

    tree: int
    process: Process
    fd: int
    reads: bool = False
    writes: bool = False

    def __str__(self) -> str:
        return f"{self.process}" + (f" (descriptor {self.fd})" if self.fd >= 0 else "")


@dataclass(frozen=True, slots=True)
class Refused:
    """Something that CRIU does not dump: the word for it, and what it is."""

    held: Held
    word: str
    what: str


@dataclass(slots=True)
class Survey:
    """What the processes of several trees hold.

    `holders` has these keys: `pipe` and `socket` by inode; `inode` (named pipes,
    deleted files, anonymous shared memory) by device and inode; `name` (deleted
    files) by name, since a mapping on an overlay shows another device than its
    file; `master` and `slave` by the terminal's number. `groups` hold what may be
    one open file, by its name. `tables` has a number for each process that differs
    where their tables of descriptors do. `watched` are processes that a pidfd
    stands for, `foreign` files on mounts that the sandbox does not have.
    """

    holders: dict[Key, list[Held]] = field(default_factory=lambda: defaultdict(list))
    groups: dict[str, list[Held]] = field(default_factory=lambda: defaultdict(list))
    tables: dict[int, int] = field(default_factory=dict)
    watched: list[tuple[Held, int]] = field(default_factory=list)
    foreign: list[tuple[Held, Node, str]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    nodes: dict[tuple[int, int], Node] = field(default_factory=dict)
    unseen: list[Process] = field(default_factory=list)
    mounts: Mounts = field(default_factory=Mounts)
    descriptors_left: int = MAX_DESCRIPTORS
    maps_left: int = MAX_MAPS_BYTES

    def add(self, tree: int, process: Process, *, with_maps: bool) -> None:
        """Look at one process. One that has ended holds nothing."""
        try:
            with Folder(process.pid) as folder:
                self._add_descriptors(tree, process, folder)
                self._add_terminal(Held(tree, process, -1))
                if with_maps:
                    self._add_mappings(tree, process, folder)
        except OverflowError:
            self.unseen.append(process)
        except GONE:
            return

    def _add_descriptors(self, tree: int, process: Process, folder: Folder) -> None:
        fds = folder.open_folder("fd")
        table = 0
        try:
            for fd in self._numbers(fds):
                with contextlib.suppress(*GONE):
                    link = os.readlink(str(fd), dir_fd=fds)
                    table ^= hash((fd, link))
                    self._add_descriptor(Held(tree, process, fd), folder, fds, link)
        finally:
            os.close(fds)
        self.tables[process.pid] = table

    def _add_terminal(self, held: Held) -> None:
        """Enter the controlling terminal, which a process may have without a descriptor of it."""
        number = held.process.terminal
        major, minor = number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00
        if major in SLAVES:
            self.holders["slave", minor + _MINORS * (major - SLAVES[0])].append(held)

    def _numbers(self, folder: int) -> Iterator[int]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if self.descriptors_left <= 0:
                    raise OverflowError("too many descriptors")
                self.descriptors_left -= 1
                yield int(entry.name)

    def _add_descriptor(self, held: Held, folder: Folder, fds: int, link: str) -> None:
        if link.startswith("/"):
            self._add_file(held, folder, fds, link)
            return
        numbered = _NUMBERED.fullmatch(link)
        if numbered:
            pipe = numbered[1] == "pipe"
            self.holders[numbered[1], int(numbered[2])].append(_with_direction(held, fds) if pipe else held)
            return
        self.groups[link].append(held)
        if link == _PIDFD or link.startswith("pidfd:"):
            found = _PID.search(folder.read(f"fdinfo/{held.fd}"))
            self.watched.append((held, int(found[1]) if found else -1))
        elif link not in _ANONYMOUS and not link.startswith(_NAMESPACE_FILES):
            self.refused.append(Refused(held, _word(link), link))

    def _add_file(self, held: Held, folder: Folder, fds: int, link: str) -> None:
        node = look_at(fds, str(held.fd))
        inner = node.device in self.mounts.queues or os.fsencode(link).startswith(_INNER_NAMES)
        if node.mount not in self.mounts.ids and not inner:
            self.foreign.append((held, node, link))
        if node.type == stat.S_IFIFO:
            self.holders["inode", (node.device, node.inode)].append(_with_direction(held, fds))
        elif node.type == stat.S_IFCHR:
            self._add_device(held, folder, node, link)
        elif node.type == stat.S_IFBLK:
            self.refused.append(Refused(held, "device", link))
        elif node.device in self.mounts.queues and node.type == stat.S_IFREG:
            self.refused.append(Refused(held, "mqueue", link))
        elif node.type == stat.S_IFREG and node.links == 0:
            self.holders["inode", (node.device, node.inode)].append(held)
            if not os.fsencode(link).startswith(_COMMON_NAMES):
                self.holders["name", link].append(held)
            if link.startswith("/secretmem"):
                self.refused.append(Refused(held, "secretmem", link))
        if node.type in (stat.S_IFREG, stat.S_IFDIR):
            self.groups[link].append(held)

    def _add_device(self, held: Held, folder: Folder, node: Node, link: str) -> None:
        major, minor = node.special
        if node.special == MASTER:
            found = _TTY_INDEX.search(folder.read(f"fdinfo/{held.fd}"))
            if found:
                self.holders["master", int(found[1])].append(held)
        elif major in SLAVES:
            self.holders["slave", minor + _MINORS * (major - SLAVES[0])].append(held)
            self.nodes[held.process.pid, held.fd] = node
        elif major not in (_MEM, _TTY, _TTYAUX, _SERIAL, _VIRTUAL_CONSOLE) and not (
            major == _MISC and minor in _KNOWN_MISC
        ):
            self.refused.append(Refused(held, "device", link))
        if node.special not in _HARMLESS:
            self.groups[link].append(held)

    def _add_mappings(self, tree: int, process: Process, folder: Folder) -> None:
        content = folder.read("maps", self.maps_left)
        self.maps_left -= len(content)
        held = Held(tree, process, -1)
        for addresses, major, minor, inode, path in _SHARED_MAPPING.findall(content):
            deleted = path.endswith(b" (deleted)")
            self._add_mapping(held, (int(major, 16), int(minor, 16)), int(inode), path, deleted=deleted)
            if not deleted and path.startswith(b"/"):
                self._add_mapped_file(held, folder, addresses)
        if _is_32_bit(content):
            self.refused.append(Refused(held, "32-bit", ""))

    def _add_mapping(
        self, held: Held, device: tuple[int, int], inode: int, path: bytes, *, deleted: bool
    ) -> None:
        name = os.fsdecode(path)
        if deleted or path.startswith(b"[anon_shmem"):
            self.holders["inode", (device, inode)].append(held)
            if deleted and not path.startswith(_COMMON_NAMES):
                self.holders["name", name].append(held)
        if path.startswith(b"/SYSV") and deleted:
            self.refused.append(Refused(held, "sysv", name))
        elif path.startswith(b"/secretmem") and deleted:
            self.refused.append(Refused(held, "secretmem", name))
        elif path.startswith(b"anon_inode:"):
            self.refused.append(Refused(held, _word(name), name))

    def _add_mapped_file(self, held: Held, folder: Folder, addresses: bytes) -> None:
        start, _, end = addresses.decode().partition("-")
        name = f"map_files/{int(start, 16):x}-{int(end, 16):x}"
        with contextlib.suppress(*GONE):
            node = look_at(folder.fd, name)
            if node.type == stat.S_IFCHR and node.special[0] != _MEM:
                self.refused.append(Refused(held, "device", folder.link(name)))


def _word(link: str) -> str:
    """Return what kind of object of the kernel's own this is."""
    return link.removeprefix("anon_inode:").strip("[]")


def _with_direction(held: Held, fds: int) -> Held:
    """Return a hold with how it was opened, which the link's own mode tells."""
    mode = os.stat(str(held.fd), dir_fd=fds, follow_symlinks=False).st_mode
    return Held(held.tree, held.process, held.fd, bool(mode & stat.S_IRUSR), bool(mode & stat.S_IWUSR))


def _is_32_bit(maps: bytes) -> bool:
    """Whether nothing is mapped above 4 GiB: a 64-bit process has its stack there."""
    last = maps.rstrip(b"\n").rpartition(b"\n")[2]
    if b"[vsyscall]" in last:
        last = maps.rstrip(b"\n").rpartition(b"\n")[0].rpartition(b"\n")[2]
    end = last.partition(b" ")[0].partition(b"-")[2]
    return bool(end) and int(end, 16) <= 1 << 32
