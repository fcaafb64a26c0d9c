"""One restore from the request to the result, crash-safe through an intent.

The intent is journaled before anything is changed and removed with the result;
a start-up that finds one repeats the restore, which is idempotent: it compares
and writes until the state is the checkpoint's.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace

from turnkeep_store.points import reached

from turnkeep.checkpointer.view import Baseline
from turnkeep.coordinator.cold_restore import cold
from turnkeep.coordinator.creation import Replacement
from turnkeep.coordinator.deps import run
from turnkeep.coordinator.live_restore import (
    RESTORE_FREEZE_S,
    live,
    processes_again,
    see_them_gone,
    stateful,
)
from turnkeep.coordinator.loading import leave_whole, let_go, load
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import ContainerNotRunning, PidsTaken, SandboxGone, Unsupported
from turnkeep.journal import Change, Delete, Intent, put_intent
from turnkeep.model import (
    Checkpoint,
    CheckpointId,
    ContainerState,
    Fidelity,
    Origin,
    Turn,
    TurnNumber,
)
from turnkeep.points import Point
from turnkeep.restorer.live import stop_strays
from turnkeep.restorer.pids import dead_in_the_way, require_free_pids
from turnkeep.restorer.plan import Choice, Progress, Restored, choose
from turnkeep.restorer.processes import Ready
from turnkeep.runtime.container import Container
from turnkeep.runtime.freezer import Frozen
from turnkeep.runtime.moves import quick_moves
from turnkeep.watch.processes import Process, sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the caller wants of a restore."""

    checkpoint: Checkpoint
    turn: Turn | None
    live: bool | None = None
    skip_safety: bool = False
    replace: bool = False
    full: bool | None = None
    answers: Callable[[Outcome], Iterable[Change]] = lambda outcome: ()
    """What is to be journaled together with the restore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a restore did."""

    mode: str
    mode_reason: str
    checkpoint: Checkpoint
    safety_id: CheckpointId | None
    restored: Restored
    total_ns: int
    notes: tuple[str, ...]
    turn: TurnNumber


async def restore(sandbox: SandboxCoordinator, wish: Wish, progress: Progress) -> Outcome:
    """Bring a sandbox's own container back to a checkpoint.

    Afterwards the checkpoint is the sandbox's head. If this raises, the files
    are as they were, or the error says otherwise, and the container runs if it
    ran.

    Raises:
        ContainerNotRunning: the container is gone or paused.
        Unsupported: the checkpoint is of another image.
        RestoreFailed, DigestMismatch: see `restorer`.
    """
    started = time.monotonic_ns()
    await sandbox.abandon_open("the sandbox was restored")
    async with sandbox.holding():
        container = await _open(sandbox)
        _check_image(container, wish.checkpoint)
        is_stateful = stateful(sandbox, container)
        choice = _choose(container, wish, is_stateful)
        _check_may_stop(container, choice)
        ready = await load(sandbox, wish.checkpoint, container)
        try:
            choice = leave_whole(ready, container.inspected, replace=wish.replace) or choice
            if choice.live and ready.trees:
                choice = await run(
                    sandbox.deps.pools.capture, _with_free_pids, choice, container, wish, ready, is_stateful
                )
            work = _Work(sandbox, container, wish, choice, ready, progress)
            restored = await work.do(is_stateful)
        finally:
            let_go(sandbox.deps, ready)
        outcome = Outcome(
            mode="live" if choice.live else "cold",
            mode_reason=choice.reason,
            checkpoint=wish.checkpoint,
            safety_id=work.safety_id,
            restored=replace(restored, stopped=tuple(map(str, work.stopped))),
            total_ns=time.monotonic_ns() - started,
            notes=(*restored.notes, *_notes(wish)),
            turn=wish.turn.number if wish.turn is not None else wish.checkpoint.turn,
        )
        await finish(sandbox, wish.checkpoint, work.intent, _head_turn(wish), wish.answers(outcome))
        return outcome


