"""Bringing captured processes back into a running container."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from turnkeep_store.beneath import open_beneath
from turnkeep_store.errors import StoreError
from turnkeep_store.ids import TreeId
from turnkeep_store.repository import Repository

from turnkeep.checkpointer.images import boot_id
from turnkeep.errors import InternalError, InvalidRequest, RestoreFailed
from turnkeep.model import ProcessImage, ProcessLine, ProcessTree
from turnkeep.process import archive
from turnkeep.process.confinement import Confinement, compare
from turnkeep.process.dumping import INIT_FD, WHOLE_KIND
from turnkeep.process.engine import Processes, require_own_proc
from turnkeep.process.keeper import renumber_root
from turnkeep.process.launch import Place
from turnkeep.process.observe import observe, outside
from turnkeep.process.reaper import can_reap, reap
from turnkeep.process.sandboxed import Images
from turnkeep.process.table import Row, Table, read_table
from turnkeep.process.timers import rearm_timers
from turnkeep.process.trees import TreeKind, partition
from turnkeep.process.vet import vet_folder
from turnkeep.runtime.container import Container
from turnkeep.runtime.places import open_root

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
    keeper: int
    confinement: Mapping[int, Confinement]


@dataclass(slots=True)
class Ready:
    """All trees of a checkpoint, loaded, before anything is changed."""

    trees: list[ReadyTree] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    vetted: bool = False
    whole: ReadyTree | None = None
    """The init's tree where runc dumped it: it comes back only as the container starts."""

    def vet(self, container: Container) -> None:
        """Check that the images ask for nothing that the container does not give.

        Raises:
            BadImages: they are malformed.
            ImagesRefused: they ask for more.
        """
        if self.vetted or not self.trees:
            return
        init = observe(container.init_pid)
        for tree in self.trees:
            vet_folder(
                tree.images.folder,
                container.configuration(),
                init,
                replaced=tree.record.replaced,
                processes=tree.confinement,
            )
        self.vetted = True

    def leave_whole(self, why: str) -> None:
        """Do without the init's tree, and say so."""
        if self.whole is not None:
            self.whole.images.close()
            self.whole = None
            self.notes.append(f"the container's own processes were captured, but did not come back: {why}")

    def close(self) -> None:
        """Let go of the images."""
        for tree in [*self.trees, *([self.whole] if self.whole is not None else [])]:
            tree.images.close()


def load_images(
    repository: Repository,
    processes: Processes,
    image: ProcessImage | None,
    container: Container | None = None,
) -> Ready:
    """Load the images of a checkpoint, and check them for a container; the caller closes the result.

    Raises:
        BadImages, Damaged: they are not what was stored, or not sound.
        ImagesRefused: they ask for more than the container gives.
        Unsupported: there is no CRIU.
    """
    ready = Ready()
    try:
        if image is not None:
            for record in image.trees:
                tree = _load(repository, processes, image, record, ready)
                if record.kind == WHOLE_KIND:
                    ready.whole = tree
                else:
                    ready.trees.append(tree)
        if container is not None and container.running:
            ready.vet(container)
    except BaseException:
        ready.close()
        raise
    return ready


def _load(
    repository: Repository, processes: Processes, image: ProcessImage, record: ProcessTree, ready: Ready
) -> ReadyTree:
    name = "images" if record.kind == WHOLE_KIND else "."
    images = processes.engine.new_images(name, expected_bytes=record.image_bytes)
    try:
        archive.load(repository, processes.cache, TreeId(bytes.fromhex(record.images)), images)
        if record.kind != WHOLE_KIND:
            rearm_timers(images.folder)
        same_boot = image.boot_id == boot_id()
        if not same_boot and OTHER_BOOT not in ready.notes:
            ready.notes.append(OTHER_BOOT)
        if same_boot and record.kind == TreeKind.EXEC:
            # The clocks of this boot went on. With a time namespace of its own CRIU
            # could not dump a process a second time.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_CLOCKS, dir_fd=images.folder)
        keeper = 0
        if record.kind == TreeKind.INIT:
            keeper, notes = _renumber(record, images, keep_clocks=not same_boot)
            ready.notes += notes
    except BaseException:
        images.close()
        raise
    seen = {
        line.pid: Confinement.from_json(line.confinement) for line in record.processes if line.confinement
    }
    return ReadyTree(record, images, keeper, seen)


def _renumber(record: ProcessTree, images: Images, *, keep_clocks: bool) -> tuple[int, tuple[str, ...]]:
    """Give the init's image a pid that nobody has: the highest ones are rarely reached."""
    highest = int(Path("/proc/sys/kernel/pid_max").read_text()) - 1
    for pid in range(highest, highest - _KEEPERS, -1):
        with contextlib.suppress(InvalidRequest):
            done = renumber_root(images.folder, pid=pid, without=record.skipped, keep_clocks=keep_clocks)
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
        return list(ready.notes)
    ready.vet(container)
    require_own_proc(container.init_pid)
    init = observe(container.init_pid)
    doomed: set[int] = set()
    try:
        with container.holding():
            before = set(container.held_pids())
            try:
                for tree in ready.trees:
                    doomed |= _bring_back(tree, container, processes, before, init)
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


