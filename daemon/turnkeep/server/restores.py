"""The gRPC methods that bring sandboxes back, or make copies of them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.coordinator.copies import Copies
from turnkeep.coordinator.deps import run
from turnkeep.coordinator.owned import Owned
from turnkeep.coordinator.registry import Registry
from turnkeep.coordinator.restore import Outcome, Wish
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import InvalidRequest
from turnkeep.harness_state import read_state
from turnkeep.journal import Change, put_answer
from turnkeep.model import Checkpoint, CheckpointId, SandboxId, Turn
from turnkeep.server import conversions as convert
from turnkeep.server.callers import Role, current
from turnkeep.server.progress import Tell, with_progress

M = TypeVar("M", pb.RestoreResult, pb.ForkResult)


class RestoreCalls:
    """The part of the service for restores and forks."""

    def __init__(self, registry: Registry) -> None:
        self._all = registry
        self._deps = registry.deps
        self._in_flight: dict[str, asyncio.Future[Any]] = {}

    @property
    def _registry(self) -> Registry:
        """The sandboxes that whoever calls may know of."""
        caller = current()
        if caller.role is not Role.HARNESS:
            return self._all
        return Owned(self._all, caller.name, self._deps.config.access.quota)

    @staticmethod
    def _request_id(request_id: str) -> str:
        """Return the id under which an answer is kept: nobody gets another's."""
        caller = current()
        return f"{caller.name}/{request_id}" if request_id and caller.role is Role.HARNESS else request_id

    async def RestoreSandbox(
        self, request: pb.RestoreSandboxRequest, context: Any
    ) -> AsyncIterator[pb.RestoreSandboxResponse]:
        async def work(progress: Tell) -> pb.RestoreResult:
            return await self._restore(request, progress)

        self._registry.check_room()
        async for step in self._once(self._request_id(request.request_id), pb.RestoreResult, work):
            if isinstance(step, pb.Progress):
                yield pb.RestoreSandboxResponse(progress=step)
            else:
                yield pb.RestoreSandboxResponse(result=await self._completed(step))

    async def ForkSandbox(
        self, request: pb.ForkSandboxRequest, context: Any
    ) -> AsyncIterator[pb.ForkSandboxResponse]:
        async def work(progress: Tell) -> pb.ForkResult:
            return await self._fork(request, progress)

        async for step in self._once(self._request_id(request.request_id), pb.ForkResult, work):
            if isinstance(step, pb.Progress):
                yield pb.ForkSandboxResponse(progress=step)
            else:
                yield pb.ForkSandboxResponse(result=step)

    async def _once(
        self, request_id: str, kind: type[M], work: Callable[[Tell], Awaitable[M]]
    ) -> AsyncIterator[pb.Progress | M]:
        """Do work and yield its progress and result; the same request again gets the same result."""
        kept = self._deps.journal.answer(request_id) if request_id else None
        if kept is not None:
            yield kind.FromString(bytes.fromhex(kept["result"]))
            return
        first = self._in_flight.get(request_id) if request_id else None
        if first is not None:
            # The same request again, after its caller's connection broke.
            yield await asyncio.shield(first)
            return
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def once(progress: Tell) -> M:
            self._in_flight[request_id] = done
            try:
                done.set_result(await work(progress))
            except Exception as error:
                done.set_exception(error)
            finally:
                self._in_flight.pop(request_id, None)
            result: M = await done
            return result

        async for step in with_progress(once):
            yield step

    async def _fork(self, request: pb.ForkSandboxRequest, progress: Tell) -> pb.ForkResult:
        checkpoint = None
        if request.HasField("ref"):
            checkpoint, _ = await self._find(request.sandbox, request.ref)
        forked = await Copies(self._registry).fork(
            request.sandbox, checkpoint, request.count, list(request.names), progress
        )
        result = pb.ForkResult(
            sandboxes=[await self._sandbox(each) for each in forked.sandboxes],
            checkpoint_id=forked.checkpoint.id,
            notes=list(forked.notes),
            total_ns=forked.total_ns,
        )
        request_id = self._request_id(request.request_id)
        await self._keep(request_id, "fork", self._registry.find(request.sandbox), result)
        return result

    async def _keep(
        self,
        request_id: str,
        kind: str,
        sandbox: SandboxCoordinator,
        result: pb.RestoreResult | pb.ForkResult,
    ) -> None:
        """Journal an answer, for the same request again."""
        changes = self._answer(request_id, kind, sandbox, result)
        if changes:
            await sandbox.record_event(f"{kind}_answered", "", changes=changes)

    def _answer(
        self,
        request_id: str,
        kind: str,
        sandbox: SandboxCoordinator,
        result: pb.RestoreResult | pb.ForkResult,
    ) -> tuple[Change, ...]:
        if not request_id:
            return ()
        value = {"result": result.SerializeToString().hex()}
        return (put_answer(request_id, kind, sandbox.record.id, value),)

    async def _restore(self, request: pb.RestoreSandboxRequest, progress: Tell) -> pb.RestoreResult:
        checkpoint, turn = await self._find(request.sandbox, request.ref)
        live = {pb.RESTORE_MODE_LIVE: True, pb.RESTORE_MODE_COLD: False}.get(request.mode)
        full = {pb.VERIFY_MODE_FULL: True, pb.VERIFY_MODE_CHANGED: False}.get(request.verify)
        new = request.mode == pb.RESTORE_MODE_NEW or bool(request.new_name)
        request_id = self._request_id(request.request_id)

        def answers(outcome: Outcome) -> tuple[Change, ...]:
            sandbox = self._registry.find(request.sandbox)
            return self._answer(request_id, "restore", sandbox, _result(sandbox, outcome))

        wish = Wish(
            checkpoint=checkpoint,
            turn=turn,
            live=live,
            skip_safety=request.skip_safety_checkpoint,
            replace=request.replace,
            full=full,
            answers=answers,
        )
        if not new:
            sandbox, outcome = await self._registry.restore(request.sandbox, wish, progress)
            return _result(sandbox, outcome)
        self._registry.check_room(sandboxes=1)
        sandbox, outcome = await Copies(self._registry).restore_new(wish, request.new_name, progress)
        result = _result(sandbox, outcome)
        await self._keep(request_id, "restore", sandbox, result)
        return result

    async def _completed(self, result: pb.RestoreResult) -> pb.RestoreResult:
        """Add what the recorded answer leaves out: the sandbox as it is now, and the turn's harness state."""
        sandbox = self._registry.sandboxes.get(SandboxId(result.sandbox.id))
        if sandbox is not None:
            result.sandbox.CopyFrom(await self._sandbox(sandbox))
        checkpoint = self._deps.journal.checkpoint(CheckpointId(result.checkpoint_id))
        owner = self._registry.sandboxes.get(checkpoint.sandbox_id) if checkpoint is not None else None
        if owner is None or not result.turn:
            return result
        state = owner.turn(result.turn).harness_state
        if state is not None:
            read = functools.partial(read_state, self._deps.repository, state)
            result.harness_state = await run(self._deps.pools.commit, lambda: b"".join(read()))
            result.has_harness_state = True
        return result

    async def _sandbox(self, sandbox: SandboxCoordinator) -> pb.Sandbox:
        journal = self._deps.journal
        record = sandbox.record

        def figures() -> tuple[Mapping[str, int], int]:
            return self._registry.counts(record.id), journal.stored_bytes(record.id)

        counts, stored_bytes = await run(self._deps.pools.journal, figures)
        open_turn = sandbox.open_turn
        return convert.sandbox_message(
            record,
            counts,
            stored_bytes,
            open_turn.number if open_turn is not None else 0,
        )

    async def _find(self, sandbox: str, ref: pb.CheckpointRef) -> tuple[Checkpoint, Turn | None]:
        match ref.WhichOneof("ref"):
            case "turn":
                return await self._registry.checkpoint(sandbox, turn=ref.turn)
            case "checkpoint":
                return await self._registry.checkpoint(sandbox, checkpoint=ref.checkpoint)
        raise InvalidRequest("neither a checkpoint nor a turn was named")


def _result(sandbox: SandboxCoordinator, outcome: Outcome) -> pb.RestoreResult:
    """Return what is recorded as the answer; of the sandbox only which one it is."""
    restored = outcome.restored
    return pb.RestoreResult(
        sandbox=pb.Sandbox(id=sandbox.record.id, name=sandbox.record.name),
        checkpoint_id=outcome.checkpoint.id,
        mode=convert.RESTORE_MODES[outcome.mode],
        mode_reason=outcome.mode_reason,
        safety_checkpoint_id=outcome.safety_id or "",
        expected_digest=outcome.checkpoint.digest,
        actual_digest=restored.digest,
        verify=pb.VERIFY_MODE_FULL if restored.full else pb.VERIFY_MODE_CHANGED,
        changed_paths=restored.written.paths,
        written_bytes=restored.written.bytes,
        freeze_ns=restored.freeze_ns,
        total_ns=outcome.total_ns,
        notes=list(outcome.notes),
        stopped_processes=list(restored.stopped),
        turn=outcome.turn,
    )
