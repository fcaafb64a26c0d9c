"""The events of one file system, and what they say of the folders that are followed on it."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import termios
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from turnkeep.watch import fanotify
from turnkeep.watch.fanotify import Event, Handle
from turnkeep.watch.folders import Folders
from turnkeep.watch.overlay_events import is_temporary
from turnkeep.watch.touched import Notes, Orphans, Touched

_READ_BYTES = 256 * 1024
_CACHED_FOLDERS = 65_536
_GATHER_MS = 20


@dataclass(slots=True)
class Counters:
    """What was done since the start, for people to look at."""

    events: int = 0
    overflows: int = 0
    lookups: int = 0
    collections: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a folder lies. One that is not `exact` lies somewhere beneath there."""

    notes: Notes
    path: bytes
    exact: bool


_Places = tuple[_Place, ...]
"""Of a folder: none if nobody follows it; more than one where a followed folder lies in another."""

_NOWHERE = None
"""Stands for the places of a folder that is gone, or that overlayfs has in its work folder for a moment."""


class Group:
    """The fanotify group of one file system, and the thread that keeps its queue short.

    What is public may be used by any thread.
    """

    def __init__(self, folder: str, counters: Counters, max_touched: int) -> None:
        """Begin with the file system that a folder lies in.

        Raises:
            OSError: it cannot be followed.
        """
        self.lock = threading.RLock()
        self.closed = False
        self._counters = counters
        self._max_touched = max_touched
        self._orphans = Orphans(max_touched)
        self._followed: dict[str, Notes] = {}
        self._longest = 0
        self._roots: dict[Handle, Notes] = {}
        self._steps: dict[tuple[Handle, bytes], set[Notes]] = {}
        self._places: OrderedDict[Handle, _Places | None] = OrderedDict()
        self._queued = array.array("i", [0])
        with contextlib.ExitStack() as stack:
            self._folders = stack.enter_context(contextlib.closing(Folders(folder)))
            self._fd = fanotify.open_group()
            stack.callback(os.close, self._fd)
            fanotify.mark_file_system(self._fd, self._folders.fd)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
            stack.callback(os.close, self._wake)
            self._free = stack.pop_all().close
        self._thread = threading.Thread(target=self._keep_short, name="fanotify", daemon=True)
        self._thread.start()

    def join(self, root: str) -> Notes | None:
        """Begin to follow a folder of this file system; None if the group has ended meanwhile.

        Raises:
            OSError: it cannot be followed, or is followed already.
        """
        with self.lock:
            if self.closed:
                return None
            # What was done to the way there earlier is not to count.
            self.drain()
            handle, path, steps = self._folders.way_to(root)
            if path in self._followed:
                raise FileExistsError("it is followed already")
            notes = self._followed[path] = self._roots[handle] = Notes(path, self._max_touched)
            self._longest = max(self._longest, len(path))
            for step in steps:
                self._steps.setdefault(step, set()).add(notes)
            self._places.clear()
            return notes

    def leave(self, notes: Notes) -> None:
        """Stop following a folder; the last one ends the group."""
        with self.lock:
            self._end(notes, "it is no longer followed")
            if self._followed or self.closed:
                return
            self.closed = True
        self._stop()

    def end(self, notes: Notes, why: str) -> None:
        """Say of a folder that nothing is known of it any more."""
        with self.lock:
            self._end(notes, why)

    def close(self) -> None:
        """Stop following everything."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            for notes in list(self._followed.values()):
                self._end(notes, "it is no longer followed")
        self._stop()

    def collect(self, notes: Notes) -> Touched:
        """Return what was touched in a folder since the last call, everything before this one included."""
        with self.lock:
            self.drain()
            self._counters.collections += 1
            notes.orphans_seen, orphans = self._orphans.since(notes.orphans_seen)
            if orphans is None:
                notes.lose("more was touched on its file system than is remembered")
            return notes.take(orphans or [])

    def drain(self) -> None:
        """Take in all events that were queued before this call; the caller holds the lock."""
        if self.closed:
            return
        for events in self._batches():
            for event in events:
                try:
                    self._take(event)
                except OSError as error:
                    self._lose(f"a folder cannot be found by its handle: {error}")

    def _batches(self) -> Iterator[list[Event]]:
        """Yield what is queued now, and not much more: others may go on as fast as it is read."""
        fcntl.ioctl(self._fd, termios.FIONREAD, self._queued)
        left = self._queued[0] // fanotify.QUEUED_BYTES
        while left > 0:
            try:
                events = fanotify.parse(os.read(self._fd, _READ_BYTES))
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(f"events cannot be read: {error}")
                return
            self._counters.events += len(events)
            left -= len(events)
            yield events

    def _take(self, event: Event) -> None:
        if event.mask & fanotify.OVERFLOW:
            self._counters.overflows += 1
            self._lose("more happened at once than the kernel queues")
            return
        if not event.folder:
            if event.mask & fanotify.NAMING or not event.file:
                self._lose("an event tells no folder")
            else:
                self._note_orphan(event)
            return
        places = self._places_of(event.folder)
        if event.mask & fanotify.ON_FOLDER and event.mask & fanotify.NAMING:
            self._note_folder(event)
        if places is _NOWHERE:
            self._note_orphan(event)
        elif places:
            self._note(places, event)
        elif is_temporary(event.name):
            # Overlayfs copied it up, and may go on under the name that it had meanwhile.
            self._note_orphan(event)

    def _note(self, places: _Places, event: Event) -> None:
        arrived = event.mask & (fanotify.MOVED | fanotify.CREATE) and event.mask & fanotify.ON_FOLDER
        inode = self._folders.inode_of(event.file) if event.file else 0
        for place in places:
            path = place.path
            if place.exact and event.name != b".":
                path = path + b"/" + event.name if path else event.name
            place.notes.note(path, deep=bool(arrived) or not place.exact, inode=inode)

    def _note_orphan(self, event: Event) -> None:
        inode = self._folders.inode_of(event.file) if event.file else 0
        if inode:
            self._orphans.add(inode)

    def _note_folder(self, event: Event) -> None:
        """Take note that a folder got or lost a name."""
        if event.mask & fanotify.MOVED:
            # Whatever is known of paths may be of before.
            self._places.clear()
        for notes in self._steps.pop((event.folder, event.name), ()):
            self._end(notes, "it, or a folder above it, was moved, replaced or removed")

    def _end(self, notes: Notes, why: str) -> None:
        notes.ended = notes.ended or why
        if self._followed.get(notes.path) is notes:
            del self._followed[notes.path]
        self._roots = {handle: each for handle, each in self._roots.items() if each is not notes}
        self._steps = {step: rest for step, each in self._steps.items() if (rest := each - {notes})}
        self._places.clear()

    def _lose(self, why: str) -> None:
        self._places.clear()
        for notes in self._followed.values():
            notes.lose(why)

    def _places_of(self, handle: Handle) -> _Places | None:
        if handle in self._places:
            self._places.move_to_end(handle)
            return self._places[handle]
        self._counters.lookups += 1
        found = self._folders.path_of(handle, self._places)
        if isinstance(found, Handle):
            # No more can be told of it than of the folder above, which holds it somewhere.
            self._remember(handle, tuple(replace(each, exact=False) for each in self._places[found] or ()))
            return self._places[handle]
        path, exact = found or ("", False)
        if not path:
            if handle in self._roots:
                self._end(self._roots[handle], "it was removed")
            return _NOWHERE
        places = self._placed(path, exact)
        if not places and is_temporary(os.fsencode(path.rpartition("/")[2])):
            return _NOWHERE
        self._remember(handle, places)
        return places

    def _remember(self, handle: Handle, places: _Places) -> None:
        self._places[handle] = places
        if len(self._places) > _CACHED_FOLDERS:
            self._places.popitem(last=False)

    def _placed(self, path: str, exact: bool) -> _Places:
        places = []
        # Below the longest path that is followed there is nothing to be found, however deep it goes.
        at = path if len(path) <= self._longest else path[: self._longest + 1].rpartition("/")[0] or "/"
        while True:
            if at in self._followed:
                places.append(_Place(self._followed[at], os.fsencode(path[len(at) :].lstrip("/")), exact))
            if at == "/":
                return tuple(places)
            at = at.rpartition("/")[0] or "/"

    def _keep_short(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        stop = select.poll()
        stop.register(self._wake, select.POLLIN)
        while True:
            poll.poll()
            # Some more will follow; what happens twice to one file is then one event.
            stop.poll(_GATHER_MS)
            with self.lock:
                if self.closed:
                    return
                self.drain()

    def _stop(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._free()
