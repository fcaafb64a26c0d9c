"""What the daemon does before it serves: put right what a crash left.

Everything here can be interrupted and done again; a second recovery finds
nothing to do.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog
from turnkeep_store.errors import SnapshotNotFound, StoreError
from turnkeep_store.points import reached
from turnkeep_store.snapshot import Snapshot

from turnkeep.checkpoints import KIND, STATE_KIND, checkpoint_of
from turnkeep.coordinator import creation
from turnkeep.coordinator.captures import describe, head_baseline
from turnkeep.coordinator.cold_restore import cold_again
from turnkeep.coordinator.deps import Deps, run
from turnkeep.coordinator.live_restore import live_again
from turnkeep.coordinator.registry import Registry
from turnkeep.coordinator.restore import finish
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import ContainerNotFound, TurnkeepError
from turnkeep.harness_state import state_of
from turnkeep.journal import Change, Delete, Intent, put_checkpoint, put_sandbox, put_turn
from turnkeep.model import (
    NO_TURN,
    Checkpoint,
    CheckpointId,
    ContainerState,
    SandboxId,
    SandboxRecord,
    Turn,
    TurnNumber,
    TurnState,
)
from turnkeep.points import Point
from turnkeep.runtime import orders
from turnkeep.runtime.cgroup import find_cgroup

log = structlog.get_logger()


async def recover(deps: Deps) -> tuple[Registry, list[str]]:
    """Return the sandboxes as they were, and what was done, a sentence each."""
    done: list[str] = []
    registry = Registry(deps)
    agree_with_store(deps, done)
    reached(Point.RECOVERY_AGREED)
    for record in deps.journal.sandboxes():
        head = deps.journal.checkpoint(record.head_checkpoint_id) if record.head_checkpoint_id else None
        registry.sandboxes[record.id] = SandboxCoordinator(record, deps, head_baseline(head))
    held = {intent.sandbox_id for intent in deps.journal.intents() if intent.kind == "restore"}
    for sandbox in registry.sandboxes.values():
        if sandbox.record.attached and sandbox.record.id not in held:
            await _thaw(sandbox, done)
    reached(Point.RECOVERY_THAWED)
    for intent in deps.journal.intents():
        await _settle_intent(registry, intent, done)
    reached(Point.RECOVERY_INTENTS)
    for sandbox in registry.sandboxes.values():
        await _settle_turns(sandbox, done)
    reached(Point.RECOVERY_TURNS)
    return registry, done


def agree_with_store(deps: Deps, done: list[str]) -> None:
    """Make the journal agree with the store, which is the truth about checkpoints.

    A checkpoint that was committed and not journaled is adopted; one that was
    deleted there is forgotten here; harness states are given back to their turns.
    """
    journal = deps.journal
    stored: dict[str, Checkpoint] = {}
    states: dict[str, Snapshot] = {}
    snapshots = deps.repository.snapshots()
    ids = {str(snapshot.id) for snapshot in snapshots}
    for snapshot in snapshots:
        if snapshot.metadata.get("kind") == STATE_KIND:
            states[snapshot.id] = snapshot
        elif snapshot.metadata.get("kind") == KIND:
            try:
                checkpoint = checkpoint_of(snapshot, ids)
            except ValueError as error:
                log.error("checkpoint record not understood", snapshot=snapshot.id, cause=str(error))
                continue
            if checkpoint is not None:
                stored[checkpoint.id] = checkpoint
    known = {each.id for each in journal.checkpoints()}
    for checkpoint in stored.values():
        if checkpoint.id not in known:
            _adopt_checkpoint(deps, checkpoint, done)
    for missing in known - stored.keys():
        _forget_checkpoint(deps, missing, done)
    _settle_states(deps, states, done)


def _adopt_checkpoint(deps: Deps, checkpoint: Checkpoint, done: list[str]) -> None:
    journal = deps.journal
    records = {record.id: record for record in journal.sandboxes()}
    record = records.get(checkpoint.sandbox_id) or _record_of(checkpoint)
    turn = journal.turn(checkpoint.sandbox_id, checkpoint.turn) if checkpoint.turn else None
    before = record.head_turn
    changes: list[Change] = [put_checkpoint(checkpoint)]
    newest = max((each.created_at_ns for each in journal.checkpoints(checkpoint.sandbox_id)), default=0)
    if checkpoint.created_at_ns > newest:
        record = replace(
            record,
            head_checkpoint_id=checkpoint.id,
            last_turn=TurnNumber(max(record.last_turn, checkpoint.turn)),
            head_turn=checkpoint.turn or record.head_turn,
            mounts=checkpoint.mounts,
        )
    changes.append(put_sandbox(record))
    if checkpoint.turn:
        turn = turn or _turn_of(checkpoint, before)
        changes.append(
            put_turn(
                replace(
                    turn,
                    state=TurnState.DURABLE,
                    checkpoint_id=checkpoint.id,
                    decision=checkpoint.decision,
                    changed_files=checkpoint.changed_files,
                    changed_bytes=checkpoint.changed_bytes,
                    stored_bytes=checkpoint.stored_bytes,
                )
            )
        )
    journal.append(
        "durable",
        "found in the store at start",
        sandbox=record,
        turn=checkpoint.turn,
        details={"checkpoint": checkpoint.id},
        changes=changes,
    )
    done.append(f"took over checkpoint {checkpoint.id[:12]} of {record.name}, found in the store")


def _record_of(checkpoint: Checkpoint) -> SandboxRecord:
    """Return a sandbox's record as far as one of its checkpoints tells."""
    return SandboxRecord(
        id=checkpoint.sandbox_id,
        name=str(checkpoint.container.get("Name", checkpoint.sandbox_id)),
        container_id=str(checkpoint.container.get("Id", "")),
        image=checkpoint.image,
        image_id=checkpoint.image_id,
        container_state=ContainerState.RUNNING,
        attached=True,
        attached_at_ns=checkpoint.created_at_ns,
        note="found in the store; its turns without a checkpoint are not known",
    )


