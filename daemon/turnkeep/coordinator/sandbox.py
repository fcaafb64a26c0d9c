"""The state machine of one sandbox.

Two locks, always taken in this order. `_turns` orders the calls of harnesses
(begin, end). `_work` orders what touches the container's files: captures,
checkpoints by hand, restores. A capture holds `_work` until it is durable, so
that the next one has a parent to build on; the gate opens earlier, at the
consistent point.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import structlog
from turnkeep_store.errors import StoreError, StoreFull
from turnkeep_store.ids import TreeId

from turnkeep.checkpointer.capture import Capture, Inspection
from turnkeep.checkpointer.view import Baseline
from turnkeep.checkpoints import checkpoint_of, metadata_of
from turnkeep.coordinator.deps import Deps, run, to_its_end
from turnkeep.errors import (
    Conflict,
    GateTimeout,
    TurnFailed,
    TurnkeepError,
    TurnNotFound,
    WaitTimeout,
)
from turnkeep.journal import Change, put_checkpoint, put_sandbox, put_turn
from turnkeep.model import (
    NO_TURN,
    Checkpoint,
    CheckpointId,
    ContainerState,
    Decision,
    Event,
    Fidelity,
    HarnessState,
    Origin,
    SandboxRecord,
    Turn,
    TurnClass,
    TurnMetadata,
    TurnNumber,
    TurnState,
    TurnTimings,
)
from turnkeep.runtime.container import Container, open_container
from turnkeep.runtime.places import Places

log = structlog.get_logger()

NOT_CAPTURED = "processes: their memory is not captured by this version, only files are"


class SandboxCoordinator:
    """One attached container: its turns, captures and record. Lives on the event loop."""

    def __init__(self, record: SandboxRecord, deps: Deps, baseline: Baseline | None = None) -> None:
        self.record = record
        self.deps = deps
        self.container: Container | None = None
        self.places: Places | None = None
        self.baseline = baseline or Baseline()
        self._turns = asyncio.Lock()
        self._work = asyncio.Lock()
        self._writing = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._before_consistent = 0
        self._open: Turn | None = None
        self._active: dict[TurnNumber, Turn] = {}
        self._ended_ns: dict[TurnNumber, int] = {}
        self._unrecorded: dict[TurnNumber, Turn] = {}

    # -- what others ask ---------------------------------------------------

    @property
    def open_turn(self) -> Turn | None:
        """The turn that is open."""
        return self._open

    def adopt_turns(self, turns: Iterable[Turn]) -> list[Turn]:
        """Take over the turns that were on their way when the daemon stopped.

        Returns those that ended and were not kept yet.
        """
        unfinished = []
        for turn in turns:
            if turn.state is TurnState.OPEN:
                self._open = turn
                self._active[turn.number] = turn
            elif not turn.state.is_final:
                unfinished.append(turn)
        return unfinished

    def turn(self, number: int) -> Turn:
        """Return a turn as it is now; 0 means the newest.

        Raises:
            TurnNotFound: there is none of this number.
        """
        wanted = TurnNumber(number or self.record.last_turn)
        known = self._active.get(wanted) or self._unrecorded.get(wanted)
        turn = known or self.deps.journal.turn(self.record.id, wanted)
        if turn is None:
            raise TurnNotFound(
                f"there is no turn {wanted}" if wanted else "there is no turn yet",
                object=f"sandbox {self.record.name}",
                hint=f"turnkeep log {self.record.name} lists them",
            )
        return turn

    # -- turns -------------------------------------------------------------

    async def begin(
        self, session: str, harness_turn_id: str, label: str, *, take_over: bool, gate_timeout_s: float
    ) -> tuple[Turn, int, TurnNumber]:
        """Wait at the gate and open a turn; return it, the wait in ns, and the turn closed for it.

        Raises:
            Conflict: another session's turn is open, or the id was used otherwise.
            GateTimeout: a capture was still in flight.
        """
        arrived = time.monotonic_ns()
        async with self._turns:
            known = await self._known(session, harness_turn_id)
            if known is not None:
                if known.label != label:
                    raise Conflict(
                        f"turn id {harness_turn_id!r} was begun with label {known.label!r}",
                        object=f"turn {known.number} of {self.record.name}",
                        hint="use a new turn id for a new turn",
                    )
                return known, known.timings.gate_ns, NO_TURN
            abandoned = await self._make_way(session, take_over=take_over)
            await self._pass_gate(gate_timeout_s)
            gate_ns = time.monotonic_ns() - arrived
            turn = Turn(
                sandbox_id=self.record.id,
                number=TurnNumber(self.record.last_turn + 1),
                harness_turn_id=harness_turn_id,
                session=session,
                state=TurnState.OPEN,
                parent=self.record.head_turn,
                began_at_ns=time.time_ns(),
                label=label,
                timings=TurnTimings(gate_ns=gate_ns),
            )
            await to_its_end(self._open_turn(turn))
            return turn, gate_ns, abandoned

    async def _open_turn(self, turn: Turn) -> None:
        numbers = {"last_turn": turn.number, "head_turn": turn.number}
        await self.update("turn_begun", turn.label, turn=turn, record=numbers)
        self._open = turn
        self._active[turn.number] = turn

    async def end(
        self, session: str, harness_turn_id: str, labels: Mapping[str, str], metadata: TurnMetadata
    ) -> Turn:
        """Close a turn and begin its capture; return at once.

        Raises:
            TurnNotFound: this session began no such turn.
            Conflict: it was ended before, with other labels or metadata.
        """
        ended_ns = time.monotonic_ns()
        async with self._turns:
            turn = await self._known(session, harness_turn_id)
            if turn is None:
                raise TurnNotFound(
                    f"no turn with id {harness_turn_id!r} was begun by this session",
                    object=f"sandbox {self.record.name}",
                    hint="call BeginTurn first",
                )
            if turn.state is not TurnState.OPEN:
                return await self._late_end(turn, labels, metadata)
            closing = self._close_turn(
                turn, TurnState.ENDED, "", ended_ns, labels=dict(labels), metadata=metadata
            )
            return await to_its_end(closing)

    async def abandon_open(self, reason: str) -> TurnNumber:
        """Close the open turn, if there is one, as its harness is gone. Its effects are captured."""
        async with self._turns:
            return await self._abandon(reason)

    async def wait(self, number: int, state: TurnState, timeout_s: float) -> Turn:
        """Wait until a turn has reached a state.

        Raises:
            TurnFailed: it failed, so that it never will.
            WaitTimeout: it has not in time.
        """
        number = self.turn(number).number

        def arrived() -> bool:
            now = self.turn(number).state
            return now.reaches(state) or now.is_final

        happened = await self._happens(arrived, timeout_s)
        turn = self.turn(number)
        if not happened:
            raise WaitTimeout(
                f"turn {number} is {turn.state} after {timeout_s:g} s, not {state}",
                object=f"sandbox {self.record.name}",
                hint="wait longer, or see turnkeep events",
            )
        if turn.state is TurnState.FAILED and not turn.state.reaches(state):
            raise TurnFailed(
                f"turn {number} failed: {turn.state_reason}",
                object=f"sandbox {self.record.name}",
                hint="the next turn's checkpoint will hold its changes",
            )
        return turn

    async def set_harness_state(self, number: TurnNumber, state: HarnessState) -> None:
        """Record, durably, where a turn's harness state lies."""
        await self.update("harness_state", f"{state.size} bytes", turn=self.turn(number), harness_state=state)

    async def _known(self, session: str, harness_turn_id: str) -> Turn | None:
        """Return the turn that this session began under this id."""
        for turn in self._active.values():
            if (turn.session, turn.harness_turn_id) == (session, harness_turn_id):
                return turn
        return await run(
            self.deps.pools.journal, self.deps.journal.find_turn, self.record.id, session, harness_turn_id
        )

    async def _make_way(self, session: str, *, take_over: bool) -> TurnNumber:
        if self._open is None:
            return NO_TURN
        if self._open.session != session and not take_over:
            raise Conflict(
                f"turn {self._open.number} of another session is open",
                object=f"sandbox {self.record.name}",
                hint="end it there, or take over (take_over, turnkeep turn begin --take-over)",
            )
        same = self._open.session == session
        return await self._abandon("its harness began another turn" if same else "another session took over")

    async def _abandon(self, reason: str) -> TurnNumber:
        if self._open is None:
            return NO_TURN
        closing = self._close_turn(
            self._open,
            TurnState.ABANDONED,
            reason,
            time.monotonic_ns(),
            abandoned=True,
            state_reason=reason,
        )
        return (await to_its_end(closing)).number

    async def _late_end(self, turn: Turn, labels: Mapping[str, str], metadata: TurnMetadata) -> Turn:
        """Answer an EndTurn for a turn that is closed: the same again, or late for an abandoned one."""
        if turn.abandoned and not turn.labels and turn.metadata == TurnMetadata():
            return await self.update(
                "turn_ended_late", turn.label, turn=turn, labels=dict(labels), metadata=metadata
            )
        if dict(turn.labels) != dict(labels) or turn.metadata != metadata:
            raise Conflict(
                "it was ended before, with other labels or metadata",
                object=f"turn {turn.number} of {self.record.name}",
            )
        return turn

    async def _close_turn(
        self, turn: Turn, state: TurnState, message: str, ended_ns: int, **fields: Any
    ) -> Turn:
        kind = "turn_abandoned" if state is TurnState.ABANDONED else "turn_ended"
        turn = await self.update(
            kind, message or turn.label, turn=turn, state=state, ended_at_ns=time.time_ns(), **fields
        )
        self._open = None
        self._active[turn.number] = turn
        self._ended_ns[turn.number] = ended_ns
        self._before_consistent += 1
        self.deps.spawn(self.process(turn))
        # It has to stand in line before whoever holds the sandbox next: a restore
        # must not come between a turn and its capture.
        await asyncio.sleep(0)
        return turn

    async def _pass_gate(self, timeout_s: float) -> None:
        if not await self._happens(lambda: self._before_consistent == 0, timeout_s):
            raise GateTimeout(
                f"the capture of an earlier turn is not past its consistent point after {timeout_s:g} s",
                object=f"sandbox {self.record.name}",
                hint="try again, or run the tool anyway: its effects then count to the earlier turn",
            )

    async def _happens(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a condition; return whether it holds in time. Without time, look once."""
        async with self._changed:
            if condition():
                return True
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_s)
            except TimeoutError:
                return condition()
            return True

    # -- captures ----------------------------------------------------------

    async def process(self, turn: Turn) -> None:
        """Bring an ended turn to DURABLE, SKIPPED or FAILED. Never raises."""
        opened = False

        async def open_gate() -> None:
            nonlocal opened
            if not opened:
                opened = True
                self._before_consistent -= 1
                await self._notify()

        try:
            async with self._work:
                await self._keep(turn, open_gate)
        except Exception as error:
            await self._fail(turn.number, error)
        finally:
            await open_gate()
            self._active.pop(turn.number, None)
            self._ended_ns.pop(turn.number, None)
            await self._notify()

    def expect(self) -> None:
        """Keep the gate shut until the `process` that follows opens it."""
        self._before_consistent += 1

    async def _keep(self, turn: Turn, open_gate: Callable[[], Any]) -> None:
        ended_ns = self._ended_ns.get(turn.number, time.monotonic_ns())
        capture_pool = self.deps.pools.capture
        container = await self.open()
        inspection = await run(capture_pool, self.deps.checkpointer.inspect, container, self.baseline)
        decision = inspection.decision
        timings = replace(turn.timings, inspect_ns=time.monotonic_ns() - ended_ns)
        self._advance(turn, state=TurnState.CLASSIFIED, decision=decision, timings=timings)
        if decision.turn_class is TurnClass.STATELESS:
            await run(capture_pool, self.deps.checkpointer.settle, inspection, self.baseline)
            await self._classified(turn, decision)
            head = self.record.head_checkpoint_id
            await self.update(
                "skipped", decision.reason, turn=turn, state=TurnState.SKIPPED, checkpoint_id=head
            )
            return
        with self._undoing(inspection):
            await self._keep_changed(turn, container, inspection, timings, ended_ns, open_gate)

    async def _keep_changed(
        self,
        turn: Turn,
        container: Container,
        inspection: Inspection,
        timings: TurnTimings,
        ended_ns: int,
        open_gate: Callable[[], Any],
    ) -> None:
        decision = inspection.decision
        capture = await self._capture(inspection)
        timings = replace(timings, freeze_ns=capture.freeze_ns, captured_ns=time.monotonic_ns() - ended_ns)
        # From here on the sandbox may run: who waits at the gate is told before
        # anything is written.
        self._advance(turn, state=TurnState.CAPTURED, timings=timings)
        await open_gate()
        await self._classified(turn, decision)
        await self.update("captured", decision.reason, turn=turn)
        draft = self._draft(container, capture, Origin.TURN, decision, turn=turn.number)
        checkpoint = await self.commit(capture, draft)
        timings = replace(timings, durable_ns=time.monotonic_ns() - ended_ns)
        await self.record_checkpoint(checkpoint, turn, timings=timings)

    @contextmanager
    def _undoing(self, inspection: Inspection) -> Iterator[None]:
        """Let go of a capture that is not recorded in the end, and of its baseline.

        The next turn is then compared with the last one that was, and finds what
        this one changed.
        """
        before = self.baseline
        try:
            yield
        except BaseException:
            self.baseline = before
            inspection.drop()
            raise

    async def _classified(self, turn: Turn, decision: Decision) -> None:
        details = {"class": decision.turn_class.value, "reason": decision.reason}
        await self.record_event("classified", decision.reason, turn=turn, details=details)

    def _advance(self, turn: Turn, **changes: Any) -> None:
        """Move an active turn on in memory; waiters are told with the next notification."""
        self._active[turn.number] = replace(self._active.get(turn.number, turn), **changes)

    async def _fail(self, number: TurnNumber, error: Exception) -> None:
        reason = describe(error)
        if not isinstance(error, (TurnkeepError, StoreError, OSError)):
            log.exception("capture failed unexpectedly", sandbox=self.record.name, turn=number)
        turn = self.turn(number)
        self._advance(turn, state=TurnState.FAILED, state_reason=reason)
        try:
            await self.update("failed", reason, turn=turn)
        except Exception as unrecorded:
            # The disk is full, say. Who waits has to learn of it all the same;
            # recovery finds the turn ended and not kept.
            self._unrecorded[number] = self._active[number]
            log.error("failure not recorded", sandbox=self.record.name, turn=number, cause=str(unrecorded))

    async def _capture(
        self, inspection: Inspection, before_thaw: Callable[[], None] | None = None
    ) -> Capture:
        return await run(
            self.deps.pools.capture,
            self.deps.checkpointer.capture,
            inspection,
            self.baseline,
            before_thaw or (lambda: None),
        )

    async def take(
        self,
        origin: Origin,
        *,
        name: str = "",
        tags: tuple[str, ...] = (),
        before_thaw: Callable[[], None] | None = None,
        even_if_unchanged: bool = True,
        answers: Callable[[Checkpoint], Iterable[Change]] = lambda checkpoint: (),
    ) -> Checkpoint | None:
        """Take a checkpoint of the present state; the caller holds the sandbox (`holding`).

        Returns None if nothing changed and that is enough. What `answers` gives is
        journaled together with the checkpoint.
        """
        taking = self._take(origin, name, tags, before_thaw, even_if_unchanged, answers)
        return await to_its_end(taking)

    async def _take(
        self,
        origin: Origin,
        name: str,
        tags: tuple[str, ...],
        before_thaw: Callable[[], None] | None,
        even_if_unchanged: bool,
        answers: Callable[[Checkpoint], Iterable[Change]],
    ) -> Checkpoint | None:
        container = await self.open()
        pool = self.deps.pools.capture
        inspection = await run(pool, self.deps.checkpointer.inspect, container, self.baseline)
        unchanged = inspection.decision.turn_class is TurnClass.STATELESS
        if unchanged and not even_if_unchanged and not inspection.changed:
            await run(pool, self.deps.checkpointer.settle, inspection, self.baseline)
            return None
        decision = inspection.decision
        if self.record.head_checkpoint_id is None:
            decision = replace(decision, reason="the first checkpoint: the state at the attach", unsure=())
        with self._undoing(inspection):
            capture = await self._capture(inspection, before_thaw)
            draft = self._draft(container, capture, origin, decision, name=name, tags=tags)
            checkpoint = await self.commit(capture, draft)
            await self.record_checkpoint(checkpoint, None, changes=answers(checkpoint))
        return checkpoint

    async def commit(self, capture: Capture, draft: Checkpoint) -> Checkpoint:
        """Make a capture durable and take it as the new baseline."""
        ancestors = await run(self.deps.pools.journal, self._ancestors)
        committed = await run(
            self.deps.pools.commit,
            self.deps.checkpointer.commit,
            capture,
            self.baseline,
            metadata_of(draft, ancestors),
        )
        checkpoint = checkpoint_of(committed.snapshot)
        assert checkpoint is not None
        self.baseline = committed.baseline
        self.baseline.checkpoint_id = checkpoint.id
        return checkpoint

    async def record_checkpoint(
        self,
        checkpoint: Checkpoint,
        turn: Turn | None,
        timings: TurnTimings | None = None,
        changes: Iterable[Change] = (),
    ) -> None:
        """Journal a checkpoint as durable, and as the sandbox's head."""
        fields: dict[str, Any] = {}
        if turn is not None:
            fields = {
                "state": TurnState.DURABLE,
                "checkpoint_id": checkpoint.id,
                "changed_files": checkpoint.changed_files,
                "changed_bytes": checkpoint.changed_bytes,
                "stored_bytes": checkpoint.stored_bytes,
                "timings": timings or turn.timings,
            }
        await self.update(
            "durable",
            checkpoint.decision.reason,
            turn=turn,
            record={"head_checkpoint_id": checkpoint.id, "mounts": checkpoint.mounts},
            details={"checkpoint": checkpoint.id, "stored_bytes": checkpoint.stored_bytes},
            changes=(put_checkpoint(checkpoint), *changes),
            **fields,
        )

    def _ancestors(self) -> list[CheckpointId]:
        found: list[CheckpointId] = []
        at = self.record.head_checkpoint_id
        while at is not None and len(found) < 64:
            found.append(at)
            checkpoint = self.deps.journal.checkpoint(at)
            at = checkpoint.parent_id if checkpoint is not None else None
        return found

    def _draft(
        self,
        container: Container,
        capture: Capture,
        origin: Origin,
        decision: Decision,
        *,
        turn: TurnNumber = NO_TURN,
        name: str = "",
        tags: tuple[str, ...] = (),
    ) -> Checkpoint:
        """Return what is known of a checkpoint before it is committed."""
        not_captured = [f"{mount.target}: {mount.reason}" for mount in container.mounts if not mount.covered]
        if capture.stateful:
            listed = ", ".join(str(process) for process in capture.stateful[:10])
            not_captured.insert(0, f"{NOT_CAPTURED} ({listed})")
        inspected = container.inspected
        return Checkpoint(
            id=CheckpointId(""),
            sandbox_id=self.record.id,
            parent_id=self.record.head_checkpoint_id,
            turn=turn,
            origin=origin,
            created_at_ns=capture.captured_at_ns,
            digest="",
            tree="",
            fidelity=Fidelity.FILES_ONLY if capture.stateful else Fidelity.COMPLETE,
            decision=decision,
            mounts=container.mounts,
            not_captured=tuple(not_captured),
            name=name,
            tags=tags,
            image=container.image,
            image_id=container.image_id,
            layers=container.layers,
            container={
                "Id": inspected["Id"],
                "Name": container.name,
                "Config": inspected["Config"],
                "HostConfig": inspected["HostConfig"],
                "Networks": sorted((inspected.get("NetworkSettings") or {}).get("Networks") or ()),
                "Mounts": inspected.get("Mounts") or [],
            },
        )

    # -- the container -----------------------------------------------------

    async def open(self) -> Container:
        """Return the container as it runs now.

        Raises:
            ContainerNotRunning, ContainerNotFound, EngineUnavailable, Unsupported.
        """
        if self.container is not None and self.container.is_current():
            return self.container
        container = await run(
            self.deps.pools.engine,
            open_container,
            self.deps.engine,
            self.deps.freezer,
            self.record.container_id,
            self.places,
            self.record.mounts,
        )
        self.use(container)
        return container

    def use(self, container: Container) -> None:
        """Take this as the container from now on."""
        if self.container is not None:
            self.container.close()
        self.container = container
        if container.running or self.places is None:
            self.places = container.places

    async def on_container_event(self, state: ContainerState, message: str, *, name: str = "") -> None:
        """Note what happened to the container."""
        if state is not ContainerState.RUNNING and self.container is not None:
            self.container.close()
            self.container = None
        fields: dict[str, Any] = {"container_state": state, "name": name or self.record.name, "note": message}
        if replace(self.record, **fields) != self.record:
            await self.update("container", message or state.value, record=fields)

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """Keep captures and the gate shut for a `with` block: a restore, a checkpoint by hand."""
        self._before_consistent += 1
        try:
            async with self._work:
                yield
        finally:
            self._before_consistent -= 1
            await self._notify()

    async def update(
        self,
        kind: str,
        message: str,
        *,
        turn: Turn | None = None,
        record: Mapping[str, Any] | None = None,
        details: Mapping[str, Any] | None = None,
        changes: Iterable[Change] = (),
        **fields: Any,
    ) -> Turn:
        """Journal an event together with new fields of a turn and of the record.

        One at a time: what is written builds on what was written last, so that a
        harness state that arrives during a commit, say, is lost by neither.
        """
        return await to_its_end(self._update(kind, message, turn, record, details, tuple(changes), fields))

    async def _update(
        self,
        kind: str,
        message: str,
        turn: Turn | None,
        record: Mapping[str, Any] | None,
        details: Mapping[str, Any] | None,
        changes: tuple[Change, ...],
        fields: Mapping[str, Any],
    ) -> Turn:
        async with self._writing:
            if turn is not None:
                turn = replace(await self._latest(turn), **fields)
                changes = (*changes, put_turn(turn))
            updated = replace(self.record, **(record or {}))
            if record:
                changes = (*changes, put_sandbox(updated))
            await self.record_event(kind, message, turn=turn, details=details, changes=changes)
            self.record = updated
            if turn is not None and turn.number in self._active:
                # It may have moved on in memory meanwhile.
                turn = replace(self._active[turn.number], **fields)
                self._active[turn.number] = turn
                if self._open is not None and self._open.number == turn.number:
                    self._open = turn
        await self._notify()
        return turn  # type: ignore[return-value]

    async def _latest(self, turn: Turn) -> Turn:
        """Return a turn as it is now. The caller's may be from before it waited for its place:
        what was journaled of the turn meanwhile must not be undone."""
        active = self._active.get(turn.number)
        if active is not None:
            return active
        journal = self.deps.journal
        return await run(self.deps.pools.journal, journal.turn, turn.sandbox_id, turn.number) or turn

    async def record_event(
        self,
        kind: str,
        message: str,
        *,
        turn: Turn | None = None,
        details: Mapping[str, Any] | None = None,
        changes: Iterable[Change] = (),
    ) -> Event:
        """Journal something about this sandbox, durably, and wake who waits for it."""
        event = await run(
            self.deps.pools.journal,
            self.deps.journal.append,
            kind,
            message,
            sandbox=self.record,
            turn=turn.number if turn is not None else NO_TURN,
            details=details,
            changes=tuple(changes),
        )
        await self._notify()
        return event

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def describe(error: BaseException) -> str:
    """Return an error in one line, for a turn's reason."""
    if isinstance(error, StoreFull):
        return f"the disk under the state directory is full: {error}"
    if isinstance(error, TurnkeepError):
        return f"{error.message} ({error.object})" if error.object else error.message
    if isinstance(error, (StoreError, OSError)):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (a defect; the daemon's log has the details)"


def head_baseline(checkpoint: Checkpoint | None) -> Baseline:
    """Return what is known of a sandbox whose files were not watched: its tree alone."""
    if checkpoint is None:
        return Baseline()
    return Baseline(TreeId(bytes.fromhex(checkpoint.tree)), checkpoint.id)
