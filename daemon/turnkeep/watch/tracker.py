"""Following what is touched in folders, so that a turn costs what it changed.

What is said here is a hint: it may name more than was touched, and never less.
Where that cannot be promised, `Touched.complete` is False, and the folder has
to be scanned. What it rests on:

- The kernel queues an event within the call that makes the change, so a queue
  that was read to its end inside a freeze holds all that was done before it.
- A folder is known by its handle. Its path is looked up when the event is
  read, which may be after it was renamed; but the renaming is an event, too,
  of both names, and everything beneath them then counts as touched.
- A file is known by its inode as well. An overlay writes through the name that
  it opened an inode by, which may have been unlinked since.
- Not reported before the file is closed: stores through a mapping, splice(2)
  into a file, asynchronous direct I/O. Who uses this looks at the mappings and
  open files of the processes that run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from turnkeep.watch import fanotify
from turnkeep.watch.fanotify import Event, Handle
from turnkeep.watch.overlay_events import why_not_seen

log = structlog.get_logger()

_READ_BYTES = 256 * 1024
_CACHED_FOLDERS = 65_536
_GATHER_MS = 20
_DELETED = ""
"""Stands for the path of a folder that is gone; another than of one outside of what is watched."""


@dataclass(frozen=True, slots=True)
class Touched:
    """What was touched in a folder since it was last asked.

    `paths` are relative to it; the folder itself is empty. `deep` are those
    of them beneath which everything counts as touched. `inodes` are those of
    files that were written, by whatever name. If `complete` is False, nothing is
    known of what was touched, and `why` says so.
    """

    paths: frozenset[bytes] = frozenset()
    deep: frozenset[bytes] = frozenset()
    inodes: frozenset[int] = frozenset()
    complete: bool = True
    why: str = ""


class Watch:
    """One folder that is followed. One thread at a time may use it."""

    def __init__(self, root: str, group: _Group, max_touched: int) -> None:
        self.root = root
        self._group = group
        self._max_touched = max_touched
        self._paths: set[bytes] = set()
        self._deep: set[bytes] = set()
        self._inodes: set[int] = set()
        self._why = "it has only begun to be followed"
        self._orphans = 0

    def collect(self) -> Touched:
        """Return what was touched since the last call, everything before this one included."""
        with self._group.lock:
            self._group.drain()
            self._group.counters.collections += 1
            self._orphans, orphans = self._group.orphans.since(self._orphans)
            if orphans is None:
                self._forget("more was touched on its file system than is remembered")
            if self._why:
                touched = Touched(complete=False, why=self._why)
            else:
                inodes = frozenset(self._inodes.union(orphans or ()))
                touched = Touched(frozenset(self._paths), frozenset(self._deep), inodes)
            self._forget("")
            return touched

    def close(self) -> None:
        """Stop following it."""
        self._group.leave(self)

    def note(self, path: bytes, *, deep: bool = False) -> None:
        """Take note of a path (called by the group, which holds its lock)."""
        if not self._why:
            self._paths.add(path)
            if deep:
                self._deep.add(path)
            self._bound()

    def note_inode(self, inode: int) -> None:
        """Take note of a file that was written (called by the group)."""
        if not self._why:
            self._inodes.add(inode)
            self._bound()

    def lose(self, why: str) -> None:
        """Take note that something happened, and not what (called by the group)."""
        self._forget(why)

    def _bound(self) -> None:
        if len(self._paths) + len(self._inodes) > self._max_touched:
            self._forget("more was touched than is remembered")

    def _forget(self, why: str) -> None:
        self._paths, self._deep, self._inodes = set(), set(), set()
        self._why = why


class Orphans:
    """Inodes of files that were touched by no name, or by one in a folder that is gone.

    They may have other names in any folder. What all watches of a file system
    have to look at is kept once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._first = 0
        self._inodes: list[int] = []

    def add(self, inode: int) -> None:
        """Take note of one; the oldest are forgotten when there are too many."""
        if self._inodes and self._inodes[-1] == inode:
            return
        self._inodes.append(inode)
        if len(self._inodes) > self._most:
            forgotten = self._most // 2
            del self._inodes[:forgotten]
            self._first += forgotten

    def since(self, position: int) -> tuple[int, list[int] | None]:
        """Return the position now, and what came since an earlier one; None if that was forgotten."""
        now = self._first + len(self._inodes)
        return now, self._inodes[position - self._first :] if position >= self._first else None


