"""Watching opted-in folders of the host, so that a quiet one need not be scanned.

inotify, through watchdog, is good for such folders and not for a root file
system: it loses events in bursts, and sees neither stores through mappings nor
changes through names outside of the folder. So an event is taken only as a
reason to scan, never as the list of what changed, and "nothing happened" is
believed only where nothing of that kind is possible.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable

from watchdog.events import FileClosedNoWriteEvent, FileOpenedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from turnkeep.watch.table import Sight, Status, is_linked

_BARRIER_S = 2.0
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "fuse", "fuseblk", "glusterfs"})
_READING = (FileOpenedEvent, FileClosedNoWriteEvent)


class HostFolder:
    """One watched folder. `generation` grows with everything that may have changed it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.generation = 1
        self._expected: str | None = None
        self._arrived = threading.Event()
        self._observer: BaseObserver | None = None
        if _file_system(path) in _REMOTE:
            return
        observer = Observer()
        handler = _Handler(self)
        try:
            observer.schedule(handler, path, recursive=True)
            observer.start()
        except OSError:
            # No more inotify watches, say: it is scanned every time, then.
            return
        self._observer = observer

    def close(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    def on_event(self, event: FileSystemEvent) -> None:
        """Take note of an event (called by watchdog's thread)."""
        if isinstance(event, _READING):
            if os.fsdecode(event.src_path) == self._expected:
                self._arrived.set()
            return
        self.generation += 1

    def unchanged_since(self, generation: int, files: Sight) -> bool:
        """Whether the folder is certainly as it was when its generation was read.

        `files` is what a scan found after that. False also when it cannot be told:
        without a watch, after lost events, with files that have names elsewhere.
        """
        if self._observer is None or not self._observer.is_alive() or generation != self.generation:
            return False
        if any(is_linked(status) for _, status in files.items()):
            return False
        return self._all_events_arrived(files) and generation == self.generation

    def _all_events_arrived(self, files: Sight) -> bool:
        """Read a file of the folder and wait for the event of that.

        The kernel delivers a folder's events in order: when ours is here, so are
        all before it.
        """
        name = next((path for path, status in files.items() if b"/" not in path and _is_file(status)), None)
        if name is None:
            return False
        path = os.path.join(os.fsencode(self.path), name)
        self._arrived.clear()
        self._expected = os.fsdecode(path)
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
            return self._arrived.wait(_BARRIER_S)
        except OSError:
            return False
        finally:
            self._expected = None


class _Handler(FileSystemEventHandler):
    def __init__(self, folder: HostFolder) -> None:
        self._folder = folder

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._folder.on_event(event)


class HostFolders:
    """The watched folders by path. Used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folders: dict[str, HostFolder] = {}

    def watch(self, path: str) -> HostFolder:
        """Return the watch of a folder, beginning it with the first call."""
        with self._lock:
            if path not in self._folders:
                self._folders[path] = HostFolder(path)
            return self._folders[path]

    def forget(self, paths: Iterable[str]) -> None:
        """Stop watching folders."""
        for path in paths:
            with self._lock:
                folder = self._folders.pop(path, None)
            if folder is not None:
                folder.close()

    def close(self) -> None:
        """Stop watching all."""
        self.forget(list(self._folders))


def _is_file(status: Status) -> bool:
    return status[0] & 0o170000 == 0o100000


def _file_system(path: str) -> str:
    """Return the type of the file system that a folder lies on; "" if it is not known."""
    device = os.stat(path).st_dev
    with contextlib.suppress(OSError), open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            major, _, minor = left.split()[2].partition(":")
            if os.makedev(int(major), int(minor)) == device:
                return right.split()[0].partition(".")[0]
    return ""
