"""One restore from the request to the result, crash-safe through an intent.

The intent is journaled before anything is changed and removed with the result;
a start-up that finds one repeats the restore, which is idempotent: it compares
and writes until the state is the checkpoint's.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from turnkeep.checkpointer.view import Baseline
from turnkeep.coordinator.creation import START_FREEZE_S, Replacement
from turnkeep.coordinator.deps import Deps, run
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import ContainerNotRunning, SandboxGone, Unsupported
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
from turnkeep.restorer.cold import (
    fill_on_disk,
    start_and_fill,
    wait_until_unmounted,
)
from turnkeep.restorer.live import restore_live, stop_strays, wait_until_gone
from turnkeep.restorer.plan import Choice, Progress, Restored, choose, no_progress
from turnkeep.restorer.processes import Ready, bring_back, compare_whole, load_images, reap_dead
from turnkeep.restorer.whole import NOT_OURS, RUNTIME, start_with
from turnkeep.runtime.container import Container, open_container
from turnkeep.runtime.freezer import Frozen
from turnkeep.runtime.moves import quick_moves
from turnkeep.runtime.places import Places, places_on_disk
from turnkeep.watch.processes import Process, sample, stateful_test

RESTORE_FREEZE_S = 600.0
"""A restore's freeze is held by the daemon alone; this bounds only how long freezing may take to begin."""


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
        is_stateful = _stateful(sandbox, container)
        choice = _choose(container, wish, is_stateful)
        if not choice.live and container.running and container.inspected["HostConfig"].get("AutoRemove"):
            raise Unsupported(
                "the container was started with --rm, so that stopping it would remove it",
                object=f"container {container.name}",
                hint="restore with --mode live, or into a new container with --new NAME",
            )
        ready = await load(sandbox, wish.checkpoint, container)
        choice = _leave_whole(ready, container.inspected, replace=wish.replace) or choice
        work = _Work(sandbox, container, wish, choice, ready, progress)
        try:
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
            details={"checkpoint": wish.checkpoint.id, "live": choice.live, "head_turn": _head_turn(wish)},
        )

    async def do(self, is_stateful: Callable[[Process], bool]) -> Restored:
        """Do it. If this raises, what was changed was put back as far as that is possible."""
        sandbox, wish = self._sandbox, self._wish
        pools = sandbox.deps.pools
        try:
            restored = None
            async with self._standing_still() as freeze:
                await self._save()
                await sandbox.record_event(
                    "restoring", self._choice.reason, changes=(put_intent(self.intent),)
                )
                if self._choice.live:
                    # What they did since the safety checkpoint is nothing: they never run again.
                    self.stopped = await run(pools.capture, stop_strays, self._container, is_stateful)
                    if not self.stopped:
                        restored = await self._live(exact=not wish.skip_safety)
            if restored is not None:
                restored.freeze_ns = freeze.ns if freeze is not None else 0
                return restored
            if self._choice.live:
                await run(pools.capture, _see_them_gone, self._container, self.stopped)
                return await self._live(exact=False)
            replacement = None
            if wish.replace and self._ready.whole is not None:
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
        _leave_whole(ready, self._container.inspected, replace=False)
        try:
            if self._choice.live:
                await run(sandbox.deps.pools.long, _processes_again, sandbox, self._container, ready)
            else:
                await cold(sandbox, await sandbox.open(), before, self._progress, ready)
        finally:
            let_go(sandbox.deps, ready)


def _leave_whole(ready: Ready, inspected: Mapping[str, Any], *, replace: bool) -> Choice | None:
    """Return the way to bring back a whole container; leave it out, and say so, where there is none."""
    if ready.whole is None:
        return None
    if replace or inspected["HostConfig"].get("Runtime") == RUNTIME:
        return Choice(False, "its own processes come back only as the container starts")
    ready.leave_whole(NOT_OURS)
    return None


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


def _stateful(sandbox: SandboxCoordinator, container: Container) -> Callable[[Process], bool]:
    return stateful_test(
        container.init_pid,
        container.command,
        sandbox.deps.config.classify.reproducible,
        container.health_check,
    )


def _choose(container: Container, wish: Wish, is_stateful: Callable[[Process], bool]) -> Choice:
    state = ContainerState.RUNNING if container.running else ContainerState.STOPPED
    now = sample(container.pids(), container.usage_ns)
    init = next((each for each in now.processes.values() if each.pid == container.init_pid), None)
    return choose(state, init_is_stateful=init is not None and is_stateful(init), wanted_live=wish.live)


async def load(
    sandbox: SandboxCoordinator, checkpoint: Checkpoint, container: Container | None = None
) -> Ready:
    """Load a checkpoint's processes before anything is changed; the caller closes it.

    For a container that runs already they are checked as well.
    """
    deps = sandbox.deps
    return await run(
        deps.pools.long, load_images, deps.repository, deps.processes, checkpoint.processes, container
    )


def let_go(deps: Deps, ready: Ready) -> None:
    """Let go of loaded images. Nobody waits for it: what lies in memory takes the kernel its time."""
    deps.pools.long.submit(ready.close)


def _processes_again(sandbox: SandboxCoordinator, container: Container, ready: Ready) -> None:
    """Bring processes back whose files are right already. Does nothing if some still run."""
    with container.frozen(RESTORE_FREEZE_S, hold=True):
        bring_back(ready, container, sandbox.deps.processes)


