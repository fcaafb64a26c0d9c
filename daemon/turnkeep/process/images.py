"""What CRIU's images say: the tree, its processes, their files and memory.

Images are data from a hostile source. Reading them needs no trust: everything is
bounded before memory is, a file must be one that CRIU writes for us and be written
as CRIU writes it (`imageformat`), and no two things may claim one number. Whether
what they say may be restored is decided elsewhere (`vet`).

Images are what is there at one time: whoever may write to the folder can change it
afterwards, so vet and restore from a folder that only we can write to.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from google.protobuf.message import Message

from turnkeep.process.imageformat import Framing, ImageFolder, Kind, Limits, decode, kind_of
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.imageformat.framing import bad

PAGE_BYTES = 4096
_GHOST_HEAD_BYTES = 64 * 1024
_IN_PARENT, _LAZY, _PRESENT = 1, 2, 4
_M = TypeVar("_M", bound=Message)


class TaskState(enum.IntEnum):
    """How a process comes back."""

    ALIVE = 1
    DEAD = 2
    STOPPED = 3


class FileType(enum.IntEnum):
    """What kind of open file a descriptor is."""

    REG = 1
    PIPE = 2
    FIFO = 3
    INETSK = 4
    UNIXSK = 5
    EVENTFD = 6
    EVENTPOLL = 7
    INOTIFY = 8
    SIGNALFD = 9
    PACKETSK = 10
    TTY = 11
    FANOTIFY = 12
    NETLINKSK = 13
    NS = 14
    TUNF = 15
    EXT = 16
    TIMERFD = 17
    MEMFD = 18
    BPFMAP = 19
    PIDFD = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One process of the tree. `threads` begins with the process itself."""

    pid: int
    parent: int
    group: int
    session: int
    threads: tuple[int, ...]
    state: TaskState
    name: str


@dataclass(frozen=True, slots=True)
class PageRun:
    """Pages that lie one after the other, in memory and in the file of pages.

    `offset` is None for pages that have no content of their own there.
    """

    address: int
    pages: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class PageMap:
    """Where the pages of one memory lie in `pages-<pages_id>.img`."""

    pages_id: int
    runs: tuple[PageRun, ...]
    flags: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """All that a folder of images says, by the numbers that images use for it.

    `cores` is by thread, `ids`, `memory`, `file_systems` and `page_maps` by process,
    `descriptors` by the id of the table they are in, `shared_page_maps` by the id
    of the shared memory. `pages` has the sizes of the files of pages, in bytes.
    """

    inventory: pb.Inventory
    tree: tuple[pb.TreeEntry, ...]
    cores: Mapping[int, pb.Core]
    ids: Mapping[int, pb.KernelIds]
    memory: Mapping[int, pb.Mm]
    file_systems: Mapping[int, pb.Fs]
    descriptors: Mapping[int, tuple[pb.Descriptor, ...]]
    files: Mapping[int, pb.File]
    page_maps: Mapping[int, PageMap]
    shared_page_maps: Mapping[int, PageMap]
    pages: Mapping[int, int]
    filters: tuple[pb.SeccompFilter, ...] = ()
    cgroups: pb.Cgroups = field(default_factory=pb.Cgroups)
    clocks: Mapping[int, pb.TimeOffsets] = field(default_factory=dict)
    remaps: tuple[pb.Remap, ...] = ()
    ghosts: Mapping[int, pb.Ghost] = field(default_factory=dict)
    memfds: tuple[pb.MemFdInode, ...] = ()
    locks: tuple[pb.FileLock, ...] = ()
    terminals: Mapping[int, pb.TtyInfo] = field(default_factory=dict)
    pipe_data: tuple[pb.PipeData, ...] = ()
    packets: tuple[pb.SocketPacket, ...] = ()
    streams: tuple[int, ...] = ()

    @property
    def root(self) -> pb.TreeEntry:
        """The process all others descend from."""
        return self.tree[0]

    def tasks(self) -> tuple[Task, ...]:
        """Return the processes, parents before their children.

        Raises:
            BadImages: one of them has no core image, or a state that is none.
        """
        return tuple(self._task(entry) for entry in self.tree)

    def _task(self, entry: pb.TreeEntry) -> Task:
        core = self.cores.get(entry.pid)
        if core is None or not core.HasField("tc"):
            raise bad(f"core-{entry.pid}.img", "it is absent, or says nothing of a process")
        try:
            state = TaskState(core.tc.task_state)
        except ValueError as error:
            raise bad(f"core-{entry.pid}.img", f"{error}: of a process") from error
        # A dead process has no threads: CRIU leaves that field as it happens to be.
        threads = tuple(entry.threads) if state is not TaskState.DEAD else (entry.pid,)
        return Task(
            pid=entry.pid,
            parent=entry.ppid,
            group=entry.pgid,
            session=entry.sid,
            threads=threads,
            state=state,
            name=core.tc.comm.decode("utf-8", "backslashreplace"),
        )


def open_images(folder: ImageFolder | int | str, limits: Limits | None = None) -> Images:
    """Read all images in a folder, given by its path or descriptor.

    Raises:
        BadImages: one is malformed, absent, over a limit, or none that Turnkeep
            lets through; or two claim one number.
        OSError: reading failed.
    """
    if isinstance(folder, ImageFolder):
        return _read(folder)
    with ImageFolder(folder, limits) as opened:
        return _read(opened)


