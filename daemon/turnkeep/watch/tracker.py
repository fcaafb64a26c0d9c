"""Following what is touched in folders, so that a turn costs what it changed.

What is said here is a hint: it may name more than was touched, and never less.
Where that cannot be promised, `Touched.complete` is False, and the folder has
to be scanned. What it rests on:

- The kernel queues an event within the call that makes the change, so a queue
  that was read inside a freeze holds all that was done before it.
- A folder is known by its handle. Its path is looked up when the event is
  read, which may be after it was renamed; but the renaming is an event, too,
  of both names, and everything beneath them then counts as touched.
- A file is known by its inode as well. An overlay writes through the name that
  it opened an inode by, which may have been unlinked since.
- A folder that was removed had its removal reported, in the one above it.

Not reported before the file is closed are stores through a mapping, splice(2)
into a file, and asynchronous direct I/O: who uses this looks at the mappings and
open files of the processes that run (`open_files`). Not reported at all are a
change of nothing but the access time, and of the flags of chattr(1); only the
ctime tells of them, and neither is part of a checkpoint. What the host does to a
file outside of the folder is found by those of its names that are in it, as long
as it has one outside: not what is written by a descriptor of a name outside that
was unlinked after the file was linked into the folder.
"""

from __future__ import annotations

import os
import threading

import structlog

from turnkeep.watch.group import Counters, Group
from turnkeep.watch.overlay_events import why_not_seen
from turnkeep.watch.touched import Notes, Touched

__all__ = ["Counters", "Touched", "Tracker", "Watch"]

log = structlog.get_logger()


class Watch:
    """One folder that is followed."""

    def __init__(self, root: str, identity: tuple[int, int], group: Group, notes: Notes) -> None:
        self.root = root
        self._identity = identity
        self._group = group
        self._notes = notes

    @property
    def ended(self) -> bool:
        """Whether nothing will be known of it any more, unless it is followed anew."""
        return bool(self._notes.ended)

    def collect(self) -> Touched:
        """Return what was touched since the last call, everything before this one included."""
        # Of what is mounted there no event tells.
        if _identity_of(self.root) != self._identity:
            self._group.end(self._notes, "its path leads to another folder, or to none")
        return self._group.collect(self._notes)

    def close(self) -> None:
        """Stop following it."""
        self._group.leave(self._notes)


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
        self._groups: dict[int, Group] = {}
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
                watch = self._join(root)
            except OSError as error:
                self._reasons[root] = f"{root} cannot be followed: {error}"
                log.warning("folder not followed, it is scanned", path=root, cause=str(error))
                return None
            self._reasons.pop(root, None)
            return watch

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
        identity = _identity_of(root)
        if identity is None:
            raise FileNotFoundError("there is no such folder")
        device, _ = identity
        group = self._groups.get(device)
        notes = group.join(root) if group is not None else None
        if group is None or notes is None:
            # There is none yet, or the last to leave it ended it.
            group = self._groups[device] = Group(root, self.counters, self._max_touched)
            try:
                notes = group.join(root)
            except OSError:
                group.close()
                raise
            assert notes is not None
        return Watch(root, identity, group, notes)


def _identity_of(folder: str) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