def _turn_of(checkpoint: Checkpoint, parent: TurnNumber) -> Turn:
    """Return a turn that the journal lost, as far as its checkpoint tells, after the one known last."""
    return Turn(
        sandbox_id=checkpoint.sandbox_id,
        number=checkpoint.turn,
        harness_turn_id="",
        session="",
        state=TurnState.DURABLE,
        parent=parent if parent < checkpoint.turn else NO_TURN,
        began_at_ns=checkpoint.created_at_ns,
        ended_at_ns=checkpoint.created_at_ns,
    )


def _forget_checkpoint(deps: Deps, checkpoint_id: CheckpointId, done: list[str]) -> None:
    """A deletion that was cut off after the record, or a record that is lost: say which."""
    journal = deps.journal
    checkpoint = journal.checkpoint(checkpoint_id)
    assert checkpoint is not None
    record = next((each for each in journal.sandboxes() if each.id == checkpoint.sandbox_id), None)
    changes: list[Change] = [Delete("checkpoint", checkpoint_id)]
    changes += [
        put_checkpoint(replace(each, parent_id=checkpoint.parent_id))
        for each in journal.checkpoints(checkpoint.sandbox_id)
        if each.parent_id == checkpoint_id
    ]
    if record is not None and record.head_checkpoint_id == checkpoint_id:
        changes.append(put_sandbox(replace(record, head_checkpoint_id=checkpoint.parent_id)))
        log.error("the head's record is not in the store", sandbox=record.name, checkpoint=checkpoint_id)
    journal.append(
        "checkpoint_deleted",
        "its record was not in the store at start",
        sandbox=record,
        details={"checkpoint": checkpoint_id},
        changes=changes,
    )
    done.append(f"forgot checkpoint {checkpoint_id[:12]}: its record is not in the store")