def _see_them_gone(container: Container, killed: tuple[Process, ...]) -> None:
    """Wait for the end of processes that were killed, until their pids are free again."""
    wait_until_gone(container, killed)
    if killed:
        reap_dead(container)


def _stop_strays(
    container: Container, is_stateful: Callable[[Process], bool], budget_s: float
) -> tuple[Process, ...]:
    with container.frozen(budget_s):
        killed = stop_strays(container, is_stateful)
    _see_them_gone(container, killed)
    return killed


async def live(
    sandbox: SandboxCoordinator,
    container: Container,
    checkpoint: Checkpoint,
    ready: Ready,
    *,
    full: bool,
    progress: Progress,
    exact: bool = False,
) -> Restored:
    """Restore a running container; the caller holds the sandbox (see `restore_live`)."""

    def and_then() -> list[str]:
        return bring_back(ready, container, sandbox.deps.processes)

    restored, baseline = await run(
        sandbox.deps.pools.long,
        restore_live,
        sandbox.deps.repository,
        sandbox.deps.checkpointer,
        container,
        checkpoint,
        sandbox.baseline,
        full=full,
        budget_s=RESTORE_FREEZE_S,
        progress=progress,
        and_then=and_then if ready.trees else None,
        exact=exact,
    )
    sandbox.baseline = baseline
    await run(sandbox.deps.pools.capture, baseline.fold)
    return restored


async def live_again(sandbox: SandboxCoordinator, container: Container, checkpoint: Checkpoint) -> Restored:
    """Repeat a live restore that was cut off anywhere: what it brought back is killed first."""
    ready = await load(sandbox, checkpoint)
    try:
        stopped = await run(
            sandbox.deps.pools.capture,
            _stop_strays,
            container,
            _stateful(sandbox, container),
            sandbox.deps.config.limits.freeze_budget_s,
        )
        restored = await live(sandbox, container, checkpoint, ready, full=True, progress=no_progress)
    finally:
        let_go(sandbox.deps, ready)
    return replace(restored, stopped=tuple(map(str, stopped)))


async def cold(
    sandbox: SandboxCoordinator,
    container: Container,
    checkpoint: Checkpoint,
    progress: Progress,
    ready: Ready,
    replacement: Replacement | None = None,
) -> Restored:
    """Stop the container, put its files right, start it; the caller holds the sandbox.

    With a replacement, another container takes its place.
    """
    places = sandbox.places or container.places
    return await _cold(sandbox, places, checkpoint, progress, ready, replacement)


async def cold_again(
    sandbox: SandboxCoordinator, checkpoint: Checkpoint, inspected: Mapping[str, Any]
) -> Restored:
    """Repeat a cold restore that was cut off anywhere, from what the engine knows of the container."""
    if sandbox.places is None and inspected["State"].get("Running"):
        await sandbox.open()
    places = sandbox.places or places_on_disk(inspected, checkpoint.mounts)
    ready = await load(sandbox, checkpoint)
    _leave_whole(ready, inspected, replace=False)
    try:
        return await _cold(sandbox, places, checkpoint, no_progress, ready)
    finally:
        let_go(sandbox.deps, ready)


async def _cold(
    sandbox: SandboxCoordinator,
    places: Places,
    checkpoint: Checkpoint,
    progress: Progress,
    ready: Ready,
    replacement: Replacement | None = None,
) -> Restored:
    deps = sandbox.deps
    restored, baseline, started = await run(
        deps.pools.long,
        _restart,
        deps,
        sandbox.record.container_id,
        places,
        checkpoint,
        progress,
        ready,
        replacement,
    )
    sandbox.use(started)
    sandbox.baseline = baseline
    if replacement is not None:
        await sandbox.update(
            "replaced",
            "by a container of the same name and configuration",
            record={"container_id": started.id},
            details={"old": sandbox.record.container_id, "new": started.id},
        )
        await run(deps.pools.engine, replacement.keep)
    return restored


def _restart(
    deps: Deps,
    container_id: str,
    places: Places,
    checkpoint: Checkpoint,
    progress: Progress,
    ready: Ready,
    replacement: Replacement | None,
) -> tuple[Restored, Baseline, Container]:
    """Stop the container, put what is on the disk right, start it, and put the rest right. Blocking."""
    progress("stop", 0, 0)
    deps.engine.stop(container_id)
    wait_until_unmounted(places.rootfs.host_path)
    if replacement is not None:
        replacement.make()
        container_id = replacement.new_id
        places = places_on_disk(deps.engine.inspect(container_id), checkpoint.mounts)
    try:
        written = fill_on_disk(deps.repository, checkpoint, places.covered, progress)
        stopped = open_container(deps.engine, deps.freezer, container_id, places)
        try:
            present = deps.checkpointer.states.current_state(stopped, None)
        finally:
            stopped.close()

        def start() -> Container:
            start_with(ready, deps.processes, container_id, lambda: deps.engine.start(container_id))
            return open_container(deps.engine, deps.freezer, container_id)

        def and_then(container: Container) -> list[str]:
            if ready.whole is not None:
                compare_whole(ready, container)
            return bring_back(ready, container, deps.processes)

        return start_and_fill(
            deps.repository,
            deps.checkpointer,
            checkpoint,
            start,
            present,
            written,
            budget_s=START_FREEZE_S,
            progress=progress,
            and_then=and_then,
            whole=ready.whole is not None,
        )
    except BaseException:
        if replacement is not None:
            replacement.undo()
        raise


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