class _Work:
    """One restore of a sandbox's own container, from the safety checkpoint on."""

    def __init__(
        self,
        sandbox: SandboxCoordinator,
        container: Container,
        wish: Wish,
        choice: Choice,
        ready: Ready,
        progress: Progress,
    ) -> None:
        self._sandbox = sandbox
        self._container = container
        self._wish = wish
        self._choice = choice
        self._ready = ready
        self._progress = progress
        self.safety_id: CheckpointId | None = None
        self.stopped: tuple[Process, ...] = ()
        self.intent = Intent(
            id=uuid.uuid4().hex,
            kind="restore",
            sandbox_id=sandbox.record.id,
            details={
                "checkpoint": wish.checkpoint.id,
                "live": choice.live,
                "head_turn": _head_turn(wish),
                "replaces": self._container.id if wish.replace and ready.whole is not None else "",
            },
        )

    async def do(self, is_stateful: Callable[[Process], bool]) -> Restored:
        """Do it. If this raises, what was changed was put back as far as that is possible."""
        sandbox, wish = self._sandbox, self._wish
        pools = sandbox.deps.pools
        try:
            restored = None
            async with self._standing_still() as freeze:
                await self._save()
                reached(Point.RESTORE_SAVED)
                await sandbox.record_event(
                    "restoring", self._choice.reason, changes=(put_intent(self.intent),)
                )
                reached(Point.RESTORE_INTENDED)
                if self._choice.live:
                    # What they did since the safety checkpoint is nothing: they never run again.
                    self.stopped = await run(pools.capture, stop_strays, self._container, is_stateful)
                    reached(Point.RESTORE_KILLED)
                    if not self.stopped and not await self._must_wait_for_dead():
                        restored = await self._live(exact=not wish.skip_safety)
            reached(Point.RESTORE_THAWED)
            if restored is not None:
                restored.freeze_ns = freeze.ns if freeze is not None else 0
                return restored
            if self._choice.live:
                await run(pools.capture, see_them_gone, self._container, self.stopped, self._ready)
                return await self._live(exact=False)
            replacement = None
            if self.intent.details["replaces"]:
                replacement = await run(
                    pools.engine,
                    Replacement,
                    sandbox.deps.engine,
                    sandbox.record.container_id,
                    wish.checkpoint,
                    self.intent.id,
                )
            return await cold(
                sandbox, self._container, wish.checkpoint, self._progress, self._ready, replacement
            )
        except Exception as error:
            await self._give_up(error)
            raise

    async def _must_wait_for_dead(self) -> bool:
        if not self._ready.trees:
            # A restore of files alone pays for no change of thread.
            return False
        pool = self._sandbox.deps.pools.capture
        return bool(await run(pool, dead_in_the_way, self._ready, self._container))

    async def _live(self, *, exact: bool) -> Restored:
        with quick_moves() if self._ready.trees else contextlib.nullcontext():
            return await live(
                self._sandbox,
                self._container,
                self._wish.checkpoint,
                self._ready,
                full=bool(self._wish.full),
                progress=self._progress,
                exact=exact,
            )

    @contextlib.asynccontextmanager
    async def _standing_still(self) -> AsyncIterator[Frozen | None]:
        """Keep the container frozen from the safety checkpoint until its processes are killed.

        Where there are none to kill, it stays so until its files are restored.
        """
        pool = self._sandbox.deps.pools.capture
        with contextlib.ExitStack() as stack:
            state: Frozen | None = None
            if self._choice.live:
                freeze = self._container.frozen(RESTORE_FREEZE_S, hold=True)
                state = await run(pool, stack.enter_context, freeze)
            yield state

    async def _save(self) -> None:
        """Take the safety checkpoint, unless nothing changed or it is not wanted."""
        if self._wish.skip_safety:
            return
        self._progress("capture", 0, 0)
        before = self._sandbox.record.head_checkpoint_id
        safety = await self._sandbox.take(Origin.BEFORE_RESTORE, even_if_unchanged=False)
        self.safety_id = safety.id if safety is not None else before

    async def _give_up(self, error: Exception) -> None:
        """Put back what a failed restore changed, and forget its intent.

        A live one has put back the files itself; the processes come back from the
        checkpoint taken before it. A cold one goes back to that checkpoint; if that
        fails, too, the intent stays for the next start.
        """
        sandbox = self._sandbox
        sandbox.baseline = Baseline(sandbox.baseline.tree, sandbox.baseline.checkpoint_id)
        before = sandbox.deps.journal.checkpoint(self.safety_id) if self.safety_id is not None else None
        if before is not None and (self.stopped or not self._choice.live):
            try:
                await self._go_back(before)
            except Exception as again:
                await sandbox.record_event("failed", f"restore: {error}; going back failed, too: {again}")
                if not self._choice.live:
                    return
        await sandbox.record_event("failed", f"restore: {error}", changes=(Delete("intent", self.intent.id),))

    async def _go_back(self, before: Checkpoint) -> None:
        sandbox = self._sandbox
        ready = await load(sandbox, before)
        leave_whole(ready, self._container.inspected, replace=False)
        try:
            if self._choice.live:
                await run(sandbox.deps.pools.long, processes_again, sandbox, self._container, ready)
            else:
                await cold(sandbox, await sandbox.open(), before, self._progress, ready)
        finally:
            let_go(sandbox.deps, ready)


