"""Bringing captured processes back into a running container."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from turnkeep_store.ids import TreeId
from turnkeep_store.repository import Repository

from turnkeep.checkpointer.images import boot_id
from turnkeep.errors import InternalError, InvalidRequest, RestoreFailed
from turnkeep.model import ProcessImage, ProcessLine, ProcessTree
from turnkeep.process import archive
from turnkeep.process.engine import Processes
from turnkeep.process.keeper import renumber_root
from turnkeep.process.launch import Place
from turnkeep.process.reaper import reap
from turnkeep.process.sandboxed import Images
from turnkeep.process.table import INIT, Row, Table, read_table
from turnkeep.process.ties import INIT_FD
from turnkeep.runtime.container import Container

_CLOCKS = "timens-0.img"
_KEEPERS = 64
_END_LIMIT_S = 10.0
_POLL_S = 0.0005
_WAITING_INITS = frozenset({"docker-init", "tini", "dumb-init", "catatonit"})
_SHOWN = 10
OTHER_BOOT = (
    "the host was booted since: the processes keep their own idea of its uptime,"
    " and later turns keep files only"
)


@dataclass(slots=True)
class ReadyTree:
    """A tree whose images are loaded. `keeper` stands for the sandbox's init, 0 for none."""

    record: ProcessTree
    images: Images
    keeper: int = 0


@dataclass(slots=True)
class Ready:
    """All trees of a checkpoint, loaded and checked, before anything is changed."""

    trees: list[ReadyTree] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Let go of the images."""
        for tree in self.trees:
            tree.images.close()


def load_images(repository: Repository, processes: Processes, image: ProcessImage | None) -> Ready:
    """Load and check the images of a checkpoint; the caller closes the result.

    Raises:
        BadImages, Damaged: they are not what was stored, or not sound.
        Unsupported: there is no CRIU.
    """
    ready = Ready()
    try:
        if image is not None:
            for record in image.trees:
                ready.trees.append(_load(repository, processes, image, record, ready))
    except BaseException:
        ready.close()
        raise
    return ready


def _load(
    repository: Repository, processes: Processes, image: ProcessImage, record: ProcessTree, ready: Ready
) -> ReadyTree:
    images = processes.engine.new_images()
    try:
        archive.load(repository, TreeId(bytes.fromhex(record.images)), images)
        if image.boot_id == boot_id():
            # The clocks of this boot went on. With a time namespace of its own CRIU
            # could not dump a process a second time.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_CLOCKS, dir_fd=images.folder)
        elif OTHER_BOOT not in ready.notes:
            ready.notes.append(OTHER_BOOT)
        tree = ReadyTree(record, images)
        if record.kind == INIT:
            tree.keeper, notes = _renumber(record, images)
            ready.notes += notes
    except BaseException:
        images.close()
        raise
    return tree


def _renumber(record: ProcessTree, images: Images) -> tuple[int, tuple[str, ...]]:
    """Give the init's image a pid that nobody has: the highest ones are rarely reached."""
    highest = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    for pid in range(highest, highest - _KEEPERS, -1):
        with contextlib.suppress(InvalidRequest):
            done = renumber_root(images.folder, pid=pid, without=record.skipped)
            return pid, done.notes
    raise InternalError("no process id is free for the keeper")


def bring_back(ready: Ready, container: Container, processes: Processes) -> list[str]:
    """Bring all trees back. The caller has frozen the container, which holds nothing stateful.

    Nothing that was there runs meanwhile, and no restored process runs before all
    trees are complete and as they were captured. Afterwards all runs. Returns what
    is to be said of it.

    Raises:
        CriuFailed: a tree cannot be restored.
        RestoreFailed: what was restored is not what was captured.
        If it raises, no restored process is left.
    """
    if not ready.trees:
        return []
    doomed: set[int] = set()
    try:
        with container.holding():
            before = set(container.held_pids())
            try:
                for tree in ready.trees:
                    doomed |= _bring_back(tree, container, processes, before)
                strangers = set(container.pids()) - set(container.held_pids())
                doomed |= strangers
            except BaseException:
                doomed = set(container.pids()) - before
                raise
            finally:
                # They are frozen: this is the first thing that they will see.
                ends = [_kill(pid) for pid in doomed]
    finally:
        _wait_for(ends)
        reap_dead(container)
    return [*ready.notes, *(note for tree in ready.trees for note in tree.record.notes)]


