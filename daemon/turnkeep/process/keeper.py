"""Giving the root of a dumped tree another pid, so that it can stand in for a living init.

A sandbox's init (process 1 inside) is dumped as the root of one tree with all that
descends from it. When the tree comes back into the running container, process 1 is
there already. So the root comes back as a *keeper* under a pid that is free: its
children are born as the keeper's, and when it is killed they become process 1's, as
they were. The keeper never runs (it comes back stopped), holds no descriptor, has no
thread but one, and no lock, so that nothing of what init had is there twice.

What becomes of the number of the old root:

- parents: the keeper; after its death the kernel says 1 again.
- sessions and process groups: a process that was in init's session or group cannot
  join it again, for one is only born into a session. It is in the keeper's, whose
  number outlives it. Reported for each process (`Renumbered.notes`).
- controlling terminal: a terminal whose session was init's is nobody's afterwards;
  a keeper that had it would hang up on its group when it dies. Reported.
- the parent's-death signal of init's children: cleared. Init does not die before
  them, the keeper does. Reported.
- a stopped process in init's session and another's group: the keeper's death leaves
  its group orphaned, on which the kernel continues it with SIGHUP. Reported.
- owners of files (F_SETOWN), pidfds, paths like /proc/1/…, senders of queued signals:
  stay 1. They mean process 1, and it is there.

Clocks: CRIU gives restored processes a time namespace in which their monotonic clock
goes on from where it was. CRIU cannot dump a tree whose parts are in different ones,
so that the sandbox's next dump would fail. Without the image of the clocks they stay
in the container's own: their monotonic clock jumps forward by the time in between,
as for one who was suspended. Only after the host's restart, which sets that clock
back, is the namespace needed (`keep_clocks`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from turnkeep.errors import BadImages, InvalidRequest
from turnkeep.process.imageformat import KINDS, ImageFolder, encode, name_of
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import FileType, Images, TaskState, open_images

_BY_PID = ("core-%u", "ids-%u", "mm-%u", "fs-%u", "pagemap-%u")
_NOBODY = 0
_NAMED = (FileType.REG, FileType.MEMFD)
"""Files that others than descriptors refer to: mappings, working folders, programs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renumbered:
    """What could not come back as it was, one line for people each."""

    root: int
    left_out: tuple[int, ...]
    notes: tuple[str, ...]


def renumber_root(
    folder: ImageFolder | int | str, *, pid: int, without: Collection[int] = (), keep_clocks: bool = False
) -> Renumbered:
    """Give the tree's root the number `pid`, and leave the processes `without` out.

    Those left out must not have children that stay. The same images and arguments
    give the same bytes. Files are replaced, never changed in place. When this is cut
    off the folder holds no images that CRIU would restore.

    Raises:
        BadImages: the images are malformed.
        InvalidRequest: `pid` is taken in them, or one to be left out has children.
    """
    if isinstance(folder, ImageFolder):
        return _renumber(folder, pid, frozenset(without), keep_clocks)
    with ImageFolder(folder) as opened:
        return _renumber(opened, pid, frozenset(without), keep_clocks)


def _renumber(folder: ImageFolder, pid: int, without: frozenset[int], keep_clocks: bool) -> Renumbered:
    images = open_images(folder)
    _check(images, pid, without)
    edit = _Edit(folder, images, pid, without)
    # First of all, so that what is cut off here has no tree, and is refused.
    folder.remove("pstree.img")
    edit.leave_out()
    edit.move_root()
    edit.close_descriptors()
    edit.free_children()
    edit.free_terminals()
    edit.leave_locks()
    if not keep_clocks:
        edit.forget_clocks()
    edit.write_tree()
    return Renumbered(root=pid, left_out=tuple(sorted(without)), notes=tuple(edit.notes))


