"""The calls a client makes: what is sent, how the answer is read, whether it may be repeated.

One function for each logical call. A request is built once and sent again
unchanged after a broken connection, with the same request id, so that the
daemon can tell a repetition from a second wish.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from google.protobuf.message import Message

from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.client import convert, values
from turnkeep.errors import InvalidRequest
from turnkeep.model import Finding, RetentionPolicy, TurnMetadata, TurnState

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

RestoreMode: TypeAlias = Literal["live", "cold", "new"]
Verify: TypeAlias = Literal["changed", "full"]
Ref: TypeAlias = int | str
"""A turn's number, or a checkpoint's id (shortened or not) or name."""

PIECE_BYTES = 1024 * 1024
"""A harness state is sent in pieces of this size."""
ANSWER_S = 60.0
"""How long the daemon may take over a call that waits for nothing."""

EXAMINE_S = 300.0
"""The same for one that dumps and restores processes, and waits for captures under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T_co]):
    """One request, one answer."""

    method: str
    request: Message
    read: Callable[[Any], T_co]
    repeatable: bool = True
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload(Generic[T]):
    """Many requests, one answer. `requests` starts anew for each attempt."""

    method: str
    requests: Callable[[], Iterator[Message]]
    read: Callable[[Any], T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream(Generic[T]):
    """One request, many answers.

    `resume` gives the request that goes on after the last answer that came;
    without it a stream that broke after its first answer stays broken. After
    `for_s` the caller has seen enough.
    """

    method: str
    request: Message
    read: Callable[[Any], T]
    repeatable: bool = True
    resume: Callable[[T], Message] | None = None
    for_s: float | None = None


def attach(container: str) -> Call[values.SandboxInfo]:
    """Begin to watch a container. It may take long: the first checkpoint is taken."""
    return Call(
        method="AttachSandbox",
        request=pb.AttachSandboxRequest(container=container),
        read=lambda answer: convert.sandbox(answer.sandbox),
    )


def detach(sandbox: str) -> Call[values.SandboxInfo]:
    """Stop watching a sandbox."""
    return Call(
        method="DetachSandbox",
        request=pb.DetachSandboxRequest(sandbox=sandbox),
        read=lambda answer: convert.sandbox(answer.sandbox),
    )


def list_sandboxes(*, include_detached: bool) -> Call[list[values.SandboxInfo]]:
    """All sandboxes, by name."""
    return Call(
        method="ListSandboxes",
        request=pb.ListSandboxesRequest(include_detached=include_detached),
        read=lambda answer: [convert.sandbox(item) for item in answer.sandboxes],
        timeout_s=ANSWER_S,
    )


def get_sandbox(sandbox: str) -> Call[values.SandboxInfo]:
    """One sandbox."""
    return Call(
        method="GetSandbox",
        request=pb.GetSandboxRequest(sandbox=sandbox),
        read=lambda answer: convert.sandbox(answer.sandbox),
        timeout_s=ANSWER_S,
    )


def begin_turn(
    sandbox: str,
    session: str,
    harness_turn_id: str,
    *,
    label: str,
    take_over: bool,
    gate_timeout_s: float | None,
) -> Call[values.TurnBegun]:
    """Wait for the gate and open a turn."""
    return Call(
        method="BeginTurn",
        request=pb.BeginTurnRequest(
            sandbox=sandbox,
            session=session,
            harness_turn_id=harness_turn_id,
            label=label,
            take_over=take_over,
            gate_timeout_ms=_milliseconds(gate_timeout_s),
        ),
        read=convert.begun,
        timeout_s=_deadline(gate_timeout_s),
    )


def end_turn(
    sandbox: str, session: str, harness_turn_id: str, *, labels: Mapping[str, str], metadata: TurnMetadata
) -> Call[values.TurnInfo]:
    """Close a turn."""
    return Call(
        method="EndTurn",
        request=pb.EndTurnRequest(
            sandbox=sandbox,
            session=session,
            harness_turn_id=harness_turn_id,
            labels=labels,
            metadata=pb.TurnMetadata(
                model=metadata.model,
                prompt_tokens=metadata.prompt_tokens,
                completion_tokens=metadata.completion_tokens,
                tool_name=metadata.tool_name,
                extra=metadata.extra,
            ),
        ),
        read=lambda answer: convert.turn(answer.turn),
        timeout_s=ANSWER_S,
    )


def wait_turn(sandbox: str, turn: int, state: TurnState, timeout_s: float | None) -> Call[values.TurnInfo]:
    """Wait until a turn has reached a state."""
    return Call(
        method="WaitTurn",
        request=pb.WaitTurnRequest(
            sandbox=sandbox, turn=turn, state=convert.TURN_STATES[state], timeout_ms=_milliseconds(timeout_s)
        ),
        read=lambda answer: convert.turn(answer.turn),
        timeout_s=_deadline(timeout_s),
    )


def list_turns(sandbox: str, *, after: int, limit: int) -> Call[list[values.TurnInfo]]:
    """The turns of a sandbox, oldest first."""
    return Call(
        method="ListTurns",
        request=pb.ListTurnsRequest(sandbox=sandbox, after=after, limit=limit),
        read=lambda answer: [convert.turn(item) for item in answer.turns],
        timeout_s=ANSWER_S,
    )


def put_state(sandbox: str, turn: int, data: bytes) -> Upload[values.StoredState]:
    """Store a harness state with a turn."""

    def requests() -> Iterator[Message]:
        view = memoryview(data)
        yield pb.PutTurnStateRequest(sandbox=sandbox, turn=turn, data=bytes(view[:PIECE_BYTES]))
        for start in range(PIECE_BYTES, len(view), PIECE_BYTES):
            yield pb.PutTurnStateRequest(data=bytes(view[start : start + PIECE_BYTES]))

    return Upload(method="PutTurnState", requests=requests, read=convert.stored_state)


def get_state(sandbox: str, turn: int) -> Stream[bytes]:
    """Read the harness state of a turn, in pieces."""
    return Stream(
        method="GetTurnState",
        request=pb.GetTurnStateRequest(sandbox=sandbox, turn=turn),
        read=lambda answer: bytes(answer.data),
    )


def create_checkpoint(sandbox: str, *, name: str, tags: Sequence[str]) -> Call[values.Checkpoint]:
    """Take a checkpoint by hand."""
    return Call(
        method="CreateCheckpoint",
        request=pb.CreateCheckpointRequest(sandbox=sandbox, name=name, tags=tags, request_id=_new_id()),
        read=lambda answer: convert.checkpoint(answer.checkpoint),
    )


def get_checkpoint(sandbox: str, ref: Ref) -> Call[values.Checkpoint]:
    """One checkpoint."""
    return Call(
        method="GetCheckpoint",
        request=pb.GetCheckpointRequest(sandbox=sandbox, ref=_ref(ref)),
        read=lambda answer: convert.checkpoint(answer.checkpoint),
        timeout_s=ANSWER_S,
    )


def list_checkpoints(sandbox: str) -> Call[list[values.Checkpoint]]:
    """Checkpoints, oldest first; of all sandboxes when `sandbox` is empty."""
    return Call(
        method="ListCheckpoints",
        request=pb.ListCheckpointsRequest(sandbox=sandbox),
        read=lambda answer: [convert.checkpoint(item) for item in answer.checkpoints],
        timeout_s=ANSWER_S,
    )


def delete_checkpoint(sandbox: str, ref: Ref) -> Call[values.DeletedCheckpoint]:
    """Delete a checkpoint. Not repeated: the second answer would be "not found"."""
    return Call(
        method="DeleteCheckpoint",
        request=pb.DeleteCheckpointRequest(sandbox=sandbox, ref=_ref(ref)),
        read=convert.deleted,
        repeatable=False,
    )


def restore(
    sandbox: str,
    *,
    turn: int | None,
    checkpoint: str | None,
    mode: RestoreMode | None,
    new_name: str | None,
    skip_safety_checkpoint: bool,
    verify: Verify | None,
    replace: bool,
) -> Stream[values.Progress | values.RestoreResult]:
    """Bring a sandbox back. Progress begins anew when the call has to be repeated."""
    ref = turn if checkpoint is None else checkpoint
    if ref is None or (turn is not None and checkpoint is not None):
        raise InvalidRequest("restore needs either a turn or a checkpoint", object=f"sandbox {sandbox}")
    request = pb.RestoreSandboxRequest(
        sandbox=sandbox,
        ref=_ref(ref),
        mode=_named(convert.RESTORE_MODES, "mode", mode) or pb.RESTORE_MODE_UNSPECIFIED,
        new_name=new_name or "",
        skip_safety_checkpoint=skip_safety_checkpoint,
        verify=_named(convert.VERIFY_MODES, "verify", verify) or pb.VERIFY_MODE_UNSPECIFIED,
        replace=replace,
        request_id=_new_id(),
    )
    return Stream(
        method="RestoreSandbox", request=request, read=convert.restore_step, resume=lambda _: request
    )


def fork(
    sandbox: str, *, ref: Ref | None, count: int | None, names: Sequence[str]
) -> Stream[values.Progress | values.ForkResult]:
    """Make copies of a sandbox; of its present state unless a checkpoint is named."""
    request = pb.ForkSandboxRequest(
        sandbox=sandbox,
        ref=_ref(ref) if ref is not None else None,
        count=_count(count),
        names=names,
        request_id=_new_id(),
    )
    return Stream(method="ForkSandbox", request=request, read=convert.fork_step, resume=lambda _: request)


def _count(count: int | None) -> int:
    if count is not None and not 1 <= count < 2**31:
        raise InvalidRequest(f"{count} copies; there has to be at least one")
    return count or 0


def diff(sandbox: str, before: Ref, after: Ref | None) -> Stream[values.Change]:
    """What differs between two checkpoints; the newer one is the head unless given."""
    request = pb.DiffCheckpointsRequest(sandbox=sandbox, to=_ref(after) if after is not None else None)
    # `from` is a keyword of Python.
    getattr(request, "from").CopyFrom(_ref(before))
    return Stream(method="DiffCheckpoints", request=request, read=convert.change)


def events(sandbox: str, *, after: int | None, follow: bool, for_s: float | None) -> Stream[values.Event]:
    """What happens, as it happens; goes on after the last event when it has to be repeated."""

    def request(seen: int | None) -> pb.WatchEventsRequest:
        return pb.WatchEventsRequest(sandbox=sandbox, after_sequence=seen, past_only=not follow)

    return Stream(
        method="WatchEvents",
        request=request(after),
        read=convert.event,
        resume=lambda last: request(last.sequence),
        for_s=for_s,
    )


def prune(policy: RetentionPolicy | None, *, dry_run: bool) -> Stream[values.Progress | values.PruneResult]:
    """Apply the retention policy. Not repeated: the second answer would not tell what the first did."""
    message = None
    if policy is not None:
        message = pb.RetentionPolicy(
            keep_last=policy.keep_last,
            keep_hourly=policy.keep_hourly,
            keep_daily=policy.keep_daily,
            keep_tags=policy.keep_tags,
            max_bytes=policy.max_bytes,
        )
    return Stream(
        method="PruneStore",
        request=pb.PruneStoreRequest(dry_run=dry_run, policy=message),
        read=convert.prune_step,
        repeatable=False,
    )


def check(
    *, skip_data: bool, rebuild_index: bool, repair: bool, live: str, journal: bool, head: str
) -> Stream[values.Progress | values.CheckResult]:
    """Verify the store, or the journal, or what was reported of a sandbox's changes."""
    request = pb.CheckStoreRequest(
        skip_data=skip_data,
        rebuild_index=rebuild_index,
        repair=repair,
        live_sandbox=live,
        journal=journal,
        journal_head=head,
    )
    return Stream(method="CheckStore", request=request, read=convert.check_step, resume=lambda _: request)


def export_journal(after: int) -> Stream[values.JournalLine]:
    """The journal's events as they are stored; goes on after the last one when it has to be repeated."""
    return Stream(
        method="ExportJournal",
        request=pb.ExportJournalRequest(after_sequence=after),
        read=lambda message: values.JournalLine(sequence=message.sequence, line=message.line),
        resume=lambda last: pb.ExportJournalRequest(after_sequence=last.sequence),
    )


def host_status() -> Call[values.HostStatus]:
    """The daemon, its host and its store."""
    return Call(
        method="GetHostStatus",
        request=pb.GetHostStatusRequest(),
        read=convert.host_status,
        timeout_s=ANSWER_S,
    )


def examine(sandbox: str, *, self_test: bool) -> Call[list[Finding]]:
    """What the host, and a sandbox if one is named, have and lack."""
    return Call(
        method="ExamineHost",
        request=pb.ExamineHostRequest(sandbox=sandbox, self_test=self_test),
        read=lambda answer: [convert.finding(item) for item in answer.findings],
        timeout_s=EXAMINE_S,
    )


def turn_state(name: TurnState | str) -> TurnState:
    """Read a turn state's name.

    Raises:
        InvalidRequest: there is no such state.
    """
    try:
        return TurnState(str(name).upper())
    except ValueError:
        known = ", ".join(state.value for state in TurnState)
        raise InvalidRequest(f"there is no turn state {name!r}", hint=f"one of {known}") from None


def _named(known: Mapping[str, T], what: str, name: str | None) -> T | None:
    if name is not None and name not in known:
        raise InvalidRequest(f"there is no {what} {name!r}", hint=f"one of {', '.join(known)}")
    return known[name] if name is not None else None


def _ref(ref: Ref) -> pb.CheckpointRef:
    return pb.CheckpointRef(turn=ref) if isinstance(ref, int) else pb.CheckpointRef(checkpoint=ref)


def _new_id() -> str:
    return str(uuid.uuid4())


def _milliseconds(seconds: float | None) -> int:
    """Return whole milliseconds, at least one: 0 would ask for the daemon's default."""
    return 0 if seconds is None else max(1, min(round(seconds * 1000), 2**32 - 1))


def _deadline(waiting_s: float | None) -> float | None:
    """Return a limit that only a daemon that hangs can reach."""
    return None if waiting_s is None else waiting_s + ANSWER_S
