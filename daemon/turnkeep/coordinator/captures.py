"""Captures: from the end of a turn, or an operator's wish, to a durable checkpoint.

A capture holds `_work` until it is durable, so that the next one has a parent to
build on; the gate opens earlier, at the consistent point.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import structlog
from turnkeep_store.errors import StoreError, StoreFull
from turnkeep_store.ids import TreeId
from turnkeep_store.points import reached

from turnkeep.checkpointer.capture import Capture, Inspection
from turnkeep.checkpointer.states import Audit
from turnkeep.checkpointer.view import Baseline
from turnkeep.checkpoints import checkpoint_of, metadata_of
from turnkeep.coordinator.deps import run, to_its_end
from turnkeep.coordinator.state import SandboxState
from turnkeep.errors import (
    TurnkeepError,
)
from turnkeep.journal import Change, put_checkpoint
from turnkeep.model import (
    NO_TURN,
    Checkpoint,
    CheckpointId,
    Decision,
    Origin,
    Turn,
    TurnClass,
    TurnNumber,
    TurnState,
    TurnTimings,
)
from turnkeep.points import Point
from turnkeep.runtime.container import Container

log = structlog.get_logger()

_ANSWER_S = 0.001
_EXEC_POLL_S = 0.05
_ANCESTORS = 64
"""As many are named in a checkpoint's record, for when the journal has to be made anew."""


class Captures(SandboxState):
    """The part of a sandbox's coordinator that keeps what changed."""

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
                # The answer to the call that ended it goes out first: to inspect takes the
                # interpreter, and the harness would wait for that.
                await asyncio.sleep(_ANSWER_S)
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
        await self._wait_for_execs(container)
        inspection, woken = await run(capture_pool, self._inspect, container)
        decision = woken or inspection.decision
        timings = replace(turn.timings, inspect_ns=time.monotonic_ns() - ended_ns)
        self._advance(turn, state=TurnState.CLASSIFIED, decision=decision, timings=timings)
        if decision.turn_class is TurnClass.STATELESS:
            await run(capture_pool, self.deps.checkpointer.settle, inspection, self.baseline)
            reached(Point.TURN_SETTLED)
            await self._classified(turn, decision)
            head = self.record.head_checkpoint_id
            await self.update(
                "skipped", decision.reason, turn=turn, state=TurnState.SKIPPED, checkpoint_id=head
            )
            reached(Point.TURN_SKIPPED)
            return
        with self._undoing(inspection):
            await self._keep_changed(turn, container, inspection, timings, ended_ns, open_gate)

    def _inspect(self, container: Container) -> tuple[Inspection, Decision | None]:
        """Inspect a container; in one call, since each change of thread takes its time."""
        checkpointer, baseline = self.deps.checkpointer, self.baseline
        inspection = checkpointer.inspect(container, baseline)
        reached(Point.TURN_INSPECTED)
        return inspection, checkpointer.settle_woken(inspection, baseline)

    async def _wait_for_execs(self, container: Container) -> None:
        """With `exec_sessions = "wait"`, wait for commands that a client of `docker exec` waits for."""
        settings = self.deps.config.process
        if settings.exec_sessions != "wait":
            return
        deadline = time.monotonic() + settings.exec_wait_s
        while await run(self.deps.pools.capture, self.deps.processes.attached, container):
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(_EXEC_POLL_S)

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
        reached(Point.CAPTURE_RECORDED)
        await self._vet(capture)
        draft = self._draft(container, capture, Origin.TURN, decision, turn=turn.number)
        checkpoint = await self.commit(capture, draft)
        timings = replace(timings, durable_ns=time.monotonic_ns() - ended_ns)
        await self.record_checkpoint(checkpoint, turn, timings=timings)

    async def _vet(self, capture: Capture) -> None:
        """Leave out of a dump what a restore would refuse, before anybody is told what it holds."""
        if capture.dump is not None:
            await run(self.deps.pools.commit, capture.dump.vet, capture.inspection.view)

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
        reached(Point.TURN_CLASSIFIED)

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

    async def _capture(self, inspection: Inspection) -> Capture:
        capture = await run(
            self.deps.pools.capture, self.deps.checkpointer.capture, inspection, self.baseline
        )
        reached(Point.CAPTURE_THAWED)
        return capture

    async def take(
        self,
        origin: Origin,
        *,
        name: str = "",
        tags: tuple[str, ...] = (),
        captured: Callable[[], Awaitable[None]] | None = None,
        even_if_unchanged: bool = True,
        answers: Callable[[Checkpoint], Iterable[Change]] = lambda checkpoint: (),
    ) -> Checkpoint | None:
        """Take a checkpoint of the present state; the caller holds the sandbox (`holding`).

        Returns None if nothing changed and that is enough. `captured` is called once
        the sandbox may run again. What `answers` gives is journaled together with the
        checkpoint.
        """
        taking = self._take(origin, name, tags, captured, even_if_unchanged, answers)
        return await to_its_end(taking)

    async def _take(
        self,
        origin: Origin,
        name: str,
        tags: tuple[str, ...],
        captured: Callable[[], Awaitable[None]] | None,
        even_if_unchanged: bool,
        answers: Callable[[Checkpoint], Iterable[Change]],
    ) -> Checkpoint | None:
        container = await self.open()
        inspection = await run(self.deps.pools.capture, self._changed_at_all, container, even_if_unchanged)
        if inspection is None:
            return None
        decision = inspection.decision
        if self.record.head_checkpoint_id is None:
            decision = replace(decision, reason="the first checkpoint: the state at the attach", unsure=())
        with self._undoing(inspection):
            capture = await self._capture(inspection)
            if captured is not None:
                await captured()
            await self._vet(capture)
            draft = self._draft(container, capture, origin, decision, name=name, tags=tags)
            checkpoint = await self.commit(capture, draft)
            await self.record_checkpoint(checkpoint, None, changes=answers(checkpoint))
        return checkpoint

    def _changed_at_all(self, container: Container, even_if_unchanged: bool) -> Inspection | None:
        """Inspect a container; None if nothing changed, and that is enough."""
        checkpointer, baseline = self.deps.checkpointer, self.baseline
        inspection = checkpointer.inspect(container, baseline)
        unchanged = inspection.decision.turn_class is TurnClass.STATELESS and not inspection.changed
        if not unchanged or even_if_unchanged:
            return inspection
        checkpointer.settle(inspection, baseline)
        return None

    async def audit(self) -> Audit:
        """Compare what was reported of changes with a scan; the gate waits meanwhile."""
        async with self.holding():
            container = await self.open()
            return await run(
                self.deps.pools.long, self.deps.checkpointer.states.audit, container, self.baseline
            )

    async def commit(self, capture: Capture, draft: Checkpoint) -> Checkpoint:
        """Make a capture durable and take it as the new baseline."""
        head = self.record.head_checkpoint_id
        ancestors: list[CheckpointId] = []
        if head is not None:
            ancestors = await run(self.deps.pools.journal, self.deps.journal.ancestors, head, _ANCESTORS)
        committed = await run(
            self.deps.pools.commit,
            self.deps.checkpointer.commit,
            capture,
            self.baseline,
            metadata_of(draft, ancestors),
        )
        reached(Point.COMMIT_STORED)
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
        reached(Point.COMMIT_RECORDED)
        await run(self.deps.pools.commit, self.baseline.fold)

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
        not_captured[:0] = capture.missing
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
            fidelity=capture.fidelity,
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