def _settle_states(deps: Deps, states: Mapping[str, Snapshot], done: list[str]) -> None:
    """Give harness states that no turn names to the turn that they name, or remove them."""
    journal = deps.journal
    records = {record.id: record for record in journal.sandboxes()}
    named = {
        turn.harness_state.snapshot_id
        for record in records.values()
        for turn in journal.turns(record.id)
        if turn.harness_state is not None
    }
    for snapshot_id in sorted(states.keys() - named, key=lambda each: states[each].created_ns):
        snapshot = states[snapshot_id]
        record = records.get(SandboxId(str(snapshot.metadata.get("sandbox"))))
        number = snapshot.metadata.get("turn")
        if record is None or not isinstance(number, int) or number < 1:
            adopted = False
        else:
            adopted = _adopt_state(deps, record, TurnNumber(number), snapshot)
        if adopted and record is not None:
            records = {each.id: each for each in journal.sandboxes()}
            done.append(f"took over the harness state of turn {number} of {record.name}")
            continue
        with contextlib.suppress(SnapshotNotFound):
            deps.repository.delete(snapshot.id)
        done.append(f"removed a harness state that no turn names ({snapshot_id[:12]})")


def _adopt_state(deps: Deps, record: SandboxRecord, number: TurnNumber, snapshot: Snapshot) -> bool:
    """Record a state with its turn. A turn that the journal lost had nothing else to
    keep: it was skipped, and its checkpoint is the last one before."""
    journal = deps.journal
    turn = journal.turn(record.id, number)
    if turn is not None and turn.harness_state is not None:
        return False
    if turn is None:
        earlier = [
            each for each in journal.checkpoints(record.id) if each.created_at_ns < snapshot.created_ns
        ]
        if not earlier:
            return False
        turn = replace(
            _turn_of(earlier[-1], NO_TURN),
            number=number,
            state=TurnState.SKIPPED,
            parent=earlier[-1].turn,
            checkpoint_id=earlier[-1].id,
            began_at_ns=snapshot.created_ns,
            ended_at_ns=snapshot.created_ns,
        )
    turn = replace(turn, harness_state=state_of(deps.repository, snapshot))
    record = replace(
        record,
        last_turn=TurnNumber(max(record.last_turn, number)),
        head_turn=TurnNumber(number) if number > record.last_turn else record.head_turn,
    )
    journal.append(
        "harness_state",
        "found in the store at start",
        sandbox=record,
        turn=number,
        changes=(put_turn(turn), put_sandbox(record)),
    )
    return True


async def _thaw(sandbox: SandboxCoordinator, done: list[str]) -> None:
    """Thaw a container that is frozen and not paused: a freeze of ours was cut off."""
    try:
        inspected = await run(
            sandbox.deps.pools.engine, sandbox.deps.engine.inspect, sandbox.record.container_id
        )
        state = inspected["State"]
        if not state.get("Running") or state.get("Paused"):
            return
        cgroup = find_cgroup(state["Pid"], inspected["Id"])
        if cgroup.is_frozen() or cgroup.held_pids():
            cgroup.thaw()
            cgroup.let_go()
            done.append(f"thawed {sandbox.record.name}, which had been left frozen")
    except TurnkeepError as error:
        log.info("not looked at for a left freeze", sandbox=sandbox.record.name, reason=error.message)


async def _settle_intent(registry: Registry, intent: Intent, done: list[str]) -> None:
    sandbox = registry.sandboxes.get(intent.sandbox_id)
    try:
        await run(registry.deps.pools.engine, _withdraw_orders, registry.deps, intent, sandbox)
        if intent.kind == "new":
            await _remove_half_made(registry.deps, intent, done)
        elif sandbox is not None:
            await _finish_restore(sandbox, intent)
            done.append(f"finished the restore of {sandbox.record.name} that was cut off")
            return
    except (TurnkeepError, StoreError, OSError) as error:
        name = sandbox.record.name if sandbox is not None else intent.sandbox_id
        done.append(f"could not finish the restore of {name}: {describe(error)}")
        if sandbox is not None:
            await _thaw(sandbox, done)
            note = f"a restore was cut off and could not be finished: {describe(error)}"
            await sandbox.update("failed", note, record={"note": note})
    registry.deps.journal.append("intent_dropped", intent.kind, changes=(Delete("intent", intent.id),))