def _bring_back(
    tree: ReadyTree, container: Container, processes: Processes, before: set[int], init: Confinement
) -> set[int]:
    """Restore one tree, and leave it frozen. Returns who is to be killed before it runs: the keeper."""
    keeper: set[int] = set()

    def check() -> None:
        table = read_table(_everyone(container), container.init_pid)
        _compare(tree, table, container, init)
        restored = {line.pid for line in tree.record.processes} | {tree.keeper}
        keeper.update(row.host for row in table.rows if tree.keeper and row.pid == tree.keeper)
        container.hold_more(row.host for row in table.rows if row.pid in restored and row.host not in before)

    with _opened(tree.record, container) as inherit:
        init_fd = os.pidfd_open(container.init_pid)
        try:
            leaders = {number for each in tree.record.processes for number in (each.group, each.session)}
            place = Place(init=init_fd, join=container.procs_files(), avoid=leaders)
            processes.engine.restore(place, tree.images, check, inherit=inherit)
        finally:
            os.close(init_fd)
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
                opened[name] = _own_null(container)
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)


def _own_null(container: Container) -> int:
    """Open the sandbox's own /dev/null: one of the host's would be something from outside."""
    root = open_root(container.init_pid)
    try:
        fd = open_beneath(root, b"dev/null", os.O_RDWR, cross_mounts=True)
    except (OSError, StoreError) as error:
        raise RestoreFailed(
            f"it has no /dev/null to stand for what leads outside: {error}",
            object=f"container {container.name}",
        ) from error
    finally:
        os.close(root)
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
        os.close(fd)
        raise RestoreFailed("its /dev/null is none", object=f"container {container.name}")
    return fd


def _compare(tree: ReadyTree, table: Table, container: Container, init: Confinement) -> None:
    """Compare the processes that are there with those that were captured.

    Raises:
        RestoreFailed: they differ.
    """
    there = {row.pid: row for row in table.rows}
    wrong: list[str] = []
    root = tree.record.root if tree.record.kind == TreeKind.INIT else 0
    for line in tree.record.processes:
        if line.pid == root:
            continue
        row = there.get(line.pid)
        wrong += _differences(line, row, root, tree.keeper)
        if row is not None and line.pid in tree.confinement:
            wrong += _weaker(tree.confinement[line.pid], row, init, container)
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


def compare_whole(ready: Ready, container: Container) -> None:
    """Compare a container that came back as a whole with what was captured. It is frozen.

    Raises:
        RestoreFailed: they differ.
    """
    assert ready.whole is not None
    table = read_table(_everyone(container), container.init_pid)
    there = {row.pid: row for row in table.rows}
    # Its own cgroups and namespaces are new, and made by runc as for any start.
    init = observe(container.init_pid)
    wrong: list[str] = []
    for line in ready.whole.record.processes:
        row = there.get(line.pid)
        wrong += _differences(line, row, 0, 0)
        if row is not None and line.pid in ready.whole.confinement:
            wrong += _weaker(ready.whole.confinement[line.pid], row, init, container)
    if wrong:
        raise RestoreFailed(
            f"processes are not as they were captured: {'; '.join(wrong[:_SHOWN])}",
            object=f"container {container.name}",
        )


def _weaker(captured: Confinement, row: Row, init: Confinement, container: Container) -> list[str]:
    """Return where a restored process is held less than it was, or has what is not the sandbox's."""
    found = [
        f"{row.pid} {row.name}: {difference}"
        for difference in compare(captured, observe(row.host), init=init)
        if difference.weaker
    ]
    return found + [f"{row.pid} {row.name}: has {each}" for each in outside(row.host, container.init_pid)]


def _everyone(container: Container) -> list[int]:
    """Return all processes by their pids on the host, dead ones included, which no cgroup lists."""
    forest = partition(container.pids(), container.init_pid, lambda pid: False)
    return [pid for tree in forest.trees for pid in tree.pids]


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
    deadline = time.monotonic() + _END_LIMIT_S
    while True:
        if name not in _WAITING_INITS:
            # In vain while somebody else traces the init: a CRIU that was killed ends late.
            reap(container.init_pid)
        rows = read_table(children_of_init(container), container.init_pid).rows
        dead = any(row.zombie and row.parent == 1 for row in rows)
        able = name in _WAITING_INITS or can_reap()
        if not dead or not able or time.monotonic() > deadline:
            return
        time.sleep(_POLL_S)


def children_of_init(container: Container) -> list[int]:
    """Return the container's init and its children, dead ones included, by their pids on the host."""
    init = container.init_pid
    try:
        listed = Path(f"/proc/{init}/task/{init}/children").read_text()
    except FileNotFoundError:
        return []
    return [init, *map(int, listed.split())]