@dataclass(slots=True)
class Counters:
    """What was done since the start, for people to look at."""

    events: int = 0
    overflows: int = 0
    lookups: int = 0
    collections: int = 0


class Tracker:
    """Follows folders on any number of file systems. Safe for use by many threads.

    `scratch` is a folder on a disk in which an overlay is made for a moment, to
    see whether this kernel reports what is written through one.
    """

    def __init__(self, scratch: str, *, max_touched: int = 200_000) -> None:
        self.counters = Counters()
        self._scratch = scratch
        self._max_touched = max_touched
        self._lock = threading.Lock()
        self._groups: dict[int, _Group] = {}
        self._why: str | None = None
        self._reasons: dict[str, str] = {}

    def watch(self, root: str) -> Watch | None:
        """Begin to follow a folder of the host; None if that cannot be done (`why_not` tells why).

        What it first collects is not complete: scan after that.
        """
        with self._lock:
            if self._why is None:
                self._why = why_not_seen(self._scratch)
                if self._why:
                    log.info("changes are not followed, folders are scanned", reason=self._why)
            if self._why:
                self._reasons[root] = self._why
                return None
            try:
                return self._join(root)
            except OSError as error:
                self._reasons[root] = f"{root} cannot be followed: {error}"
                log.warning("folder not followed, it is scanned", path=root, cause=str(error))
                return None

    def why_not(self, root: str) -> str:
        """Return why a folder is not followed; empty if it is, or nobody asked for it."""
        with self._lock:
            return self._reasons.get(root, "")

    def close(self) -> None:
        """Stop following everything."""
        with self._lock:
            groups, self._groups = list(self._groups.values()), {}
        for group in groups:
            group.close()

    def _join(self, root: str) -> Watch:
        device = os.stat(root).st_dev
        group = self._groups.get(device)
        if group is None or group.closed:
            group = self._groups[device] = _Group(root, self.counters, self._max_touched)
        return group.join(root)


