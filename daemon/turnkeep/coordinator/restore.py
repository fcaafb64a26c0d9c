"""One restore from the request to the result, crash-safe through an intent.

The intent is journaled before anything is changed and removed with the result;
a start-up that finds one repeats the restore, which is idempotent: it compares
and writes until the state is the checkpoint's.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from turnkeep.checkpointer.view import Baseline
from turnkeep.coordinator.deps import run
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import Conflict, ContainerNotRunning, SandboxGone, Unsupported
from turnkeep.journal import Delete, Intent, put_intent
from turnkeep.model import (
    Checkpoint,
    CheckpointId,
    ContainerState,
    Fidelity,
    MountKind,
    Origin,
    Turn,
    TurnNumber,
)
from turnkeep.restorer.cold import (
    fill_on_disk,
    new_container_config,
    start_and_fill,
    wait_until_unmounted,
)
from turnkeep.restorer.live import restore_live, stop_strays, wait_until_gone
from turnkeep.restorer.plan import Choice, Progress, Restored, choose, no_progress
from turnkeep.runtime.container import Container, open_container
from turnkeep.runtime.places import Places, places_on_disk
from turnkeep.watch.processes import Process, sample, stateful_test

RESTORE_FREEZE_S = 600.0
"""A restore's freeze is held by the daemon alone; this bounds only how long freezing may take to begin."""

START_FREEZE_S = 60.0

INTENT_LABEL = "turnkeep.restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the caller wants of a restore."""

    checkpoint: Checkpoint
    turn: Turn | None
    live: bool | None = None
    skip_safety: bool = False
    full: bool | None = None


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
        stopped: tuple[Process, ...] = ()
        safety: Checkpoint | None = None
        before_safety = sandbox.record.head_checkpoint_id
        if not wish.skip_safety:
            progress("capture", 0, 0)
            safety = await sandbox.take(Origin.BEFORE_RESTORE, even_if_unchanged=False)
        safety_id = None if wish.skip_safety else (safety.id if safety is not None else before_safety)
        intent = Intent(
            id=uuid.uuid4().hex,
            kind="restore",
            sandbox_id=sandbox.record.id,
            details={"checkpoint": wish.checkpoint.id, "live": choice.live, "head_turn": _head_turn(wish)},
        )
        await sandbox.record_event("restoring", choice.reason, changes=(put_intent(intent),))
        try:
            if choice.live:
                stopped = await _stop_strays(sandbox, container, is_stateful)
                restored = await live(
                    sandbox, container, wish.checkpoint, full=bool(wish.full), progress=progress
                )
            else:
                restored = await cold(sandbox, container, wish.checkpoint, progress)
        except Exception as error:
            await _give_up(sandbox, intent, choice, safety_id, error, progress)
            raise
        await finish(sandbox, wish.checkpoint, intent, _head_turn(wish))
        return Outcome(
            mode="live" if choice.live else "cold",
            mode_reason=choice.reason,
            checkpoint=wish.checkpoint,
            safety_id=safety_id,
            restored=replace(restored, stopped=tuple(map(str, stopped))),
            total_ns=time.monotonic_ns() - started,
            notes=(*restored.notes, *_notes(wish)),
            turn=wish.turn.number if wish.turn is not None else wish.checkpoint.turn,
        )


async def _give_up(
    sandbox: SandboxCoordinator,
    intent: Intent,
    choice: Choice,
    safety_id: CheckpointId | None,
    error: Exception,
    progress: Progress,
) -> None:
    """Put back what a failed restore changed, and forget its intent.

    A live one has done so itself. A cold one goes back to the checkpoint taken
    before it; if that fails, too, the intent stays for the next start.
    """
    sandbox.baseline = Baseline(sandbox.baseline.tree, sandbox.baseline.checkpoint_id)
    before = sandbox.deps.journal.checkpoint(safety_id) if safety_id is not None else None
    if not choice.live and before is not None:
        try:
            await cold(sandbox, await sandbox.open(), before, progress)
        except Exception as again:
            await sandbox.record_event("failed", f"restore: {error}; going back failed, too: {again}")
            return
    await sandbox.record_event("failed", f"restore: {error}", changes=(Delete("intent", intent.id),))


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


async def _stop_strays(
    sandbox: SandboxCoordinator, container: Container, is_stateful: Callable[[Process], bool]
) -> tuple[Process, ...]:
    def stop() -> tuple[Process, ...]:
        with container.frozen(sandbox.deps.config.limits.freeze_budget_s):
            killed = stop_strays(container, is_stateful)
        wait_until_gone(container, killed)
        return killed

    return await run(sandbox.deps.pools.capture, stop)


async def live(
    sandbox: SandboxCoordinator,
    container: Container,
    checkpoint: Checkpoint,
    *,
    full: bool,
    progress: Progress,
) -> Restored:
    """Restore a running container; the caller holds the sandbox."""
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
    )
    sandbox.baseline = baseline
    return restored


async def cold(
    sandbox: SandboxCoordinator, container: Container, checkpoint: Checkpoint, progress: Progress
) -> Restored:
    """Stop the container, put its files right, start it; the caller holds the sandbox."""
    return await _cold(sandbox, sandbox.places or container.places, checkpoint, progress)