def _read(folder: ImageFolder) -> Images:
    found, pages, streams = _Found(), {}, []
    total = total_pages = 0
    for name, size in folder.sizes().items():
        kind, number = _known(name)
        if kind.framing is Framing.OPAQUE:
            total_pages += size
            if total_pages > folder.limits.pages_bytes:
                raise bad(name, f"more than {folder.limits.pages_bytes} bytes of pages")
            if kind.name == "pages-%u":
                pages[number] = size
            else:
                streams.append(number)
            continue
        at_most = _GHOST_HEAD_BYTES if kind.framing is Framing.TAIL else None
        total += size if at_most is None else min(size, at_most)
        if total > folder.limits.total_bytes:
            raise bad(name, f"more than {folder.limits.total_bytes} bytes of images")
        found.add(kind, number, decode(kind, name, folder.read(name, at_most), folder.limits))
    return _assemble(found, pages, tuple(streams))


def _known(name: str) -> tuple[Kind, int]:
    known = kind_of(name)
    if known is None:
        raise bad(name, "not an image that Turnkeep restores")
    return known


class _Found:
    """Messages by the kind and number of the file they were in."""

    def __init__(self) -> None:
        self._messages: dict[str, dict[int, tuple[Message, ...]]] = {}

    def add(self, kind: Kind, number: int, messages: tuple[Message, ...]) -> None:
        self._messages.setdefault(kind.name, {})[number] = messages

    def one(self, kind: str, cls: type[_M]) -> _M:
        files = self._messages.get(kind)
        if not files:
            raise bad(f"{kind}.img", "it is absent")
        return cast("_M", files[0][0])

    def each(self, kind: str, cls: type[_M]) -> dict[int, _M]:
        files = self._messages.get(kind, {})
        return {number: cast("_M", messages[0]) for number, messages in files.items()}

    def many(self, kind: str, cls: type[_M]) -> tuple[_M, ...]:
        return cast("tuple[_M, ...]", self._messages.get(kind, {}).get(0, ()))

    def all(self, kind: str) -> Iterator[tuple[int, tuple[Message, ...]]]:
        return iter(self._messages.get(kind, {}).items())


def _assemble(found: _Found, pages: Mapping[int, int], streams: tuple[int, ...]) -> Images:
    tree = found.many("pstree", pb.TreeEntry)
    if not tree:
        raise bad("pstree.img", "no process is in it")
    filters = found.each("seccomp", pb.Seccomp).get(0, pb.Seccomp()).seccomp_filters
    return Images(
        inventory=found.one("inventory", pb.Inventory),
        tree=_distinct("pstree.img", tree),
        cores=found.each("core-%u", pb.Core),
        ids=found.each("ids-%u", pb.KernelIds),
        memory=found.each("mm-%u", pb.Mm),
        file_systems=found.each("fs-%u", pb.Fs),
        descriptors={n: cast("tuple[pb.Descriptor, ...]", table) for n, table in found.all("fdinfo-%u")},
        files=_by_id("files.img", found.many("files", pb.File)),
        page_maps=_page_maps(found, "pagemap-%u"),
        shared_page_maps=_page_maps(found, "pagemap-shmem-%u"),
        pages=pages,
        filters=tuple(filters),
        cgroups=found.each("cgroup", pb.Cgroups).get(0, pb.Cgroups()),
        clocks=found.each("timens-%u", pb.TimeOffsets),
        remaps=found.many("remap-fpath", pb.Remap),
        ghosts=found.each("ghost-file-%x", pb.Ghost),
        memfds=found.many("memfd", pb.MemFdInode),
        locks=found.many("filelocks", pb.FileLock),
        terminals=_by_id("tty-info.img", found.many("tty-info", pb.TtyInfo)),
        pipe_data=found.many("pipes-data", pb.PipeData) + found.many("fifo-data", pb.PipeData),
        packets=found.many("sk-queues", pb.SocketPacket),
        streams=streams,
    )


def _distinct(name: str, tree: tuple[pb.TreeEntry, ...]) -> tuple[pb.TreeEntry, ...]:
    if len({entry.pid for entry in tree}) != len(tree):
        raise bad(name, "two processes have one pid")
    return tree


_Numbered = TypeVar("_Numbered", pb.File, pb.TtyInfo)


def _by_id(name: str, messages: Iterable[_Numbered]) -> dict[int, _Numbered]:
    found: dict[int, _Numbered] = {}
    for message in messages:
        if message.id in found:
            raise bad(name, f"two things have the id {message.id}")
        found[message.id] = message
    return found


def _page_maps(found: _Found, kind: str) -> dict[int, PageMap]:
    maps = {}
    for number, messages in found.all(kind):
        head, entries = messages[0], cast("tuple[pb.PagemapEntry, ...]", messages[1:])
        runs = tuple(_runs(entries))
        flags = frozenset(_flags(entry) for entry in entries)
        maps[number] = PageMap(cast("pb.PagemapHead", head).pages_id, runs, flags)
    return maps


def _runs(entries: Iterable[pb.PagemapEntry]) -> Iterator[PageRun]:
    offset = 0
    for entry in entries:
        count = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
        if _flags(entry) & _PRESENT:
            yield PageRun(entry.vaddr, count, offset)
            offset += count * PAGE_BYTES
        else:
            yield PageRun(entry.vaddr, count, None)


def _flags(entry: pb.PagemapEntry) -> int:
    """Return an entry's flags; as CRIU reads those that older ones wrote without."""
    if entry.HasField("flags"):
        return entry.flags
    return _IN_PARENT if entry.in_parent else _PRESENT
