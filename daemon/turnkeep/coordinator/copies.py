"""Copies of sandboxes: a checkpoint restored into a new container, and forks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from turnkeep_store.points import reached

from turnkeep.coordinator import creation
from turnkeep.coordinator import restore as restoring
from turnkeep.coordinator.deps import run
from turnkeep.coordinator.loading import let_go, load
from turnkeep.coordinator.registry import Registry
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import InvalidRequest
from turnkeep.journal import Delete, Intent, put_intent
from turnkeep.model import Checkpoint, ContainerState, Origin, SandboxId, SandboxRecord, TurnNumber
from turnkeep.points import Point
from turnkeep.restorer.identity import OWN_IDENTITY
from turnkeep.restorer.plan import Progress, Restored
from turnkeep.restorer.processes import Ready
from turnkeep.runtime.engine import owner_of


@dataclass(frozen=True, slots=True)
class Forked:
    """The copies that a fork made."""

    sandboxes: tuple[SandboxCoordinator, ...]
    checkpoint: Checkpoint
    notes: tuple[str, ...]
    total_ns: int


class Copies:
    """Makes new containers from checkpoints, and sandboxes of them. Lives on the event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._deps = registry.deps

    async def restore_new(
        self, wish: restoring.Wish, new_name: str, progress: Progress
    ) -> tuple[SandboxCoordinator, restoring.Outcome]:
        """Restore a checkpoint into a new container.

        If the sandbox's own container is gone, the sandbox goes on in the new
        one; else the new container is a sandbox of its own.
        """
        if not new_name:
            raise InvalidRequest("a new container needs a name", hint="--new NAME")
        started = time.monotonic_ns()
        checkpoint = wish.checkpoint
        owner = self._registry.sandboxes.get(checkpoint.sandbox_id)
        gone = owner is not None and owner.record.container_state is ContainerState.GONE
        creation.check_new(checkpoint, original_exists=owner is not None and not gone)
        host = (
            SandboxCoordinator(_blank(checkpoint, new_name), self._deps)
            if not gone or owner is None
            else owner
        )
        head_turn = wish.turn.number if wish.turn is not None else checkpoint.turn
        ready = await load(host, checkpoint)
        try:
            restored = await self._make(host, checkpoint, new_name, ready, head_turn if gone else 0, progress)
        finally:
            let_go(self._deps, ready)
        outcome = restoring.Outcome(
            mode="new",
            mode_reason="asked for",
            checkpoint=checkpoint,
            safety_id=None,
            restored=restored,
            total_ns=time.monotonic_ns() - started,
            notes=(*restored.notes, OWN_IDENTITY),
            turn=TurnNumber(head_turn),
        )
        return host, outcome

    async def _make(
        self,
        host: SandboxCoordinator,
        checkpoint: Checkpoint,
        new_name: str,
        ready: Ready,
        head_turn: int,
        progress: Progress,
    ) -> Restored:
        """Make a new container from a checkpoint, and take `host` as its sandbox."""
        async with host.holding():
            intent = Intent(
                id=secrets.token_hex(16),
                kind="new",
                sandbox_id=host.record.id,
                details={"name": new_name, "checkpoint": checkpoint.id},
            )
            try:
                await host.record_event("restoring", f"into {new_name}", changes=(put_intent(intent),))
                reached(Point.NEW_INTENDED)
                restored, baseline, container = await run(
                    self._deps.pools.long, creation.restore_new, host, checkpoint, intent, ready, progress
                )
            except BaseException:
                await host.record_event("failed", f"into {new_name}", changes=(Delete("intent", intent.id),))
                raise
            host.use(container)
            host.baseline = baseline
            host.record = replace(
                host.record, name=new_name, container_id=container.id, attached=True, mounts=container.mounts
            )
            self._registry.add(host)
            await restoring.finish(host, checkpoint, intent, head_turn)
            reached(Point.NEW_RECORDED)
        return restored

    async def fork(
        self, name: str, checkpoint: Checkpoint | None, count: int, names: Sequence[str], progress: Progress
    ) -> Forked:
        """Make independent copies of a sandbox; the original goes on untouched.

        Without a checkpoint the present state is captured first. All copies are
        there in the end, or none.

        Raises:
            Conflict: a name is taken, or the copies would share a folder of the host.
            InvalidRequest: the names do not fit the number.
        """
        started = time.monotonic_ns()
        sandbox = self._registry.find(name)
        if checkpoint is None:
            checkpoint = await self._present(self._registry.attached(name))
        creation.check_new(checkpoint, original_exists=True)
        self._registry.check_room(sandboxes=count or len(names) or 1)
        chosen = creation.fork_names(self._deps.engine, sandbox.record.name, count, names)
        made: list[SandboxCoordinator] = []
        try:
            for new_name in chosen:
                progress("fork", len(made), len(chosen))
                made.append(await self._fork_once(checkpoint, new_name, progress))
                reached(Point.FORK_ONE_MADE)
        except BaseException:
            for each in made:
                await self._unmake(each)
            raise
        notes = creation.fork_notes(checkpoint)
        return Forked(tuple(made), checkpoint, notes, time.monotonic_ns() - started)

    async def _fork_once(
        self, checkpoint: Checkpoint, new_name: str, progress: Progress
    ) -> SandboxCoordinator:
        host = SandboxCoordinator(_blank(checkpoint, new_name), self._deps)
        ready = await load(host, checkpoint)
        try:
            await self._make(host, checkpoint, new_name, ready, 0, progress)
        finally:
            let_go(self._deps, ready)
        return host

    async def _present(self, sandbox: SandboxCoordinator) -> Checkpoint:
        """Return a checkpoint of what is there now."""
        async with sandbox.holding():
            taken = await sandbox.take(Origin.FORK, even_if_unchanged=False)
        if taken is not None:
            return taken
        return (await self._registry.checkpoint("", checkpoint=sandbox.record.head_checkpoint_id or ""))[0]

    async def _unmake(self, sandbox: SandboxCoordinator) -> None:
        """Remove a copy whose siblings could not be made."""
        self._registry.remove(sandbox.record.id)
        await run(
            self._deps.pools.engine, creation.remove_new, self._deps.engine, sandbox.record.container_id
        )
        await sandbox.update("failed", "its fork failed", record={"attached": False})


def _blank(checkpoint: Checkpoint, name: str) -> SandboxRecord:
    """Return the record of a sandbox that begins at another's checkpoint."""
    return SandboxRecord(
        id=SandboxId(secrets.token_hex(8)),
        name=name,
        container_id="",
        image=checkpoint.image,
        image_id=checkpoint.image_id,
        container_state=ContainerState.RUNNING,
        attached=True,
        attached_at_ns=time.time_ns(),
        head_checkpoint_id=checkpoint.id,
        owner=owner_of((checkpoint.container.get("Config") or {}).get("Labels")),
    )
