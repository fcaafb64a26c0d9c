"""The gRPC methods: from requests to the registry, from its values to messages."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import psutil
from turnkeep_store.diff import diff
from turnkeep_store.errors import SnapshotNotFound
from turnkeep_store.ids import SnapshotId, TreeId
from turnkeep_store.layers import LayerView

from turnkeep import maintenance
from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.api.v1 import turnkeep_pb2_grpc as pb_grpc
from turnkeep.coordinator.deps import run
from turnkeep.coordinator.examine import Examiner
from turnkeep.coordinator.registry import Registry
from turnkeep.errors import Conflict, InvalidRequest, TurnkeepError, TurnNotFound
from turnkeep.harness_state import read_state
from turnkeep.journal import Head
from turnkeep.journal.chain import exported
from turnkeep.model import Checkpoint, Event, HarnessState, SandboxId
from turnkeep.runtime.engine import kernel_release
from turnkeep.server import conversions as convert
from turnkeep.server.callers import Role, current
from turnkeep.server.examine import ExamineCalls
from turnkeep.server.progress import Tell, with_progress
from turnkeep.server.restores import RestoreCalls
from turnkeep.server.uploads import receive_state

_EVENTS_QUEUED = 10_000
_DIFF_BATCH = 500
MAX_LABEL_BYTES = 16 * 1024
MAX_TIMEOUT_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Started:
    """What the daemon knows of itself."""

    version: str
    at_ns: int
    recovery: tuple[str, ...]
    degraded: Callable[[], list[str]]


class TurnkeepService(RestoreCalls, ExamineCalls, pb_grpc.TurnkeepServicer):
    """The service. All state is the registry's."""

    def __init__(self, registry: Registry, started: Started) -> None:
        super().__init__(registry)
        self._started = started
        self._examiner = Examiner(registry)
        self._watches: set[asyncio.Queue[Event | None]] = set()

    def end_watches(self) -> None:
        """End all `WatchEvents` calls: the daemon stops."""
        for arriving in self._watches:
            if not arriving.full():
                arriving.put_nowait(None)

    # -- sandboxes ---------------------------------------------------------

    async def AttachSandbox(self, request: pb.AttachSandboxRequest, context: Any) -> pb.AttachSandboxResponse:
        sandbox, created = await self._registry.attach(request.container)
        return pb.AttachSandboxResponse(sandbox=await self._sandbox(sandbox), created=created)

    async def DetachSandbox(self, request: pb.DetachSandboxRequest, context: Any) -> pb.DetachSandboxResponse:
        sandbox = await self._registry.detach(request.sandbox)
        return pb.DetachSandboxResponse(sandbox=await self._sandbox(sandbox))

    async def ListSandboxes(self, request: pb.ListSandboxesRequest, context: Any) -> pb.ListSandboxesResponse:
        found = [
            each
            for each in self._registry.sandboxes.values()
            if each.record.attached or request.include_detached
        ]
        found.sort(key=lambda each: each.record.name)
        return pb.ListSandboxesResponse(sandboxes=[await self._sandbox(each) for each in found])

    async def GetSandbox(self, request: pb.GetSandboxRequest, context: Any) -> pb.GetSandboxResponse:
        return pb.GetSandboxResponse(sandbox=await self._sandbox(self._registry.find(request.sandbox)))

    # -- turns -------------------------------------------------------------

    async def BeginTurn(self, request: pb.BeginTurnRequest, context: Any) -> pb.BeginTurnResponse:
        _require(request.session, "session")
        _require(request.harness_turn_id, "harness_turn_id")
        _bound("label", request.label)
        _bound("session", request.session)
        _bound("harness_turn_id", request.harness_turn_id)
        limits = self._deps.config.limits
        self._registry.check_room()
        turn, gate_ns, abandoned = await self._registry.attached(request.sandbox).begin(
            request.session,
            request.harness_turn_id,
            request.label,
            take_over=request.take_over,
            gate_timeout_s=_seconds(request.gate_timeout_ms, limits.gate_timeout_s),
        )
        return pb.BeginTurnResponse(
            turn=convert.turn_message(turn), gate_wait_ns=gate_ns, abandoned_turn=abandoned
        )

    async def EndTurn(self, request: pb.EndTurnRequest, context: Any) -> pb.EndTurnResponse:
        _require(request.harness_turn_id, "harness_turn_id")
        for key, value in {**request.labels, **request.metadata.extra}.items():
            _bound("labels and metadata", key + value)
        turn = await self._registry.find(request.sandbox).end(
            request.session,
            request.harness_turn_id,
            dict(request.labels),
            convert.metadata_from(request.metadata),
        )
        return pb.EndTurnResponse(turn=convert.turn_message(turn))

    async def WaitTurn(self, request: pb.WaitTurnRequest, context: Any) -> pb.WaitTurnResponse:
        timeout_s = _seconds(request.timeout_ms, self._deps.config.limits.wait_timeout_s)
        sandbox = self._registry.find(request.sandbox)
        turn = await sandbox.wait(request.turn, convert.state_from(request.state), timeout_s)
        return pb.WaitTurnResponse(turn=convert.turn_message(turn))

    async def ListTurns(self, request: pb.ListTurnsRequest, context: Any) -> pb.ListTurnsResponse:
        sandbox = self._registry.find(request.sandbox)
        turns = await run(self._deps.pools.journal, self._deps.journal.turns, sandbox.record.id)
        shown = [sandbox.turn(turn.number) for turn in turns if turn.number > request.after]
        if request.limit:
            shown = shown[-request.limit :]
        return pb.ListTurnsResponse(turns=[convert.turn_message(turn) for turn in shown])

    async def PutTurnState(
        self, request_iterator: AsyncIterator[pb.PutTurnStateRequest], context: Any
    ) -> pb.PutTurnStateResponse:
        first = await anext(aiter(request_iterator), None)
        if first is None:
            raise InvalidRequest("no message was sent", hint="the first names the sandbox and the turn")
        sandbox = self._registry.find(first.sandbox)
        turn = sandbox.turn(first.turn)
        state, stored = await receive_state(
            self._deps, sandbox.record.id, turn.number, first.data, request_iterator
        )
        await sandbox.set_harness_state(turn.number, state)
        if turn.harness_state is not None:
            await run(self._deps.pools.commit, self._forget, turn.harness_state)
        return pb.PutTurnStateResponse(
            turn=turn.number, size=state.size, blake3=state.blake3, stored_bytes=stored
        )

    def _forget(self, state: HarnessState) -> None:
        try:
            self._deps.repository.delete(SnapshotId(state.snapshot_id))
        except SnapshotNotFound:
            return

    async def GetTurnState(
        self, request: pb.GetTurnStateRequest, context: Any
    ) -> AsyncIterator[pb.GetTurnStateResponse]:
        turn = self._registry.find(request.sandbox).turn(request.turn)
        if turn.harness_state is None:
            raise TurnNotFound("no harness state was stored with it", object=f"turn {turn.number}")
        pieces = read_state(self._deps.repository, turn.harness_state)
        while (piece := await run(self._deps.pools.long, next, pieces, None)) is not None:
            yield pb.GetTurnStateResponse(data=piece)

    # -- checkpoints -------------------------------------------------------

    async def CreateCheckpoint(
        self, request: pb.CreateCheckpointRequest, context: Any
    ) -> pb.CreateCheckpointResponse:
        _bound("name", request.name)
        self._registry.check_room()
        checkpoint = await self._registry.create_checkpoint(
            request.sandbox,
            label=request.name,
            tags=tuple(request.tags),
            request_id=self._request_id(request.request_id),
        )
        return pb.CreateCheckpointResponse(checkpoint=self._checkpoint(checkpoint))

    async def GetCheckpoint(self, request: pb.GetCheckpointRequest, context: Any) -> pb.GetCheckpointResponse:
        checkpoint, _ = await self._find(request.sandbox, request.ref)
        return pb.GetCheckpointResponse(checkpoint=self._checkpoint(checkpoint))

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Any
    ) -> pb.ListCheckpointsResponse:
        sandbox_id: SandboxId | None = None
        if request.sandbox:
            sandbox_id = self._registry.find(request.sandbox).record.id
        found = await run(self._deps.pools.journal, self._deps.journal.checkpoints, sandbox_id)
        registry = self._registry
        seen = [self._checkpoint(each) for each in found if registry.sees(each.sandbox_id)]
        return pb.ListCheckpointsResponse(checkpoints=seen)

    async def DeleteCheckpoint(
        self, request: pb.DeleteCheckpointRequest, context: Any
    ) -> pb.DeleteCheckpointResponse:
        checkpoint, _ = await self._find(request.sandbox, request.ref)
        reparented = await self._registry.delete_checkpoint(checkpoint)
        return pb.DeleteCheckpointResponse(checkpoint_id=checkpoint.id, reparented=reparented)

    async def DiffCheckpoints(
        self, request: pb.DiffCheckpointsRequest, context: Any
    ) -> AsyncIterator[pb.DiffCheckpointsResponse]:
        before, _ = await self._find(request.sandbox, getattr(request, "from"))
        if request.HasField("to"):
            after, _ = await self._find(request.sandbox, request.to)
        else:
            owner = self._registry.find(request.sandbox or before.sandbox_id)
            after, _ = await self._registry.checkpoint("", checkpoint=owner.record.head_checkpoint_id or "")
        if before.layers != after.layers:
            raise Conflict("the two stand on different images", object=f"checkpoint {before.id[:12]}")
        with self._deps.repository.lease("diff"), self._image_below(after) as image:
            found = diff(
                self._deps.repository, TreeId(bytes.fromhex(before.tree)), TreeId(bytes.fromhex(after.tree))
            )
            messages = filter(None, (convert.delta_message(delta, image) for delta in found))

            def batch() -> list[pb.DiffCheckpointsResponse]:
                return list(itertools.islice(messages, _DIFF_BATCH))

            while sent := await run(self._deps.pools.long, batch):
                for message in sent:
                    yield message

    def _image_below(self, checkpoint: Checkpoint) -> contextlib.AbstractContextManager[LayerView | None]:
        """Return the layers that a checkpoint stands on, if its sandbox's container has them here."""
        owner = self._registry.sandboxes.get(checkpoint.sandbox_id)
        if owner is None or owner.places is None:
            return contextlib.nullcontext()
        # A view of its own: one thread at a time may use one.
        return LayerView(owner.places.rootfs.layers)

    # -- events and the store ----------------------------------------------

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: Any
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        registry = self._registry
        wanted = registry.find(request.sandbox).record.id if request.sandbox else None
        loop = asyncio.get_running_loop()
        arriving: asyncio.Queue[Event | None] = asyncio.Queue(_EVENTS_QUEUED)

        def deliver(event: Event) -> None:
            # What a slow reader's queue has no room for is read from the journal
            # when its turn comes: nothing is left out.
            if not arriving.full():
                arriving.put_nowait(event)

        self._watches.add(arriving)

        def hand_over(event: Event) -> None:
            loop.call_soon_threadsafe(deliver, event)

        unsubscribe = self._deps.journal.subscribe(hand_over)
        try:
            seen = request.after_sequence
            if request.HasField("after_sequence"):
                seen = max(
                    seen, await run(self._deps.pools.journal, lambda: self._deps.journal.head().sequence)
                )
                async for past in self._past(request.after_sequence, wanted, seen + 1):
                    yield past
            if request.past_only:
                return
            # Tell the caller that the subscription stands before anything happens.
            await context.send_initial_metadata(())
            while (event := await arriving.get()) is not None:
                if event.sequence > seen + 1 and seen:
                    async for missed in self._past(seen, wanted, event.sequence):
                        yield missed
                is_wanted = wanted in (None, event.sandbox_id) and registry.sees(event.sandbox_id)
                if event.sequence > seen and is_wanted:
                    yield convert.event_message(event)
                seen = max(seen, event.sequence)
        finally:
            unsubscribe()
            self._watches.discard(arriving)

    async def _past(
        self, after: int, sandbox_id: SandboxId | None, before: int | None
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        """Yield recorded events after one sequence number and before another."""
        registry = self._registry
        while found := await run(self._deps.pools.journal, self._deps.journal.events, after, sandbox_id):
            for event in found:
                if before is not None and event.sequence >= before:
                    return
                after = event.sequence
                if registry.sees(event.sandbox_id):
                    yield convert.event_message(event)

    async def PruneStore(
        self, request: pb.PruneStoreRequest, context: Any
    ) -> AsyncIterator[pb.PruneStoreResponse]:
        policy = (
            convert.policy_from(request.policy) if request.HasField("policy") else self._deps.config.retention
        )

        async def work(progress: Tell) -> pb.PruneResult:
            done = await maintenance.prune_store(
                self._registry, policy, dry_run=request.dry_run, progress=progress
            )
            return pb.PruneResult(
                deleted_checkpoints=done.deleted,
                kept_checkpoints=done.kept,
                freed_bytes=done.freed_bytes,
                stored_bytes=done.stored_bytes,
                dry_run=done.dry_run,
                notes=done.notes,
            )

        async for step in with_progress(work):
            if isinstance(step, pb.Progress):
                yield pb.PruneStoreResponse(progress=step)
            else:
                yield pb.PruneStoreResponse(result=step)

    async def CheckStore(
        self, request: pb.CheckStoreRequest, context: Any
    ) -> AsyncIterator[pb.CheckStoreResponse]:
        async def work(progress: Tell) -> pb.CheckResult:
            if request.live_sandbox:
                return await self._check_live(request.live_sandbox)
            if request.journal:
                return await self._check_journal(request.journal_head)
            repaired = await maintenance.repair_store(self._registry, progress) if request.repair else []
            report = await maintenance.check_store(
                self._registry,
                read_data=not request.skip_data,
                rebuild=request.rebuild_index,
                progress=progress,
            )
            size = await run(self._deps.pools.commit, self._deps.repository.size)
            return pb.CheckResult(
                ok=report.ok,
                problems=[convert.text(str(each)) for each in report.damage],
                checkpoints=len(await run(self._deps.pools.long, self._deps.journal.checkpoints)),
                blobs=report.blobs,
                bytes=size.stored_bytes,
                index_rebuilt=request.rebuild_index,
                repaired=repaired,
            )

        async for step in with_progress(work):
            if isinstance(step, pb.Progress):
                yield pb.CheckStoreResponse(progress=step)
            else:
                yield pb.CheckStoreResponse(result=step)

    async def _check_live(self, name: str) -> pb.CheckResult:
        audit = await self._registry.attached(name).audit()
        problems = [f"{path}: it changed, and nobody told" for path in audit.missed]
        return pb.CheckResult(
            ok=not problems, problems=[convert.text(each) for each in problems], followed=audit.followed
        )

    async def _check_journal(self, kept: str) -> pb.CheckResult:
        journal = self._deps.journal
        problems = await run(self._deps.pools.long, journal.verify, Head.parse(kept) if kept else None)
        head = await run(self._deps.pools.journal, journal.told_head)
        return pb.CheckResult(ok=not problems, problems=problems, journal_head=str(head))

    async def ExportJournal(
        self, request: pb.ExportJournalRequest, context: Any
    ) -> AsyncIterator[pb.ExportJournalResponse]:
        after = request.after_sequence
        # What was given out must not be taken back by a power cut.
        last = await run(self._deps.pools.journal, self._deps.journal.told_head)
        while rows := await run(self._deps.pools.commit, self._deps.journal.rows, after):
            for row, stored in rows:
                if row[0] > last.sequence:
                    return
                yield pb.ExportJournalResponse(sequence=row[0], line=exported(row, stored))
            after = rows[-1][0][0]

    async def GetHostStatus(self, request: pb.GetHostStatusRequest, context: Any) -> pb.GetHostStatusResponse:
        deps, registry = self._deps, self._registry
        degraded = self._started.degraded()
        engine: dict[str, Any] = {}
        try:
            engine = await run(deps.pools.engine, deps.engine.info)
        except TurnkeepError as error:
            degraded = [*degraded, f"{error.message} {error.hint}".strip()]
        size = await run(deps.pools.commit, deps.repository.size)
        kept = await run(deps.pools.long, deps.journal.checkpoints)
        disk = os.statvfs(deps.config.state_dir)
        return pb.GetHostStatusResponse(
            version=self._started.version,
            pid=os.getpid(),
            started_at_ns=self._started.at_ns,
            engine_version=engine.get("ServerVersion", ""),
            storage_driver=engine.get("Driver", ""),
            cgroup_version=int(engine.get("CgroupVersion", "0") or 0),
            kernel=kernel_release(),
            state_dir=deps.config.state_dir,
            stored_bytes=size.stored_bytes,
            checkpoints=sum(registry.sees(each.sandbox_id) for each in kept),
            sandboxes=sum(each.record.attached for each in registry.sandboxes.values()),
            free_bytes=disk.f_bavail * disk.f_frsize,
            recovery=self._started.recovery if current().role is not Role.HARNESS else (),
            degraded=degraded,
            tracker=self._tracker_figures(),
            usage=_usage(),
        )

    def _tracker_figures(self) -> pb.TrackerFigures:
        tracked = self._deps.checkpointer.states.tracked
        if tracked is None:
            return pb.TrackerFigures()
        figures, counters = tracked.figures, tracked.tracker.counters
        return pb.TrackerFigures(
            enabled=True,
            followed=figures.followed,
            scanned=figures.scanned,
            events=counters.events,
            overflows=counters.overflows,
            audits=figures.audits,
            missed=figures.missed,
        )

    # -- shared ------------------------------------------------------------

    def _checkpoint(self, checkpoint: Checkpoint) -> pb.Checkpoint:
        heads = {each.record.head_checkpoint_id for each in self._registry.sandboxes.values()}
        return convert.checkpoint_message(checkpoint, is_head=checkpoint.id in heads)


def _usage() -> pb.Usage:
    process = psutil.Process()
    with process.oneshot():
        times = process.cpu_times()
        return pb.Usage(
            resident_bytes=process.memory_info().rss,
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            processor_ns=int((times.user + times.system) * 1e9),
        )


def _require(value: str, name: str) -> None:
    if not value:
        raise InvalidRequest(f"{name} is empty", hint=f"set {name} in the request")


def _bound(name: str, value: str) -> None:
    if len(value.encode("utf-8", "surrogatepass")) > MAX_LABEL_BYTES:
        raise InvalidRequest(f"{name} is longer than {MAX_LABEL_BYTES} bytes")


def _seconds(milliseconds: int, default_s: float) -> float:
    return min(milliseconds / 1000, MAX_TIMEOUT_S) if milliseconds else default_s