def _check(images: Images, pid: int, without: frozenset[int]) -> None:
    if pid != images.root.pid and pid in _numbers(images):
        raise InvalidRequest(f"{pid} is the number of a process, thread, group or session in the images")
    if pid < 2:
        raise InvalidRequest(f"{pid} is no number for a keeper")
    if images.root.pid in without:
        raise InvalidRequest("the root of a tree cannot be left out")
    unknown = without - {entry.pid for entry in images.tree}
    if unknown:
        raise InvalidRequest(f"no process {min(unknown)} is in the images")
    for entry in images.tree:
        if entry.ppid in without and entry.pid not in without:
            raise InvalidRequest(f"process {entry.ppid} cannot be left out: {entry.pid} is its child")


def _numbers(images: Images) -> set[int]:
    found = set(images.cores)
    for entry in images.tree:
        found |= {entry.pid, entry.pgid, entry.sid}
    for remap in images.remaps:
        found.add(remap.remap_id)
    return found


class _Edit:
    """One renumbering: the images as read, and the folder as it becomes."""

    def __init__(self, folder: ImageFolder, images: Images, pid: int, without: frozenset[int]) -> None:
        self._folder, self._images, self._pid, self._without = folder, images, pid, without
        self._old = images.root.pid
        self._names = folder.sizes()
        self._kept = tuple(entry for entry in images.tree if entry.pid not in without)
        self.notes: list[str] = []

    def leave_out(self) -> None:
        for entry in self._images.tree:
            if entry.pid not in self._without:
                continue
            for kind in _BY_PID:
                self._folder.remove(name_of(KINDS[kind], entry.pid))
            for thread in self._threads(entry):
                self._folder.remove(name_of(KINDS["core-%u"], thread))
            pages = self._images.page_maps.get(entry.pid)
            if pages is not None:
                self._folder.remove(name_of(KINDS["pages-%u"], pages.pages_id))

    def move_root(self) -> None:
        root = self._images.root
        for thread in self._threads(root):
            self._folder.remove(name_of(KINDS["core-%u"], thread))
        for kind in _BY_PID[1:]:
            name, new_name = name_of(KINDS[kind], self._old), name_of(KINDS[kind], self._pid)
            if name in self._names and name != new_name:
                self._folder.move(name, new_name)
        core = pb.Core()
        core.CopyFrom(self._core(self._old))
        # The copy of init is there to be killed: it must not run one instruction.
        core.tc.task_state = TaskState.STOPPED
        core.tc.timers.ClearField("posix")
        self._folder.remove(name_of(KINDS["core-%u"], self._old))
        self._folder.replace(name_of(KINDS["core-%u"], self._pid), encode(KINDS["core-%u"], [core]))

    def close_descriptors(self) -> None:
        """Leave the keeper no descriptor that no other process has, nor what was left out.

        CRIU restores an open file for those who have it, and fails on one that nobody
        has: such files go as well. A unix socket stays, with the keeper, because the
        other end may be another process's.
        """
        own = self._tables([entry for entry in self._kept if entry.pid != self._old])
        used = {descriptor.id for table in own for descriptor in self._images.descriptors.get(table, ())}
        used |= {number for packet in self._images.packets for scm in packet.scm for number in scm.rights}
        keepers = self._tables([self._images.root]).pop()
        held: dict[int, pb.Descriptor] = {}
        closed = set()
        for table, descriptors in self._images.descriptors.items():
            if table in own:
                continue
            self._folder.remove(name_of(KINDS["fdinfo-%u"], table))
            for descriptor in descriptors:
                if descriptor.id in used or descriptor.type in _NAMED:
                    continue
                closed.add(descriptor.id)
                if descriptor.type == FileType.UNIXSK:
                    held[descriptor.id] = pb.Descriptor(
                        id=descriptor.id, flags=descriptor.flags, type=descriptor.type, fd=len(held)
                    )
        if keepers not in own:
            name = name_of(KINDS["fdinfo-%u"], keepers)
            self._folder.replace(name, encode(KINDS["fdinfo-%u"], held.values()))
        gone = closed - held.keys()
        files = [file for file in self._images.files.values() if file.id not in gone]
        self._folder.replace("files.img", encode(KINDS["files"], files))

    def _tables(self, entries: Iterable[pb.TreeEntry]) -> set[int]:
        return {self._images.ids[entry.pid].files_id for entry in entries if entry.pid in self._images.ids}

    def free_children(self) -> None:
        """Clear what init's children would feel of the keeper's death."""
        for entry in self._kept:
            if entry.ppid != self._old:
                continue
            for thread in self._threads(entry):
                core = self._core(thread)
                if not core.thread_core.pdeath_sig:
                    continue
                changed = pb.Core()
                changed.CopyFrom(core)
                changed.thread_core.ClearField("pdeath_sig")
                self._folder.replace(name_of(KINDS["core-%u"], thread), encode(KINDS["core-%u"], [changed]))
                self._note(entry, f"signal {core.thread_core.pdeath_sig} at its parent's death is cleared")

    def free_terminals(self) -> None:
        """Leave terminals that belonged to init's session without one."""
        terminals = tuple(self._images.terminals.values())
        lost = [terminal for terminal in terminals if terminal.sid == self._old]
        if not lost:
            return
        for terminal in lost:
            terminal.sid = terminal.pgrp = _NOBODY
        self._folder.replace("tty-info.img", encode(KINDS["tty-info"], terminals))
        for entry in self._kept:
            if entry.sid == self._old and entry.pid != self._old:
                self._note(entry, "has no controlling terminal any more: it was init's")

    def leave_locks(self) -> None:
        gone = self._without | {self._old}
        kept = [lock for lock in self._images.locks if lock.pid not in gone]
        if len(kept) != len(self._images.locks):
            self._folder.replace("filelocks.img", encode(KINDS["filelocks"], kept))

    def forget_clocks(self) -> None:
        for number in self._images.clocks:
            self._folder.remove(name_of(KINDS["timens-%u"], number))

    def write_tree(self) -> None:
        out = []
        for entry in self._kept:
            changed = pb.TreeEntry()
            changed.CopyFrom(entry)
            changed.ppid, changed.pgid, changed.sid = map(self._new, (entry.ppid, entry.pgid, entry.sid))
            if entry.pid == self._old:
                changed.pid = self._pid
                changed.threads[:] = [self._pid]
            else:
                self._note_moved(entry)
            out.append(changed)
        self._folder.replace("pstree.img", encode(KINDS["pstree"], out))

    def _note_moved(self, entry: pb.TreeEntry) -> None:
        if entry.sid == self._old:
            self._note(entry, f"is in session {self._pid}, no longer in init's")
            stopped = self._core(entry.pid).tc.task_state == TaskState.STOPPED
            if stopped and entry.pgid != self._old and entry.ppid == self._old:
                self._note(entry, "was stopped, and is continued with SIGHUP when its group is orphaned")
        if entry.pgid == self._old:
            self._note(entry, f"is in process group {self._pid}, no longer in init's")

    def _note(self, entry: pb.TreeEntry, what: str) -> None:
        name = self._core(entry.pid).tc.comm.decode("utf-8", "backslashreplace")
        self.notes.append(f"{entry.pid} {name}: {what}")

    def _new(self, number: int) -> int:
        return self._pid if number == self._old else number

    def _threads(self, entry: pb.TreeEntry) -> Iterator[int]:
        """Yield the threads that have a core image; a dead process's list says nothing."""
        if self._core(entry.pid).tc.task_state == TaskState.DEAD:
            yield entry.pid
        else:
            yield from entry.threads

    def _core(self, thread: int) -> pb.Core:
        core = self._images.cores.get(thread)
        if core is None:
            raise BadImages(f"process image core-{thread}.img: it is absent", object=f"core-{thread}.img")
        return core
