"""Messages of the wire to the client's values.

A number or name that this client does not know comes from a newer daemon; it
is an error that says so, except where a value has room for "not known".
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import TypeVar

from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.client import values
from turnkeep.errors import Unsupported
from turnkeep.model import (
    ContainerState,
    Decision,
    Fidelity,
    Finding,
    Mount,
    MountKind,
    TurnClass,
    TurnMetadata,
    TurnState,
    TurnTimings,
    Verdict,
)

_Enum = TypeVar("_Enum", bound=enum.StrEnum)

TURN_STATES: Mapping[TurnState, pb.TurnState.ValueType] = {
    TurnState.OPEN: pb.TURN_STATE_OPEN,
    TurnState.ENDED: pb.TURN_STATE_ENDED,
    TurnState.ABANDONED: pb.TURN_STATE_ABANDONED,
    TurnState.CLASSIFIED: pb.TURN_STATE_CLASSIFIED,
    TurnState.CAPTURED: pb.TURN_STATE_CAPTURED,
    TurnState.DURABLE: pb.TURN_STATE_DURABLE,
    TurnState.SKIPPED: pb.TURN_STATE_SKIPPED,
    TurnState.FAILED: pb.TURN_STATE_FAILED,
}
RESTORE_MODES: Mapping[str, pb.RestoreMode.ValueType] = {
    "live": pb.RESTORE_MODE_LIVE,
    "cold": pb.RESTORE_MODE_COLD,
    "new": pb.RESTORE_MODE_NEW,
}
VERIFY_MODES: Mapping[str, pb.VerifyMode.ValueType] = {
    "changed": pb.VERIFY_MODE_CHANGED,
    "full": pb.VERIFY_MODE_FULL,
}
_STATES = {number: state for state, number in TURN_STATES.items()}
_MODES = {number: name for name, number in RESTORE_MODES.items()}
_VERIFIES = {number: name for name, number in VERIFY_MODES.items()}
_CLASSES = {
    pb.TURN_CLASS_STATELESS: TurnClass.STATELESS,
    pb.TURN_CLASS_FILESYSTEM: TurnClass.FILESYSTEM,
    pb.TURN_CLASS_PROCESS: TurnClass.PROCESS,
    pb.TURN_CLASS_FULL: TurnClass.FULL,
}
_VERDICTS = {
    pb.VERDICT_OK: Verdict.OK,
    pb.VERDICT_DEGRADED: Verdict.DEGRADED,
    pb.VERDICT_MISSING: Verdict.MISSING,
}
_CONTAINER_STATES = {
    pb.CONTAINER_STATE_RUNNING: ContainerState.RUNNING,
    pb.CONTAINER_STATE_PAUSED: ContainerState.PAUSED,
    pb.CONTAINER_STATE_STOPPED: ContainerState.STOPPED,
    pb.CONTAINER_STATE_GONE: ContainerState.GONE,
}
_FIDELITIES = {
    pb.FIDELITY_COMPLETE: Fidelity.COMPLETE,
    pb.FIDELITY_FILES_ONLY: Fidelity.FILES_ONLY,
    pb.FIDELITY_PARTIAL: Fidelity.PARTIAL,
}


def sandbox(message: pb.Sandbox) -> values.SandboxInfo:
    """Read a sandbox."""
    return values.SandboxInfo(
        id=message.id,
        name=message.name,
        container_id=message.container_id,
        image_id=message.image_id,
        container_state=_CONTAINER_STATES.get(message.container_state),
        attached=message.attached,
        attached_at_ns=message.attached_at_ns,
        last_turn=message.last_turn or None,
        open_turn=message.open_turn or None,
        head_checkpoint_id=message.head_checkpoint_id or None,
        head_turn=message.head_turn or None,
        mounts=tuple(_mount(item) for item in message.mounts),
        turns=values.TurnCounts(
            total=message.turns.total,
            durable=message.turns.durable,
            skipped=message.turns.skipped,
            failed=message.turns.failed,
        ),
        stored_bytes=message.stored_bytes,
        note=message.note,
    )


def turn(message: pb.Turn) -> values.TurnInfo:
    """Read a turn."""
    if message.state not in _STATES:
        raise _newer_daemon(f"turn state {message.state}")
    return values.TurnInfo(
        sandbox_id=message.sandbox_id,
        number=message.number,
        harness_turn_id=message.harness_turn_id,
        session=message.session,
        state=_STATES[message.state],
        state_reason=message.state_reason,
        parent=message.parent or None,
        label=message.label,
        labels=dict(message.labels),
        metadata=_metadata(message.metadata),
        decision=_decision(message.decision),
        checkpoint_id=message.checkpoint_id or None,
        began_at_ns=message.began_at_ns,
        ended_at_ns=message.ended_at_ns or None,
        timings=_timings(message.timings),
        changed_files=message.changed_files,
        changed_bytes=message.changed_bytes,
        stored_bytes=message.stored_bytes,
        harness_state_bytes=message.harness_state_bytes if message.harness_state_bytes >= 0 else None,
        abandoned=message.abandoned,
    )


def begun(message: pb.BeginTurnResponse) -> values.TurnBegun:
    """Read the answer to BeginTurn."""
    return values.TurnBegun(
        turn=turn(message.turn),
        gate_wait_ns=message.gate_wait_ns,
        abandoned_turn=message.abandoned_turn or None,
    )


def stored_state(message: pb.PutTurnStateResponse) -> values.StoredState:
    """Read the answer to PutTurnState."""
    return values.StoredState(
        turn=message.turn, size=message.size, blake3=message.blake3, stored_bytes=message.stored_bytes
    )


def process_image(message: pb.ProcessImage) -> values.ProcessImage:
    return values.ProcessImage(
        engine=message.engine,
        trees=tuple(_process_tree(tree) for tree in message.trees),
        turn=message.turn,
        image_bytes=message.image_bytes,
        stored_bytes=message.stored_bytes,
        reason=message.reason,
    )


def _process_tree(message: pb.ProcessTree) -> values.ProcessTree:
    return values.ProcessTree(
        kind=message.kind,
        root=message.root,
        processes=tuple(
            values.ProcessLine(
                pid=line.pid,
                parent=line.parent,
                name=line.name,
                threads=line.threads,
                zombie=line.zombie,
            )
            for line in message.processes
        ),
        notes=tuple(message.notes),
        image_bytes=message.image_bytes,
        stopped_ns=message.stopped_ns,
    )


def fork_step(message: pb.ForkSandboxResponse) -> values.Progress | values.ForkResult:
    if message.WhichOneof("step") == "progress":
        return progress(message.progress)
    result = message.result
    return values.ForkResult(
        sandboxes=tuple(sandbox(each) for each in result.sandboxes),
        checkpoint_id=result.checkpoint_id,
        notes=tuple(result.notes),
        total_ns=result.total_ns,
    )


def checkpoint(message: pb.Checkpoint) -> values.Checkpoint:
    """Read a checkpoint."""
    return values.Checkpoint(
        id=message.id,
        sandbox_id=message.sandbox_id,
        parent_id=message.parent_id or None,
        turn=message.turn or None,
        name=message.name,
        tags=tuple(message.tags),
        created_at_ns=message.created_at_ns,
        digest=message.digest,
        fidelity=_FIDELITIES.get(message.fidelity),
        decision=_decision(message.decision),
        mounts=tuple(_mount(item) for item in message.mounts),
        not_captured=tuple(message.not_captured),
        changed_files=message.changed_files,
        changed_bytes=message.changed_bytes,
        stored_bytes=message.stored_bytes,
        origin=message.origin,
        is_head=message.is_head,
        image=message.image,
        processes=process_image(message.processes) if message.HasField("processes") else None,
    )


def deleted(message: pb.DeleteCheckpointResponse) -> values.DeletedCheckpoint:
    """Read the answer to DeleteCheckpoint."""
    return values.DeletedCheckpoint(checkpoint_id=message.checkpoint_id, reparented=message.reparented)


def restore_step(message: pb.RestoreSandboxResponse) -> values.Progress | values.RestoreResult:
    """Read one message of a restore."""
    if message.WhichOneof("step") == "progress":
        return progress(message.progress)
    result = message.result
    return values.RestoreResult(
        sandbox=sandbox(result.sandbox),
        checkpoint_id=result.checkpoint_id,
        turn=result.turn or None,
        mode=_MODES.get(result.mode, ""),
        mode_reason=result.mode_reason,
        safety_checkpoint_id=result.safety_checkpoint_id or None,
        expected_digest=result.expected_digest,
        actual_digest=result.actual_digest,
        verify=_VERIFIES.get(result.verify, ""),
        changed_paths=result.changed_paths,
        written_bytes=result.written_bytes,
        freeze_ns=result.freeze_ns,
        total_ns=result.total_ns,
        notes=tuple(result.notes),
        stopped_processes=tuple(result.stopped_processes),
        harness_state=result.harness_state if result.has_harness_state else None,
    )


def prune_step(message: pb.PruneStoreResponse) -> values.Progress | values.PruneResult:
    """Read one message of a prune."""
    if message.WhichOneof("step") == "progress":
        return progress(message.progress)
    result = message.result
    return values.PruneResult(
        deleted_checkpoints=tuple(result.deleted_checkpoints),
        kept_checkpoints=result.kept_checkpoints,
        freed_bytes=result.freed_bytes,
        stored_bytes=result.stored_bytes,
        dry_run=result.dry_run,
        notes=tuple(result.notes),
    )


def check_step(message: pb.CheckStoreResponse) -> values.Progress | values.CheckResult:
    """Read one message of a check."""
    if message.WhichOneof("step") == "progress":
        return progress(message.progress)
    result = message.result
    return values.CheckResult(
        ok=result.ok,
        problems=tuple(result.problems),
        checkpoints=result.checkpoints,
        blobs=result.blobs,
        bytes=result.bytes,
        index_rebuilt=result.index_rebuilt,
        followed=tuple(result.followed),
        journal_head=result.journal_head,
        repaired=tuple(result.repaired),
    )


def progress(message: pb.Progress) -> values.Progress:
    """Read how far the work has come."""
    return values.Progress(phase=message.phase, done=message.done, total=message.total or None)


def change(message: pb.DiffCheckpointsResponse) -> values.Change:
    """Read one path of a difference."""
    return values.Change(
        path=message.path,
        change=message.change,
        before_type=message.before_type or None,
        after_type=message.after_type or None,
        before_size=message.before_size,
        after_size=message.after_size,
        before_mode=message.before_mode,
        after_mode=message.after_mode,
    )


def event(message: pb.WatchEventsResponse) -> values.Event:
    """Read an event. Details that are not a JSON object are kept under "raw"."""
    try:
        details = json.loads(message.details_json) if message.details_json else {}
    except ValueError:
        details = message.details_json
    return values.Event(
        sequence=message.sequence,
        time_ns=message.time_ns,
        kind=message.kind,
        sandbox_id=message.sandbox_id or None,
        sandbox_name=message.sandbox_name,
        turn=message.turn or None,
        message=message.message,
        details=details if isinstance(details, dict) else {"raw": details},
    )


def host_status(message: pb.GetHostStatusResponse) -> values.HostStatus:
    """Read the daemon's description of itself."""
    return values.HostStatus(
        version=message.version,
        pid=message.pid,
        started_at_ns=message.started_at_ns,
        engine_version=message.engine_version or None,
        storage_driver=message.storage_driver,
        cgroup_version=message.cgroup_version,
        kernel=message.kernel,
        state_dir=message.state_dir,
        stored_bytes=message.stored_bytes,
        free_bytes=message.free_bytes,
        checkpoints=message.checkpoints,
        sandboxes=message.sandboxes,
        recovery=tuple(message.recovery),
        degraded=tuple(message.degraded),
        tracker=values.TrackerFigures(
            enabled=message.tracker.enabled,
            followed=message.tracker.followed,
            scanned=message.tracker.scanned,
            events=message.tracker.events,
            overflows=message.tracker.overflows,
            audits=message.tracker.audits,
            missed=message.tracker.missed,
        ),
        usage=values.Usage(
            resident_bytes=message.usage.resident_bytes,
            descriptors=message.usage.descriptors,
            threads=message.usage.threads,
            processor_ns=message.usage.processor_ns,
        ),
    )


