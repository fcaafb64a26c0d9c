"""Restoring a running sandbox without restarting it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from turnkeep_store.chunks import read_extents
from turnkeep_store.diff import Delta, diff
from turnkeep_store.ids import TreeId
from turnkeep_store.nodes import set_attributes_of, write_segments
from turnkeep_store.points import reached
from turnkeep_store.repository import Repository
from turnkeep_store.restorer import Source, Written, apply_difference
from turnkeep_store.tree import Entry

from turnkeep.checkpointer.capture import Checkpointer
from turnkeep.checkpointer.states import State
from turnkeep.checkpointer.view import Baseline
from turnkeep.errors import RestoreFailed
from turnkeep.model import Checkpoint
from turnkeep.paths import display
from turnkeep.points import Point
from turnkeep.restorer.plan import Progress, Restored, check_digest
from turnkeep.restorer.sockets import times_again
from turnkeep.runtime.container import Container, kill_processes
from turnkeep.runtime.places import Place, open_root
from turnkeep.watch.processes import Process, sample
from turnkeep.watch.trail import Trail

_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.001


def stop_strays(container: Container, is_stateful: Callable[[Process], bool]) -> tuple[Process, ...]:
    """Kill every process that a start of the container would not bring back.

    Meant to be called inside a freeze: the signal is then the first thing that
    they see. Returns who was killed.
    """
    now = sample(container.pids(), container.usage_ns)
    strays = {process.pid: process for process in now.processes.values() if is_stateful(process)}
    killed = kill_processes(container, lambda pid: pid not in strays)
    return tuple(strays[pid] for pid in killed)


def wait_until_gone(container: Container, processes: tuple[Process, ...]) -> None:
    """Wait until killed processes have ended with all their threads; zombies have, and cannot write.

    Only then do their children have another parent.

    Raises:
        RestoreFailed: one does not, because it waits uninterruptibly perhaps.
    """
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    left = {process.identity for process in processes}
    while left := {each for each in left if not _has_ended(each[0])}:
        if time.monotonic() > deadline:
            raise RestoreFailed(
                f"processes {sorted(pid for pid, _ in left)} do not end",
                object=f"container {container.name}",
                hint="look for state D in ps; a cold restore (--mode cold) restarts the container",
            )
        time.sleep(_POLL_S)


def _has_ended(pid: int) -> bool:
    """Whether every thread of a process that was killed is dead."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        states = [_state(f"/proc/{pid}/task/{thread}/stat") for thread in threads]
    except (FileNotFoundError, ProcessLookupError):
        return not os.path.exists(f"/proc/{pid}")
    return all(state in (b"Z", b"X") for state in states)


