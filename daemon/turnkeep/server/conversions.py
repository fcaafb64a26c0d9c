"""From the model's values to messages, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping

from turnkeep_store.archiver import same_attributes
from turnkeep_store.diff import Delta
from turnkeep_store.layers import LayerView
from turnkeep_store.tree import Entry, NodeType

from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.model import (
    Checkpoint,
    ContainerState,
    Decision,
    Event,
    Fidelity,
    Mount,
    ProcessImage,
    ProcessTree,
    RetentionPolicy,
    SandboxRecord,
    Turn,
    TurnMetadata,
    TurnState,
)
from turnkeep.paths import ROOTFS, inside

_CONTAINER_STATES = {
    ContainerState.RUNNING: pb.CONTAINER_STATE_RUNNING,
    ContainerState.PAUSED: pb.CONTAINER_STATE_PAUSED,
    ContainerState.STOPPED: pb.CONTAINER_STATE_STOPPED,
    ContainerState.GONE: pb.CONTAINER_STATE_GONE,
}
_FIDELITIES = {
    Fidelity.COMPLETE: pb.FIDELITY_COMPLETE,
    Fidelity.FILES_ONLY: pb.FIDELITY_FILES_ONLY,
    Fidelity.PARTIAL: pb.FIDELITY_PARTIAL,
}
RESTORE_MODES = {
    "live": pb.RESTORE_MODE_LIVE,
    "cold": pb.RESTORE_MODE_COLD,
    "new": pb.RESTORE_MODE_NEW,
}


def mount_message(mount: Mount) -> pb.Mount:
    return pb.Mount(target=mount.target, kind=mount.kind.value, covered=mount.covered, reason=mount.reason)


def sandbox_message(
    record: SandboxRecord, counts: Mapping[str, int], stored_bytes: int, open_turn: int
) -> pb.Sandbox:
    return pb.Sandbox(
        id=record.id,
        name=record.name,
        container_id=record.container_id,
        image_id=record.image_id,
        container_state=_CONTAINER_STATES[record.container_state],
        attached=record.attached,
        attached_at_ns=record.attached_at_ns,
        last_turn=record.last_turn,
        head_checkpoint_id=record.head_checkpoint_id or "",
        mounts=[mount_message(mount) for mount in record.mounts],
        turns=pb.TurnCounts(**counts),
        stored_bytes=stored_bytes,
        note=record.note,
        open_turn=open_turn,
        head_turn=record.head_turn,
    )


def decision_message(decision: Decision) -> pb.Decision:
    return pb.Decision(
        turn_class=pb.TurnClass.Value(f"TURN_CLASS_{decision.turn_class.value}"),
        reason=text(decision.reason),
        changed_paths=[text(path) for path in decision.changed_paths],
        changed_path_count=decision.changed_path_count,
        cache_path_count=decision.cache_path_count,
        processes=[text(each) for each in decision.processes],
        unsure=list(decision.unsure),
    )


def turn_message(turn: Turn) -> pb.Turn:
    message = pb.Turn(
        sandbox_id=turn.sandbox_id,
        number=turn.number,
        harness_turn_id=turn.harness_turn_id,
        session=turn.session,
        state=pb.TurnState.Value(f"TURN_STATE_{turn.state.value}"),
        state_reason=text(turn.state_reason),
        parent=turn.parent,
        label=turn.label,
        labels=dict(turn.labels),
        metadata=pb.TurnMetadata(
            model=turn.metadata.model,
            prompt_tokens=turn.metadata.prompt_tokens,
            completion_tokens=turn.metadata.completion_tokens,
            tool_name=turn.metadata.tool_name,
            extra=dict(turn.metadata.extra),
        ),
        checkpoint_id=turn.checkpoint_id or "",
        began_at_ns=turn.began_at_ns,
        ended_at_ns=turn.ended_at_ns,
        timings=pb.TurnTimings(
            gate_ns=turn.timings.gate_ns,
            inspect_ns=turn.timings.inspect_ns,
            freeze_ns=turn.timings.freeze_ns,
            captured_ns=turn.timings.captured_ns,
            durable_ns=turn.timings.durable_ns,
        ),
        changed_files=turn.changed_files,
        changed_bytes=turn.changed_bytes,
        stored_bytes=turn.stored_bytes,
        harness_state_bytes=turn.harness_state.size if turn.harness_state is not None else -1,
        abandoned=turn.abandoned,
    )
    if turn.decision is not None:
        message.decision.CopyFrom(decision_message(turn.decision))
    return message


def checkpoint_message(checkpoint: Checkpoint, *, is_head: bool) -> pb.Checkpoint:
    return pb.Checkpoint(
        id=checkpoint.id,
        sandbox_id=checkpoint.sandbox_id,
        parent_id=checkpoint.parent_id or "",
        turn=checkpoint.turn,
        name=checkpoint.name,
        tags=list(checkpoint.tags),
        created_at_ns=checkpoint.created_at_ns,
        digest=checkpoint.digest,
        fidelity=_FIDELITIES[checkpoint.fidelity],
        decision=decision_message(checkpoint.decision),
        mounts=[mount_message(mount) for mount in checkpoint.mounts],
        not_captured=[text(each) for each in checkpoint.not_captured],
        changed_files=checkpoint.changed_files,
        changed_bytes=checkpoint.changed_bytes,
        stored_bytes=checkpoint.stored_bytes,
        origin=checkpoint.origin.value,
        is_head=is_head,
        image=checkpoint.image,
        processes=image_message(checkpoint.processes) if checkpoint.processes is not None else None,
    )


def image_message(image: ProcessImage) -> pb.ProcessImage:
    return pb.ProcessImage(
        engine=image.engine,
        trees=[tree_message(tree) for tree in image.trees],
        turn=image.turn,
        image_bytes=image.image_bytes,
        stored_bytes=image.stored_bytes,
        reason=text(image.reason),
    )


def tree_message(tree: ProcessTree) -> pb.ProcessTree:
    return pb.ProcessTree(
        kind=tree.kind,
        root=tree.root,
        processes=[
            pb.Process(
                pid=line.pid,
                parent=line.parent,
                name=text(line.name),
                threads=line.threads,
                zombie=line.zombie,
            )
            for line in tree.processes
        ],
        notes=[text(note) for note in tree.notes],
        image_bytes=tree.image_bytes,
        stopped_ns=tree.stopped_ns,
    )


def event_message(event: Event) -> pb.WatchEventsResponse:
    return pb.WatchEventsResponse(
        sequence=event.sequence,
        time_ns=event.time_ns,
        kind=event.kind,
        sandbox_id=event.sandbox_id or "",
        sandbox_name=event.sandbox_name,
        turn=event.turn,
        message=text(event.message),
        details_json=json.dumps(dict(event.details)),
    )


def delta_message(delta: Delta, image: LayerView | None) -> pb.DiffCheckpointsResponse | None:
    """Return a difference as the sandbox sees it; None if it sees none.

    A name that a tree leaves out is the image's. Without the image it cannot be
    told whether that is there at all; the path then counts as added or removed.
    """
    before, after = _seen(delta.before, delta.path, image), _seen(delta.after, delta.path, image)
    change = _kind_of_change(before, after)
    if not change:
        return None
    return pb.DiffCheckpointsResponse(
        path=inside(delta.path).decode("utf-8", "backslashreplace"),
        change=change,
        before_type=_type_name(before),
        after_type=_type_name(after),
        before_size=before.size if before is not None else 0,
        after_size=after.size if after is not None else 0,
        before_mode=before.mode if before is not None else 0,
        after_mode=after.mode if after is not None else 0,
    )


def _seen(entry: Entry | None, path: bytes, image: LayerView | None) -> Entry | None:
    """Return what the sandbox has at a path of which the tree says `entry`."""
    if entry is not None:
        return None if entry.type is NodeType.WHITEOUT else entry
    slot, _, rest = path.partition(b"/")
    return image.lookup(rest) if image is not None and slot == ROOTFS and rest else None


def _kind_of_change(before: Entry | None, after: Entry | None) -> str:
    """Name a difference; "" where only a folder's time differs."""
    if before is None or after is None:
        if before is after:
            return ""
        return "added" if before is None else "removed"
    if before.type is not after.type:
        return "type"
    if before.is_directory and same_attributes(before, after):
        return ""
    return "changed" if before.content != after.content or before.target != after.target else "metadata"


def _type_name(entry: Entry | None) -> str:
    if entry is None:
        return ""
    return entry.type.name.lower().replace("_", " ")


def text(value: str) -> str:
    """Return what protobuf takes: no lone surrogates, which names that are not UTF-8 leave."""
    return value.encode("utf-8", "backslashreplace").decode()


def metadata_from(message: pb.TurnMetadata) -> TurnMetadata:
    return TurnMetadata(
        model=message.model,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        tool_name=message.tool_name,
        extra=dict(message.extra),
    )


def policy_from(message: pb.RetentionPolicy) -> RetentionPolicy:
    return RetentionPolicy(
        keep_last=message.keep_last,
        keep_hourly=message.keep_hourly,
        keep_daily=message.keep_daily,
        keep_tags=tuple(message.keep_tags),
        max_bytes=message.max_bytes,
    )


def state_from(value: pb.TurnState.ValueType) -> TurnState:
    """Return the state to wait for; DURABLE where none is named."""
    if value == pb.TURN_STATE_UNSPECIFIED:
        return TurnState.DURABLE
    return TurnState(pb.TurnState.Name(value).removeprefix("TURN_STATE_"))