def finding(message: pb.Finding) -> Finding:
    """Read what was found about one thing."""
    if message.verdict not in _VERDICTS:
        raise _newer_daemon(f"verdict {message.verdict}")
    return Finding(
        what=message.what, verdict=_VERDICTS[message.verdict], detail=message.detail, fix=message.fix
    )


def _mount(message: pb.Mount) -> Mount:
    return Mount(
        target=message.target,
        kind=_by_name(MountKind, message.kind, "mount kind"),
        covered=message.covered,
        reason=message.reason,
    )


def _decision(message: pb.Decision) -> Decision | None:
    if message.turn_class == pb.TURN_CLASS_UNSPECIFIED:
        return None
    if message.turn_class not in _CLASSES:
        raise _newer_daemon(f"turn class {message.turn_class}")
    return Decision(
        turn_class=_CLASSES[message.turn_class],
        reason=message.reason,
        changed_paths=tuple(message.changed_paths),
        changed_path_count=message.changed_path_count,
        cache_path_count=message.cache_path_count,
        processes=tuple(message.processes),
        unsure=tuple(message.unsure),
    )


def _metadata(message: pb.TurnMetadata) -> TurnMetadata:
    return TurnMetadata(
        model=message.model,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        tool_name=message.tool_name,
        extra=dict(message.extra),
    )


def _timings(message: pb.TurnTimings) -> TurnTimings:
    return TurnTimings(
        gate_ns=message.gate_ns,
        inspect_ns=message.inspect_ns,
        freeze_ns=message.freeze_ns,
        captured_ns=message.captured_ns,
        durable_ns=message.durable_ns,
    )


def _by_name(cls: type[_Enum], name: str, what: str) -> _Enum:
    try:
        return cls(name)
    except ValueError:
        raise _newer_daemon(f"{what} {name!r}") from None


def _newer_daemon(what: str) -> Unsupported:
    return Unsupported(
        f"the daemon speaks of a {what}, which this client does not know",
        hint="update this client to the daemon's version",
    )