def _withdraw_orders(deps: Deps, intent: Intent, sandbox: SandboxCoordinator | None) -> None:
    """Take back the orders of what was cut off: nothing stands behind them any more."""
    containers = deps.engine.containers_with_label(f"{creation.INTENT_LABEL}={intent.id}")
    if sandbox is not None:
        containers.append(sandbox.record.container_id)
    for container_id in containers:
        orders.withdraw(Path(deps.processes.settings.orders), container_id)


async def _finish_restore(sandbox: SandboxCoordinator, intent: Intent) -> None:
    """Do a restore again, from whatever state it was left in."""
    checkpoint = sandbox.deps.journal.checkpoint(CheckpointId(str(intent.details["checkpoint"])))
    if checkpoint is None:
        raise ContainerNotFound("the checkpoint is gone", object=str(intent.details["checkpoint"])[:12])
    engine, pool = sandbox.deps.engine, sandbox.deps.pools.engine
    replacement = None
    if replaces := str(intent.details.get("replaces", "")):
        present = sandbox.record.container_id
        replacement = await run(
            pool, creation.replacement_again, engine, replaces, present, checkpoint, intent.id
        )
    inspected = await run(pool, engine.inspect, sandbox.record.container_id)
    sandbox.baseline = head_baseline(None)
    async with sandbox.holding():
        if intent.details.get("live") and inspected["State"].get("Running"):
            cgroup = find_cgroup(inspected["State"]["Pid"], inspected["Id"])
            cgroup.thaw()
            cgroup.let_go()
            container = await sandbox.open()
            await live_again(sandbox, container, checkpoint)
        else:
            await cold_again(sandbox, checkpoint, inspected, replacement)
        reached(Point.RECOVERY_RESTORED)
        await finish(sandbox, checkpoint, intent, int(intent.details["head_turn"]))


async def _remove_half_made(deps: Deps, intent: Intent, done: list[str]) -> None:
    """Remove a new container that was being filled, and its volumes."""
    name = str(intent.details["name"])

    def remove() -> None:
        try:
            inspected = deps.engine.inspect(name)
        except ContainerNotFound:
            inspected = None
        if inspected is not None and _is_of(inspected["Config"].get("Labels"), intent):
            if inspected["State"].get("Pid"):
                # What is frozen cannot be removed.
                cgroup = find_cgroup(inspected["State"]["Pid"], inspected["Id"])
                cgroup.thaw()
                cgroup.let_go()
            deps.engine.remove(inspected["Id"])
            done.append(f"removed container {name}, which a restore had left half made")
        for volume in deps.engine.volumes_with_label(f"{creation.INTENT_LABEL}={intent.id}"):
            deps.engine.remove_volume(volume)

    await run(deps.pools.engine, remove)


def _is_of(labels: dict[str, str] | None, intent: Intent) -> bool:
    return (labels or {}).get(creation.INTENT_LABEL) == intent.id


async def _settle_turns(sandbox: SandboxCoordinator, done: list[str]) -> None:
    """Go on with turns that ended and were not durable.

    Only the newest can be captured now: if a later one began, its changes are in
    the later one's checkpoint.
    """
    unfinished = sandbox.adopt_turns(sandbox.deps.journal.turns(sandbox.record.id))
    for turn in unfinished:
        name = f"turn {turn.number} of {sandbox.record.name}"
        if turn.number < sandbox.record.last_turn or not sandbox.record.attached:
            reason = "the daemon stopped before its capture was durable; a later turn holds its changes"
            await sandbox.update("failed", reason, turn=turn, state=TurnState.FAILED, state_reason=reason)
            done.append(f"{name} failed: {reason}")
        else:
            sandbox.expect()
            sandbox.deps.spawn(sandbox.process(turn))
            done.append(f"captures {name} again")


def move_damaged_aside(path: Path) -> Path:
    """Move a journal that cannot be read out of the way, with its side files."""
    target = path.with_name(f"{path.name}.damaged")
    for suffix in ("", "-wal", "-shm"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            shutil.move(source, target.with_name(target.name + suffix))
    return target