class _Group:
    """The fanotify group of one file system, and the thread that keeps its queue short."""

    def __init__(self, folder: str, counters: Counters, max_touched: int) -> None:
        self.lock = threading.RLock()
        self.closed = False
        self.orphans = Orphans(max_touched)
        self._max_touched = max_touched
        self.counters = counters
        self._watches: dict[str, Watch] = {}
        self._folders: OrderedDict[Handle, tuple[Watch, bytes] | str | None] = OrderedDict()
        with contextlib.ExitStack() as stack:
            self._mount = _mount_of(folder)
            stack.callback(os.close, self._mount)
            self._fd = fanotify.open_group()
            stack.callback(os.close, self._fd)
            fanotify.mark_file_system(self._fd, self._mount)
            self._reads_inodes = _reads_inodes(self._mount)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            stack.pop_all()
        self._thread = threading.Thread(target=self._keep_short, name="fanotify", daemon=True)
        self._thread.start()

    def join(self, root: str) -> Watch:
        """Begin to follow a folder of this file system."""
        fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = self._path_of(fanotify.handle_of(fd))
        finally:
            os.close(fd)
        if not path:
            raise OSError(errno.ENOENT, "it cannot be found by its handle")
        with self.lock:
            if path in self._watches:
                raise OSError(errno.EBUSY, "it is followed already")
            watch = self._watches[path] = Watch(path, self, self._max_touched)
            self._folders.clear()
        return watch

    def leave(self, watch: Watch) -> None:
        """Stop following a folder; the last one ends the group."""
        with self.lock:
            if self._watches.get(watch.root) is watch:
                del self._watches[watch.root]
            self._folders.clear()
            last = not self._watches
        if last:
            self.close()

    def close(self) -> None:
        """End the thread and the group."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            self._lose("it is no longer followed")
        os.eventfd_write(self._wake, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for fd in (self._fd, self._mount, self._wake):
            os.close(fd)

    def drain(self) -> None:
        """Read the queue to its end; the caller holds the lock."""
        if self.closed:
            return
        for events in self._batches():
            for event in events:
                try:
                    self._take(event)
                except OSError as error:
                    self._lose(f"a folder cannot be found by its handle: {error}")

    def _batches(self) -> Iterator[list[Event]]:
        while True:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(f"events cannot be read: {error}")
                return
            events = fanotify.parse(data)
            self.counters.events += len(events)
            yield events

    def _take(self, event: Event) -> None:
        if event.mask & fanotify.OVERFLOW:
            self.counters.overflows += 1
            self._lose("more happened at once than the kernel queues")
            return
        inode = self._inode(event.file) if event.file else 0
        if not event.folder:
            self._note_orphan(inode)
            return
        folder = self._folder(event.folder)
        if event.mask & fanotify.MOVED and event.mask & fanotify.ON_FOLDER:
            # Whatever is known of paths may be of before.
            self._folders.clear()
        if folder is None:
            return
        if isinstance(folder, str):
            self._note_orphan(inode)
            return
        watch, path = folder
        if event.name != b".":
            path = path + b"/" + event.name if path else event.name
        arrived = event.mask & (fanotify.MOVED | fanotify.CREATE) and event.mask & fanotify.ON_FOLDER
        watch.note(path, deep=bool(arrived))
        if inode:
            watch.note_inode(inode)

    def _note_orphan(self, inode: int) -> None:
        if inode:
            self.orphans.add(inode)

    def _lose(self, why: str) -> None:
        self._folders.clear()
        for watch in self._watches.values():
            watch.lose(why)

    def _folder(self, handle: Handle) -> tuple[Watch, bytes] | str | None:
        """Return which watch a folder lies in and where; None if in none, `_DELETED` if it is gone."""
        if handle in self._folders:
            self._folders.move_to_end(handle)
            return self._folders[handle]
        path = self._path_of(handle)
        found = self._place(path) if path else path
        if found != _DELETED:
            self._folders[handle] = found
            if len(self._folders) > _CACHED_FOLDERS:
                self._folders.popitem(last=False)
        return found

    def _path_of(self, handle: Handle) -> str | None:
        """Return the path of a folder; `_DELETED` if it is gone, None if no path leads to it."""
        self.counters.lookups += 1
        try:
            fd = fanotify.open_handle(self._mount, handle)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return _DELETED
            raise
        try:
            if os.fstat(fd).st_nlink == 0:
                return _DELETED
            path = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return path if path.startswith("/") else None

    def _place(self, path: str) -> tuple[Watch, bytes] | None:
        at = path
        while at not in self._watches:
            at = at.rpartition("/")[0]
            if not at:
                return None
        return self._watches[at], os.fsencode(path[len(at) + 1 :])

    def _inode(self, handle: Handle) -> int:
        """Return the inode number of a file; 0 if it is gone, and with it all its names."""
        if self._reads_inodes:
            inode = fanotify.inode_of(handle)
            if inode is not None:
                return inode
        try:
            fd = fanotify.open_handle(self._mount, handle)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return 0
            raise
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)

    def _keep_short(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        stop = select.poll()
        stop.register(self._wake, select.POLLIN)
        while not self.closed:
            poll.poll()
            # Some more will follow; what happens twice to one file is then one event.
            stop.poll(_GATHER_MS)
            with self.lock:
                if self.closed:
                    return
                self.drain()


def _mount_of(folder: str) -> int:
    """Return a descriptor through which every folder of a file system can be opened by its handle.

    That is one of a mount of its root, where there is one: what lies outside of a
    mounted part has no path beneath that.
    """
    device = os.stat(folder).st_dev
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[3] != b"/":
                continue
            target = fields[4].decode("unicode_escape").encode("latin-1")
            with contextlib.suppress(OSError):
                fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if os.fstat(fd).st_dev == device:
                    return fd
                os.close(fd)
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _reads_inodes(mount_fd: int) -> bool:
    """Whether this file system's handles begin with the inode number, as those of its kind do."""
    return fanotify.inode_of(fanotify.handle_of(mount_fd)) == os.fstat(mount_fd).st_ino