async def cold_again(
    sandbox: SandboxCoordinator, checkpoint: Checkpoint, inspected: Mapping[str, Any]
) -> Restored:
    """Repeat a cold restore that was cut off anywhere, from what the engine knows of the container."""
    if sandbox.places is None and inspected["State"].get("Running"):
        await sandbox.open()
    places = sandbox.places or places_on_disk(inspected, checkpoint.mounts)
    return await _cold(sandbox, places, checkpoint, no_progress)


async def _cold(
    sandbox: SandboxCoordinator, places: Places, checkpoint: Checkpoint, progress: Progress
) -> Restored:
    deps = sandbox.deps
    container_id = sandbox.record.container_id

    def start() -> Container:
        deps.engine.start(container_id)
        return open_container(deps.engine, deps.freezer, container_id)

    def whole() -> tuple[Restored, Baseline, Container]:
        progress("stop", 0, 0)
        deps.engine.stop(container_id)
        wait_until_unmounted(places.rootfs.host_path)
        written = fill_on_disk(deps.repository, checkpoint, places.covered, progress)
        stopped = open_container(deps.engine, deps.freezer, container_id, places)
        try:
            present = deps.checkpointer.current_state(stopped, None)
        finally:
            stopped.close()
        return start_and_fill(
            deps.repository,
            deps.checkpointer,
            checkpoint,
            start,
            present,
            written,
            budget_s=START_FREEZE_S,
            progress=progress,
        )

    restored, baseline, started = await run(deps.pools.long, whole)
    sandbox.use(started)
    sandbox.baseline = baseline
    return restored


async def finish(sandbox: SandboxCoordinator, checkpoint: Checkpoint, intent: Intent, head_turn: int) -> None:
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
        changes=(Delete("intent", intent.id),),
    )


def _notes(wish: Wish) -> tuple[str, ...]:
    notes = []
    checkpoint, turn = wish.checkpoint, wish.turn
    if checkpoint.fidelity is Fidelity.FILES_ONLY:
        notes.append("fidelity: files only; the processes that ran then did not come back")
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


def make_container(
    sandbox: SandboxCoordinator, checkpoint: Checkpoint, name: str, intent_id: str
) -> tuple[str, dict[str, str]]:
    """Create, not start, a container like the one that a checkpoint was taken of.

    A label names the intent, so that recovery knows a half-made one for its own.

    Named volumes are made anew, so that nothing another container uses is
    touched. Returns its id and the volumes' old and new names.
    """
    engine = sandbox.deps.engine
    named = [
        mount["Name"]
        for mount in checkpoint.container.get("Mounts", ())
        if mount["Type"] == "volume" and not _is_anonymous(mount["Name"])
    ]
    volumes = {old: f"{name}-{old}" for old in named}
    for new in volumes.values():
        engine.create_volume(new, {INTENT_LABEL: intent_id})
    try:
        config = new_container_config(checkpoint, volumes)
        config["Labels"] = {**(config.get("Labels") or {}), INTENT_LABEL: intent_id}
        return engine.create(name, config), volumes
    except BaseException:
        for new in volumes.values():
            engine.remove_volume(new)
        raise


def _is_anonymous(name: str) -> bool:
    return len(name) == 64 and all(digit in "0123456789abcdef" for digit in name)


def restore_new(
    sandbox: SandboxCoordinator, checkpoint: Checkpoint, intent: Intent, progress: Progress
) -> tuple[Restored, Baseline, Container]:
    """Make a new container and fill it with a checkpoint. Blocking.

    If this raises, there is no new container, and no new volume.

    Raises:
        Conflict: the name is taken.
        Unsupported: the image that is there has other layers.
    """
    deps = sandbox.deps
    image = deps.engine.image(checkpoint.image_id)
    if tuple(image["RootFS"]["Layers"]) != checkpoint.layers:
        raise Unsupported(
            "the image has other layers than the checkpoint", object=f"image {checkpoint.image}"
        )
    progress("create", 0, 0)
    container_id, volumes = make_container(sandbox, checkpoint, intent.details["name"], intent.id)
    try:
        inspected = deps.engine.inspect(container_id)
        places = places_on_disk(inspected, checkpoint.mounts)
        written = fill_on_disk(deps.repository, checkpoint, places.covered, progress)
        unstarted = open_container(deps.engine, deps.freezer, container_id, places)
        try:
            present = deps.checkpointer.current_state(unstarted, None)
        finally:
            unstarted.close()

        def start() -> Container:
            deps.engine.start(container_id)
            return open_container(deps.engine, deps.freezer, container_id)

        return start_and_fill(
            deps.repository,
            deps.checkpointer,
            checkpoint,
            start,
            present,
            written,
            budget_s=START_FREEZE_S,
            progress=progress,
        )
    except BaseException:
        deps.engine.remove(container_id)
        for new in volumes.values():
            deps.engine.remove_volume(new)
        raise


def check_new(checkpoint: Checkpoint, *, original_exists: bool) -> None:
    """Refuse a new container that would write where the original still does.

    Raises:
        Conflict: an opted-in folder of the host is covered, and the original is there.
    """
    shared = [mount.target for mount in checkpoint.mounts if mount.kind is MountKind.BIND and mount.covered]
    if shared and original_exists:
        raise Conflict(
            f"folders of the host are part of the checkpoint ({', '.join(shared)}), and the original"
            " container still uses them",
            object=f"checkpoint {checkpoint.id[:12]}",
            hint="remove the original container first",
        )