def _head_turn(wish: Wish) -> int:
    return wish.turn.number if wish.turn is not None else wish.checkpoint.turn


async def _open(sandbox: SandboxCoordinator) -> Container:
    if sandbox.record.container_state is ContainerState.GONE:
        raise SandboxGone(
            "its container was removed",
            object=f"sandbox {sandbox.record.name}",
            hint=f"turnkeep restore {sandbox.record.name}@TURN --new NAME makes a new one",
        )
    container = await sandbox.open()
    if container.running and container.is_frozen():
        raise ContainerNotRunning(
            "it is paused", object=f"container {container.name}", hint=f"docker unpause {container.name}"
        )
    return container


def _check_image(container: Container, checkpoint: Checkpoint) -> None:
    if container.layers != checkpoint.layers:
        raise Unsupported(
            "the checkpoint was taken on other image layers",
            object=f"checkpoint {checkpoint.id[:12]}",
            hint=f"it needs image {checkpoint.image} ({checkpoint.image_id[:19]})",
        )


def _choose(container: Container, wish: Wish, is_stateful: Callable[[Process], bool]) -> Choice:
    state = ContainerState.RUNNING if container.running else ContainerState.STOPPED
    # Of its own process alone: this holds up the loop, and there may be thousands.
    now = sample([container.init_pid] if container.running else [], lambda: 0)
    init = next(iter(now.processes.values()), None)
    return choose(state, init_is_stateful=init is not None and is_stateful(init), wanted_live=wish.live)


def _check_may_stop(container: Container, choice: Choice) -> None:
    if not choice.live and container.running and container.inspected["HostConfig"].get("AutoRemove"):
        raise Unsupported(
            "the container was started with --rm, so that stopping it would remove it",
            object=f"container {container.name}",
            hint="restore with --mode live, or into a new container with --new NAME",
        )


def _with_free_pids(
    choice: Choice, container: Container, wish: Wish, ready: Ready, is_stateful: Callable[[Process], bool]
) -> Choice:
    """Return another way where what a live restore leaves running has pids that are needed."""
    now = sample(container.pids(), container.usage_ns)
    staying = [each.pid for each in now.processes.values() if not is_stateful(each)]
    try:
        require_free_pids(ready, container, staying)
    except PidsTaken as error:
        if wish.live:
            raise
        other = Choice(False, error.message)
        _check_may_stop(container, other)
        return other
    return choice


async def finish(
    sandbox: SandboxCoordinator,
    checkpoint: Checkpoint,
    intent: Intent,
    head_turn: int,
    answers: Iterable[Change] = (),
) -> None:
    """Journal a restore as done: the checkpoint is the head, later turns branch from it."""
    at = f"turn {head_turn}" if head_turn else f"checkpoint {checkpoint.id[:12]}"
    await sandbox.update(
        "restored",
        f"restored to {at}",
        record={
            "head_checkpoint_id": checkpoint.id,
            "head_turn": TurnNumber(head_turn),
            "container_state": ContainerState.RUNNING,
            "note": "",
        },
        details={"checkpoint": checkpoint.id, "turn": head_turn},
        changes=(Delete("intent", intent.id), *answers),
    )
    reached(Point.RESTORE_RECORDED)


def _notes(wish: Wish) -> tuple[str, ...]:
    notes = []
    checkpoint, turn = wish.checkpoint, wish.turn
    if checkpoint.fidelity is not Fidelity.COMPLETE:
        notes.append(f"fidelity: {checkpoint.fidelity}; the other processes that ran then did not come back")
    decision = turn.decision if turn is not None else None
    if (
        turn is not None
        and decision is not None
        and checkpoint.turn != turn.number
        and decision.cache_path_count
    ):
        shown = ", ".join(decision.changed_paths[:5])
        notes.append(
            f"derived caches are as of turn {checkpoint.turn}, not {turn.number}:"
            f" {decision.cache_path_count} paths ({shown})"
        )
    notes.extend(
        f"{mount.target} is not covered: {mount.reason}" for mount in checkpoint.mounts if not mount.covered
    )
    return tuple(notes)