def _bring_back(tree: ReadyTree, container: Container, processes: Processes, before: set[int]) -> set[int]:
    """Restore one tree, and leave it frozen. Returns who is to be killed before it runs: the keeper."""
    keeper: set[int] = set()

    def check() -> None:
        table = read_table(container.pids(), container.init_pid)
        _compare(tree, table, container)
        restored = {line.pid for line in tree.record.processes} | {tree.keeper}
        keeper.update(row.host for row in table.rows if tree.keeper and row.pid == tree.keeper)
        container.hold_more(row.host for row in table.rows if row.pid in restored and row.host not in before)

    with _opened(tree.record, container) as inherit:
        init = os.pidfd_open(container.init_pid)
        try:
            place = Place(init=init, join=container.procs_files())
            processes.engine.restore(place, tree.images, check, inherit=inherit)
        finally:
            os.close(init)
    return keeper


@contextlib.contextmanager
def _opened(record: ProcessTree, container: Container) -> Iterator[dict[str, int]]:
    """Open what stands for the files that lead out of the sandbox."""
    opened: dict[str, int] = {}
    try:
        for name, stand_in in record.replaced.items():
            if stand_in.startswith(INIT_FD):
                path = f"/proc/{container.init_pid}/fd/{stand_in.removeprefix(INIT_FD)}"
                opened[name] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            else:
                opened[name] = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)


def _compare(tree: ReadyTree, table: Table, container: Container) -> None:
    """Compare the processes that are there with those that were captured.

    Raises:
        RestoreFailed: they differ.
    """
    there = {row.pid: row for row in table.rows}
    wrong = []
    root = tree.record.root if tree.record.kind == INIT else 0
    for line in tree.record.processes:
        if line.pid == root:
            continue
        row = there.get(line.pid)
        wrong += _differences(line, row, root, tree.keeper)
    if wrong:
        raise RestoreFailed(
            f"processes are not as they were captured: {'; '.join(wrong[:_SHOWN])}",
            object=f"container {container.name}",
        )


def _differences(line: ProcessLine, row: Row | None, root: int, keeper: int) -> list[str]:
    name = f"{line.pid} {line.name}"
    if row is None:
        return [f"{name} is not there"]

    def now(number: int) -> int:
        return keeper if number == root else number

    # What has lost its parent on the way already has process 1 for one, as it will
    # in the end; CRIU itself is still the parent of what had its own outside.
    settled = line.parent == 0 or (row.parent == 1 and line.parent == root)
    pairs = (
        ("parent", row.parent if settled else now(line.parent), row.parent),
        ("process group", now(line.group), row.group),
        ("session", now(line.session), row.session),
        ("name", line.name, row.name),
        ("threads", line.threads, row.threads),
        ("zombie", line.zombie, row.zombie),
    )
    return [
        f"{name}: its {what} is {found}, not {wanted}" for what, wanted, found in pairs if wanted != found
    ]


def _kill(pid: int) -> int:
    """Send SIGKILL; return a descriptor that becomes readable at the end, -1 if it is gone already."""
    try:
        fd = os.pidfd_open(pid)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return -1
    return fd


def _wait_for(ends: list[int]) -> None:
    poll = select.poll()
    waiting = [fd for fd in ends if fd >= 0]
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    pending = len(waiting)
    while pending and (ended := poll.poll(_END_LIMIT_S * 1000)):
        for fd, _ in ended:
            poll.unregister(fd)
            pending -= 1
    for fd in waiting:
        os.close(fd)


def reap_dead(container: Container) -> None:
    """Make the pids of dead processes free again, where the container's init leaves them as zombies.

    An init that waits for its children itself is given the time to do so.
    """
    name = Path(f"/proc/{container.init_pid}/comm").read_text().strip()
    if name not in _WAITING_INITS:
        reap(container.init_pid)
        return
    deadline = time.monotonic() + _END_LIMIT_S
    while any(
        row.zombie and row.parent == 1 for row in read_table(_children(container), container.init_pid).rows
    ):
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


def _children(container: Container) -> list[int]:
    init = container.init_pid
    try:
        listed = Path(f"/proc/{init}/task/{init}/children").read_text()
    except FileNotFoundError:
        return []
    return [init, *map(int, listed.split())]