def _state(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read().rpartition(b")")[2].split()[0]


def restore_live(
    repository: Repository,
    checkpointer: Checkpointer,
    container: Container,
    checkpoint: Checkpoint,
    baseline: Baseline | None,
    *,
    full: bool,
    budget_s: float,
    progress: Progress,
    and_then: Callable[[], list[str]] | None = None,
    exact: bool = False,
) -> tuple[Restored, Baseline]:
    """Bring a running container's files to a checkpoint, frozen meanwhile.

    `and_then` is called inside the freeze once the files are right, and brings
    back the processes; what it returns is to be said of the restore.

    `baseline` is what is known of the present state; with None everything is
    read first. It is `exact` if an inspection in the freeze that lasts found that
    nothing else is there. Afterwards the digest of what is there equals the checkpoint's.
    If writing or `and_then` fails, the files are brought back to what they were.

    Raises:
        DigestMismatch: what was written is not what reads back.
        RestoreFailed: writing failed; the message says what is there now.
    """
    want = TreeId(bytes.fromhex(checkpoint.tree))
    progress("compare", 0, 0)
    before = checkpointer.states.known_state(container, baseline) if exact and baseline is not None else None
    look = checkpointer.states.look(container, baseline) if before is None else None
    with container.frozen(budget_s, hold=True) as freeze:
        if look is not None:
            before = checkpointer.states.confirm(look, baseline)
        assert before is not None
        work = _Live(container, before.source)
        progress("write", 0, 0)
        try:
            written = work.bring(before.tree, want)
        except Exception as error:
            raise _undo(checkpointer, container, before, "writing failed", error) from error
        reached(Point.RESTORE_WRITTEN)
        progress("verify", 0, 0)
        if full:
            after = checkpointer.states.current_state(container, None, before.source)
        else:
            after = checkpointer.states.after_writing(container, before, work.touched, want)
        check_digest(repository, checkpoint, after.digest.hex(), after.tree, after.source)
        reached(Point.RESTORE_VERIFIED)
        if freeze is not None:
            freeze.check()
        processes = None if checkpoint.processes else sample(container.pids(), container.usage_ns)
        notes: list[str] = []
        if and_then is not None:
            progress("processes", 0, 0)
            try:
                notes = and_then()
                times_again(checkpointer, container, after)
                reached(Point.RESTORE_PROCESSES)
            except Exception as error:
                why = "the processes could not be brought back"
                raise _undo(checkpointer, container, before, why, error) from error
    new = Baseline(want, checkpoint.id, after.baseline.places, processes)
    freeze_ns = freeze.ns if freeze is not None else 0
    restored = Restored(after.digest.hex(), written, freeze_ns, full or baseline is None, tuple(notes))
    return restored, new


def _undo(
    checkpointer: Checkpointer, container: Container, before: State, what: str, cause: Exception
) -> RestoreFailed:
    """Bring the files back to `before` after a failure; return the error to raise."""
    name = f"container {container.name}"
    hint = getattr(cause, "hint", "")
    try:
        now = checkpointer.states.current_state(container, None, before.source)
        _Live(container, now.source).bring(now.tree, before.tree)
    except Exception as error:
        return RestoreFailed(
            f"{what} ({cause}), and so did bringing the files back ({error})",
            object=name,
            hint="the files are between two states: restore again, or with --mode cold",
        )
    return RestoreFailed(f"{what} ({cause}); the files are as they were", object=name, hint=hint)


class _Live:
    """Writes differences between trees into a running container's places."""

    def __init__(self, container: Container, source: Source) -> None:
        self._source = source
        self._container = container
        self._places = {place.slot: place for place in container.covered()}
        self.touched: dict[bytes, Trail] = {}

    def bring(self, have: TreeId, want: TreeId) -> Written:
        """Bring every place from one tree to the other.

        Raises:
            RestoreFailed: the wanted tree has a place that the container lacks.
        """
        total = Written()
        old, new = self._source.read_directory(have), self._source.read_directory(want)
        for entry in new:
            place = self._places.get(entry.name)
            if place is None:
                raise RestoreFailed(
                    f"the checkpoint holds {display(entry.name)}, which this container does not mount",
                    object=f"container {self._container.name}",
                )
            self._bring_place(place, old.entries.get(entry.name), entry, total)
        return total

    def _bring_place(self, place: Place, have: Entry | None, want: Entry, total: Written) -> None:
        if have is not None and have == want:
            return
        pid = self._container.init_pid
        # The root file system is written through the container's own merged
        # view: changes to the upper layer behind a live mount go unseen.
        fd = open_root(pid) if place.is_rootfs else place.open(pid)
        self.touched[place.slot] = Trail()
        try:
            if place.is_file:
                total.bytes += rewrite(fd, self._source, want)
                total.paths += 1
            elif want.subtree is not None:
                image = self._container.image_view(place)
                deltas = list(diff(self._source, have.subtree if have is not None else None, want.subtree))
                self.touched[place.slot] = trail_of(deltas)
                written = apply_difference(fd, self._source, want.subtree, deltas, image)
                total.paths += written.paths
                total.bytes += written.bytes
            set_attributes_of(fd, want)
        finally:
            os.close(fd)


def trail_of(deltas: Iterable[Delta]) -> Trail:
    """Return what bringing these differences about touches."""
    touched = Trail()
    for delta in deltas:
        touched.paths.add(delta.path)
        kinds = [each is not None and each.is_directory for each in (delta.before, delta.after)]
        if delta.before is None or delta.after is None or kinds[0] != kinds[1]:
            touched.deep.add(delta.path)
    return touched


def rewrite(fd: int, source: Source, want: Entry) -> int:
    """Give the open file (O_PATH) the content of an entry, in place; return the bytes written.

    A file that is itself a mount cannot be replaced.
    """
    content = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        return write_segments(content, read_extents(source, want.content), want.size)
    finally:
        os.close(content)
