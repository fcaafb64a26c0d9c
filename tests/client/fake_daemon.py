"""A daemon in memory, served by real gRPC on a unix socket.

It keeps the promises of the interface that a client can see (idempotence, turn
numbers, a moving head) and none that needs a container. `refuse` and `lose`
make calls fail; `requests` holds what came in.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.api.v1 import turnkeep_pb2_grpc
from turnkeep.errors import (
    CheckpointNotFound,
    Conflict,
    ContainerNotFound,
    SandboxNotFound,
    TurnkeepError,
    TurnNotFound,
)

NOW_NS = 1_700_000_000_000_000_000


class FakeDaemon:
    """The server, and the switches that tests turn."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix://{path}"
        self.service = FakeService()
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Listen. What was there before a `stop` is still there."""
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=8),
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        turnkeep_pb2_grpc.add_TurnkeepServicer_to_server(self.service, self._server)
        self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self) -> None:
        """Hang up on everybody and return when nobody is served any more."""
        if self._server is not None:
            self.service.stopping.set()
            self._server.stop(grace=None).wait()
            self._server = None
            self.service.stopping.clear()


class FakeService(turnkeep_pb2_grpc.TurnkeepServicer):
    """The calls."""

    def __init__(self) -> None:
        self.containers = {"web", "job"}
        self.sandboxes: dict[str, pb.Sandbox] = {}
        self.turns: dict[str, list[pb.Turn]] = defaultdict(list)
        self.checkpoints: list[pb.Checkpoint] = []
        self.states: dict[tuple[str, int], bytes] = {}
        self.events: list[pb.WatchEventsResponse] = []
        self.requests: list[tuple[str, Any]] = []
        self.status = pb.GetHostStatusResponse(
            version="0.1.0", pid=42, started_at_ns=NOW_NS, engine_version="27.1", storage_driver="overlay2",
            cgroup_version=2, kernel="6.8.0", state_dir="/var/lib/turnkeep", stored_bytes=1 << 20,
            checkpoints=3, sandboxes=1, free_bytes=50 << 30,
            tracker=pb.TrackerFigures(enabled=True, followed=9, scanned=1, events=99, audits=1),
            usage=pb.Usage(resident_bytes=90 << 20, descriptors=40, threads=9, processor_ns=10**9),
        )  # fmt: skip
        self.findings = [
            pb.Finding(what="criu", verdict=pb.VERDICT_OK, detail="version 4.2"),
            pb.Finding(
                what="runtime", verdict=pb.VERDICT_DEGRADED, detail="not registered", fix="register it"
            ),
        ]
        self.problems: list[str] = []
        self.outcome = pb.TURN_STATE_DURABLE
        self.stopping = threading.Event()
        self._refusals: dict[str, list[Exception | grpc.StatusCode]] = defaultdict(list)
        self._losses: dict[str, int] = defaultdict(int)
        self._answers: dict[str, Any] = {}

    # -- switches ------------------------------------------------------------

    def refuse(self, method: str, error: TurnkeepError | grpc.StatusCode, times: int = 1) -> None:
        """Let the next calls of a method fail before they do anything."""
        self._refusals[method] += [error] * times

    def lose(self, method: str, times: int = 1) -> None:
        """Do what the next calls of a method ask, and lose the answers."""
        self._losses[method] += times

    def count(self, method: str) -> int:
        """How often a method was called."""
        return sum(name == method for name, _ in self.requests)

    def last(self, method: str) -> Any:
        """The last request of a method."""
        return next(request for name, request in reversed(self.requests) if name == method)

    def add_checkpoint(self, box: pb.Sandbox, **fields: Any) -> pb.Checkpoint:
        """Add a child of the head, and make it the head."""
        seed = f"{len(self.checkpoints)}".encode()
        checkpoint = pb.Checkpoint(
            id=hashlib.sha256(seed).hexdigest(),
            sandbox_id=box.id,
            parent_id=box.head_checkpoint_id,
            created_at_ns=NOW_NS,
            digest="d" * 64,
            fidelity=pb.FIDELITY_COMPLETE,
            mounts=box.mounts,
            image="debian:12",
            **fields,
        )
        self.checkpoints.append(checkpoint)
        box.head_checkpoint_id = checkpoint.id
        return checkpoint

    def add_event(self, kind: str, **fields: Any) -> None:
        """Record an event."""
        sequence = len(self.events) + 1
        self.events.append(pb.WatchEventsResponse(sequence=sequence, time_ns=NOW_NS, kind=kind, **fields))

    # -- sandboxes -----------------------------------------------------------

    def AttachSandbox(self, request: Any, context: Any) -> Any:
        self._enter("AttachSandbox", request, context)
        if request.container not in self.containers:
            raise_status(context, ContainerNotFound("no such container", object=request.container))
        known = self._find(request.container)
        if known is None:
            known = pb.Sandbox(
                id=hashlib.sha256(request.container.encode()).hexdigest()[:16],
                name=request.container,
                container_id="c" * 64,
                image_id="sha256:" + "1" * 64,
                container_state=pb.CONTAINER_STATE_RUNNING,
                attached_at_ns=NOW_NS,
                mounts=[
                    pb.Mount(target="/", kind="rootfs", covered=True),
                    pb.Mount(target="/host", kind="bind", reason="its label does not say so"),
                ],
            )
            self.sandboxes[known.id] = known
            self.add_checkpoint(known, origin="attach")
        known.attached = True
        return self._leave("AttachSandbox", pb.AttachSandboxResponse(sandbox=known), context)

    def DetachSandbox(self, request: Any, context: Any) -> Any:
        self._enter("DetachSandbox", request, context)
        box = self._sandbox(request.sandbox, context)
        box.attached = False
        return self._leave("DetachSandbox", pb.DetachSandboxResponse(sandbox=box), context)

    def ListSandboxes(self, request: Any, context: Any) -> Any:
        self._enter("ListSandboxes", request, context)
        boxes = sorted(self.sandboxes.values(), key=lambda box: box.name)
        kept = [box for box in boxes if box.attached or request.include_detached]
        return self._leave("ListSandboxes", pb.ListSandboxesResponse(sandboxes=kept), context)

    def GetSandbox(self, request: Any, context: Any) -> Any:
        self._enter("GetSandbox", request, context)
        return self._leave(
            "GetSandbox", pb.GetSandboxResponse(sandbox=self._sandbox(request.sandbox, context)), context
        )

    # -- turns ---------------------------------------------------------------

    def BeginTurn(self, request: Any, context: Any) -> Any:
        self._enter("BeginTurn", request, context)
        box = self._sandbox(request.sandbox, context)
        turns, abandoned = self.turns[box.id], 0
        for turn in turns:
            if (turn.session, turn.harness_turn_id) == (request.session, request.harness_turn_id):
                return self._leave("BeginTurn", pb.BeginTurnResponse(turn=turn), context)
        if box.open_turn:
            left = turns[box.open_turn - 1]
            if left.session != request.session and not request.take_over:
                raise_status(
                    context, Conflict("another session's turn is open", object=f"turn {left.number}")
                )
            self._close(box, left, abandoned=True)
            abandoned = left.number
        turn = pb.Turn(
            sandbox_id=box.id,
            number=len(turns) + 1,
            harness_turn_id=request.harness_turn_id,
            session=request.session,
            state=pb.TURN_STATE_OPEN,
            parent=box.last_turn,
            label=request.label,
            began_at_ns=NOW_NS,
            harness_state_bytes=-1,
        )
        turns.append(turn)
        box.last_turn = box.open_turn = turn.number
        answer = pb.BeginTurnResponse(turn=turn, gate_wait_ns=1_500_000, abandoned_turn=abandoned)
        return self._leave("BeginTurn", answer, context)

    def EndTurn(self, request: Any, context: Any) -> Any:
        self._enter("EndTurn", request, context)
        box = self._sandbox(request.sandbox, context)
        for turn in self.turns[box.id]:
            if (turn.session, turn.harness_turn_id) == (request.session, request.harness_turn_id):
                if turn.state == pb.TURN_STATE_OPEN:
                    turn.labels.update(request.labels)
                    turn.metadata.CopyFrom(request.metadata)
                    self._close(box, turn)
                return self._leave("EndTurn", pb.EndTurnResponse(turn=turn), context)
        return raise_status(context, TurnNotFound("no such turn", object=request.harness_turn_id))

    def WaitTurn(self, request: Any, context: Any) -> Any:
        self._enter("WaitTurn", request, context)
        turn = self._turn(request.sandbox, request.turn, context)
        return self._leave("WaitTurn", pb.WaitTurnResponse(turn=turn), context)

    def ListTurns(self, request: Any, context: Any) -> Any:
        self._enter("ListTurns", request, context)
        box = self._sandbox(request.sandbox, context)
        turns = [turn for turn in self.turns[box.id] if turn.number > request.after]
        return self._leave("ListTurns", pb.ListTurnsResponse(turns=turns[-request.limit :]), context)

    def PutTurnState(self, requests: Any, context: Any) -> Any:
        pieces = list(requests)
        self._enter("PutTurnState", pieces, context)
        data = b"".join(piece.data for piece in pieces)
        turn = self._turn(pieces[0].sandbox, pieces[0].turn, context)
        self.states[(turn.sandbox_id, turn.number)] = data
        turn.harness_state_bytes = len(data)
        answer = pb.PutTurnStateResponse(turn=turn.number, size=len(data), blake3="b" * 64, stored_bytes=10)
        return self._leave("PutTurnState", answer, context)

    def GetTurnState(self, request: Any, context: Any) -> Any:
        self._enter("GetTurnState", request, context)
        turn = self._turn(request.sandbox, request.turn, context)
        data = self.states[(turn.sandbox_id, turn.number)]
        for start in range(0, len(data), 1 << 20):
            yield pb.GetTurnStateResponse(data=data[start : start + (1 << 20)])

    # -- checkpoints ---------------------------------------------------------

    def CreateCheckpoint(self, request: Any, context: Any) -> Any:
        self._enter("CreateCheckpoint", request, context)

        def create() -> pb.CreateCheckpointResponse:
            box = self._sandbox(request.sandbox, context)
            made = self.add_checkpoint(box, origin="manual", name=request.name, tags=request.tags)
            return pb.CreateCheckpointResponse(checkpoint=made)

        return self._leave("CreateCheckpoint", self._once(request.request_id, create), context)

    def GetCheckpoint(self, request: Any, context: Any) -> Any:
        self._enter("GetCheckpoint", request, context)
        found = self._checkpoint(request.sandbox, request.ref, context)
        return self._leave("GetCheckpoint", pb.GetCheckpointResponse(checkpoint=found), context)

    def ListCheckpoints(self, request: Any, context: Any) -> Any:
        self._enter("ListCheckpoints", request, context)
        wanted = self._sandbox(request.sandbox, context).id if request.sandbox else None
        heads = {box.head_checkpoint_id for box in self.sandboxes.values()}
        found = [item for item in self.checkpoints if wanted in (None, item.sandbox_id)]
        for item in found:
            item.is_head = item.id in heads
        return self._leave("ListCheckpoints", pb.ListCheckpointsResponse(checkpoints=found), context)

    def DeleteCheckpoint(self, request: Any, context: Any) -> Any:
        self._enter("DeleteCheckpoint", request, context)
        found = self._checkpoint(request.sandbox, request.ref, context)
        self.checkpoints.remove(found)
        answer = pb.DeleteCheckpointResponse(checkpoint_id=found.id, reparented=1)
        return self._leave("DeleteCheckpoint", answer, context)

    def RestoreSandbox(self, request: Any, context: Any) -> Any:
        self._enter("RestoreSandbox", request, context)

        def restore() -> pb.RestoreSandboxResponse:
            box = self._sandbox(request.sandbox, context)
            target = self._checkpoint(request.sandbox, request.ref, context)
            number = request.ref.turn or target.turn
            safety = (
                "" if request.skip_safety_checkpoint else self.add_checkpoint(box, origin="before-restore").id
            )
            box.head_checkpoint_id = target.id
            state = self.states.get((box.id, number))
            result = pb.RestoreResult(
                sandbox=box, checkpoint_id=target.id, mode=request.mode or pb.RESTORE_MODE_LIVE,
                mode_reason="no stateful process has to come back", safety_checkpoint_id=safety,
                expected_digest=target.digest, actual_digest=target.digest,
                verify=request.verify or pb.VERIFY_MODE_CHANGED, changed_paths=3, written_bytes=4096,
                freeze_ns=2_000_000, total_ns=30_000_000, notes=["caches were left alone"],
                harness_state=state or b"", has_harness_state=state is not None, turn=number,
            )  # fmt: skip
            return pb.RestoreSandboxResponse(result=result)

        for done in (0, 3):
            yield pb.RestoreSandboxResponse(progress=pb.Progress(phase="write", done=done, total=3))
        yield self._leave("RestoreSandbox", self._once(request.request_id, restore), context)

    def ForkSandbox(self, request: Any, context: Any) -> Any:
        self._enter("ForkSandbox", request, context)

        def fork() -> pb.ForkSandboxResponse:
            box = self._sandbox(request.sandbox, context)
            copies = []
            for number in range(request.count or len(request.names) or 1):
                name = request.names[number] if request.names else f"{box.name}-fork-{number + 1}"
                copy = pb.Sandbox(id=hashlib.sha256(name.encode()).hexdigest()[:16], name=name, attached=True)
                copies.append(copy)
            result = pb.ForkResult(
                sandboxes=copies,
                checkpoint_id=box.head_checkpoint_id or "c" * 64,
                notes=["its own: container id"],
                total_ns=40_000_000,
            )
            return pb.ForkSandboxResponse(result=result)

        yield pb.ForkSandboxResponse(progress=pb.Progress(phase="fork", done=0, total=1))
        yield self._leave("ForkSandbox", self._once(request.request_id, fork), context)

    def DiffCheckpoints(self, request: Any, context: Any) -> Any:
        self._enter("DiffCheckpoints", request, context)
        self._checkpoint(request.sandbox, getattr(request, "from"), context)
        if request.HasField("to"):
            self._checkpoint(request.sandbox, request.to, context)
        yield pb.DiffCheckpointsResponse(path="/work/new", change="added", after_type="file", after_size=5)
        yield pb.DiffCheckpointsResponse(
            path="/work/a",
            change="changed",
            before_type="file",
            after_type="file",
            before_size=1,
            after_size=2,
        )
        self._leave("DiffCheckpoints", None, context)

    # -- the host ------------------------------------------------------------

    def WatchEvents(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter("WatchEvents", request, context)
        for event in list(self.events):
            if request.HasField("after_sequence") and event.sequence > request.after_sequence:
                yield event
        if request.past_only:
            return
        self._leave("WatchEvents", None, context)
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait()

    def PruneStore(self, request: Any, context: Any) -> Any:
        self._enter("PruneStore", request, context)
        yield pb.PruneStoreResponse(progress=pb.Progress(phase="mark", done=1, total=2))
        result = pb.PruneResult(
            deleted_checkpoints=["e" * 64], kept_checkpoints=2, freed_bytes=2048, stored_bytes=4096,
            dry_run=request.dry_run, notes=["the head of web is kept"],
        )  # fmt: skip
        yield pb.PruneStoreResponse(result=result)

    def CheckStore(self, request: Any, context: Any) -> Any:
        self._enter("CheckStore", request, context)
        yield pb.CheckStoreResponse(progress=pb.Progress(phase="read", done=1))
        result = pb.CheckResult(
            ok=not self.problems, problems=self.problems, checkpoints=3, blobs=9, bytes=1 << 20
        )
        if request.journal:
            result = pb.CheckResult(
                ok=not self.problems, problems=self.problems, journal_head=f"5:{'a' * 64}"
            )
        yield self._leave("CheckStore", pb.CheckStoreResponse(result=result), context)

    def ExportJournal(self, request: Any, context: Any) -> Any:
        for sequence in range(request.after_sequence + 1, 6):
            self._enter("ExportJournal", request, context)
            message = pb.ExportJournalResponse(sequence=sequence, line=f'{{"sequence": {sequence}}}')
            yield self._leave("ExportJournal", message, context)

    def GetHostStatus(self, request: Any, context: Any) -> Any:
        self._enter("GetHostStatus", request, context)
        return self._leave("GetHostStatus", self.status, context)

    def ExamineHost(self, request: Any, context: Any) -> Any:
        self._enter("ExamineHost", request, context)
        found = list(self.findings)
        if request.sandbox:
            name = self._sandbox(request.sandbox, context).name
            found.append(pb.Finding(what="container", verdict=pb.VERDICT_OK, detail=f"{name} runs"))
        return self._leave("ExamineHost", pb.ExamineHostResponse(findings=found), context)

    # -- inside --------------------------------------------------------------

    def _enter(self, method: str, request: Any, context: Any) -> None:
        self.requests.append((method, request))
        if self._refusals[method]:
            raise_status(context, self._refusals[method].pop(0))

    def _leave(self, method: str, answer: Any, context: Any) -> Any:
        if self._losses[method]:
            self._losses[method] -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if isinstance(answer, Message):
            # What is sent must not change while it is being written out.
            copy = type(answer)()
            copy.CopyFrom(answer)
            return copy
        return answer

    def _once(self, request_id: str, act: Callable[[], Any]) -> Any:
        assert request_id
        if request_id not in self._answers:
            self._answers[request_id] = act()
        return self._answers[request_id]

    def _close(self, box: pb.Sandbox, turn: pb.Turn, *, abandoned: bool = False) -> None:
        turn.state, turn.ended_at_ns, turn.abandoned = self.outcome, NOW_NS + 10**9, abandoned
        box.open_turn = 0
        box.turns.total += 1
        if self.outcome == pb.TURN_STATE_FAILED:
            turn.state_reason = "the disk is full"
            box.turns.failed += 1
            return
        skipped = self.outcome == pb.TURN_STATE_SKIPPED
        turn.decision.CopyFrom(
            pb.Decision(
                turn_class=pb.TURN_CLASS_STATELESS if skipped else pb.TURN_CLASS_FILESYSTEM,
                reason="nothing changed" if skipped else "2 files changed",
                changed_paths=[] if skipped else ["/work/a", "/work/new"],
                changed_path_count=0 if skipped else 2,
            )
        )
        if skipped:
            box.turns.skipped += 1
            turn.checkpoint_id = box.head_checkpoint_id
            return
        box.turns.durable += 1
        made = self.add_checkpoint(
            box, origin="turn", turn=turn.number, decision=turn.decision, stored_bytes=512
        )
        turn.checkpoint_id, turn.changed_files, turn.changed_bytes = made.id, 2, 7
        turn.stored_bytes = 512
        turn.timings.freeze_ns, turn.timings.captured_ns = 3_000_000, 9_000_000

    def _find(self, name: str) -> pb.Sandbox | None:
        boxes = self.sandboxes.values()
        return next((box for box in boxes if name and name in (box.id, box.name, box.container_id)), None)

    def _sandbox(self, name: str, context: Any) -> pb.Sandbox:
        box = self._find(name)
        if box is None:
            raise_status(
                context, SandboxNotFound("no such sandbox", object=name, hint="turnkeep ps lists them")
            )
        return box

    def _turn(self, sandbox: str, number: int, context: Any) -> pb.Turn:
        turns = self.turns[self._sandbox(sandbox, context).id]
        number = number or len(turns)
        if not 1 <= number <= len(turns):
            raise_status(context, TurnNotFound("no such turn", object=f"turn {number}"))
        return turns[number - 1]

    def _checkpoint(self, sandbox: str, ref: pb.CheckpointRef, context: Any) -> pb.Checkpoint:
        wanted = ref.checkpoint
        if ref.WhichOneof("ref") == "turn":
            wanted = self._turn(sandbox, ref.turn, context).checkpoint_id
        box = self._sandbox(sandbox, context) if sandbox else None

        def meant(item: pb.Checkpoint) -> bool:
            named = box is not None and (item.sandbox_id, item.name) == (box.id, wanted)
            return item.id.startswith(wanted) or named

        found = [item for item in self.checkpoints if wanted and meant(item)]
        if not found:
            raise_status(context, CheckpointNotFound("no such checkpoint", object=wanted))
        return found[0]


def raise_status(context: Any, error: Exception | grpc.StatusCode) -> NoReturn:
    """Abort a call the way the daemon does, or with a bare code as gRPC itself would."""
    if isinstance(error, grpc.StatusCode):
        context.abort(error, "injected")
    assert isinstance(error, TurnkeepError)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain="turnkeep", metadata={"object": error.object, "hint": error.hint}
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message=error.message, details=[detail])
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort returned")
