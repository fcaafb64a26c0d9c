"""All sandboxes: attaching and finding them, and what concerns more than one."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace

import structlog
from turnkeep_store.errors import SnapshotNotFound
from turnkeep_store.ids import SnapshotId
from turnkeep_store.points import reached

from turnkeep.coordinator import restore as restoring
from turnkeep.coordinator.captures import describe
from turnkeep.coordinator.creation import own_name
from turnkeep.coordinator.deps import Deps, run
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import (
    CheckpointNotFound,
    Conflict,
    ContainerNotFound,
    InvalidRequest,
    SandboxNotFound,
    TurnkeepError,
)
from turnkeep.journal import (
    Change,
    Delete,
    put_answer,
    put_checkpoint,
    put_sandbox,
)
from turnkeep.model import (
    Checkpoint,
    CheckpointId,
    ContainerState,
    Origin,
    SandboxId,
    SandboxRecord,
    Turn,
    TurnState,
)
from turnkeep.points import Point
from turnkeep.restorer.plan import Progress
from turnkeep.runtime.container import open_container
from turnkeep.runtime.engine import ENABLE_LABEL, ContainerEvent, owner_of, state_of

log = structlog.get_logger()

_MIN_PREFIX = 4


class Registry:
    """The attached sandboxes by id. Lives on the event loop."""

    def __init__(self, deps: Deps) -> None:
        self.deps = deps
        self.sandboxes: dict[SandboxId, SandboxCoordinator] = {}
        self._attaching = asyncio.Lock()
        self._deleting = asyncio.Lock()

    def sees(self, sandbox_id: SandboxId | None) -> bool:
        """Whether what concerns a sandbox, or none, is for whom this registry is for."""
        return True

    def add(self, sandbox: SandboxCoordinator) -> None:
        """Take in a sandbox."""
        self.sandboxes[sandbox.record.id] = sandbox

    def remove(self, sandbox_id: SandboxId) -> None:
        """Forget a sandbox."""
        self.sandboxes.pop(sandbox_id, None)

    def check_room(self, *, sandboxes: int = 0) -> None:
        """See that a quota, if there is one, has room. Raises ResourceExhausted."""

    # -- finding -----------------------------------------------------------

    def find(self, name: str) -> SandboxCoordinator:
        """Return a sandbox by its id, its container's name, or its container's id (12 digits will do).

        An attached one comes before a detached one, a later one before an
        earlier.

        Raises:
            SandboxNotFound: there is none.
        """
        if not name:
            raise InvalidRequest("no sandbox was named", hint="name one: turnkeep ps lists them")
        ranked = sorted(
            self.sandboxes.values(),
            key=lambda each: (each.record.attached, each.record.attached_at_ns),
            reverse=True,
        )
        for sandbox in ranked:
            record = sandbox.record
            if name in (record.id, record.name, record.container_id):
                return sandbox
        if len(name) >= _MIN_PREFIX:
            found = [each for each in ranked if each.record.container_id.startswith(name)]
            found += [each for each in ranked if each.record.id.startswith(name) and each not in found]
            if len(found) == 1:
                return found[0]
            if found:
                raise InvalidRequest(f"{len(found)} sandboxes begin with {name}", hint="give more digits")
        raise SandboxNotFound(
            "no such sandbox", object=f"sandbox {name}", hint=f"turnkeep attach {name} attaches a container"
        )

    def attached(self, name: str) -> SandboxCoordinator:
        """Return a sandbox that is attached.

        Raises:
            SandboxNotFound: there is none.
            Conflict: it is detached.
        """
        sandbox = self.find(name)
        if not sandbox.record.attached:
            raise Conflict(
                "it is detached", object=f"sandbox {name}", hint=f"turnkeep attach {name} attaches it again"
            )
        return sandbox

    async def checkpoint(
        self, sandbox: str, *, checkpoint: str = "", turn: int | None = None
    ) -> tuple[Checkpoint, Turn | None]:
        """Return a checkpoint by id (shortened or not), name, or turn; with the turn, if it was named.

        Raises:
            CheckpointNotFound, TurnNotFound, InvalidRequest.
        """
        if turn is not None:
            owner = self.find(sandbox)
            found = owner.turn(turn)
            return self._of_turn(owner, found), found
        if not checkpoint:
            raise InvalidRequest("neither a checkpoint nor a turn was named")
        journal = self.deps.journal
        known = journal.checkpoint(CheckpointId(checkpoint))
        if known is not None and self.sees(known.sandbox_id):
            return known, None
        if sandbox:
            owner_id = self.find(sandbox).record.id
            all_of_it = await run(self.deps.pools.long, journal.checkpoints, owner_id)
            named = [each for each in all_of_it if each.name == checkpoint]
            if named:
                return named[-1], None
        ids = journal.checkpoint_ids(checkpoint.lower()) if len(checkpoint) >= _MIN_PREFIX else []
        begin_so = [each for each in map(journal.checkpoint, ids) if each and self.sees(each.sandbox_id)]
        if len(begin_so) > 1:
            raise InvalidRequest(
                f"{len(begin_so)} checkpoints begin with {checkpoint}", hint="give more digits"
            )
        if not begin_so:
            raise CheckpointNotFound(
                "no such checkpoint",
                object=f"checkpoint {checkpoint}",
                hint="turnkeep checkpoint list lists them",
            )
        return begin_so[0], None

    def _of_turn(self, sandbox: SandboxCoordinator, turn: Turn) -> Checkpoint:
        if turn.checkpoint_id is None:
            raise CheckpointNotFound(
                f"turn {turn.number} is {turn.state} and has no checkpoint",
                object=f"sandbox {sandbox.record.name}",
                hint=turn.state_reason or "wait for it: turnkeep turn wait",
            )
        checkpoint = self.deps.journal.checkpoint(turn.checkpoint_id)
        if checkpoint is None:
            raise CheckpointNotFound(
                f"the checkpoint of turn {turn.number} was deleted",
                object=f"sandbox {sandbox.record.name}",
                hint=f"turnkeep checkpoint list {sandbox.record.name} lists what is left",
            )
        return checkpoint

    # -- attaching ---------------------------------------------------------

    async def attach(self, name: str) -> tuple[SandboxCoordinator, bool]:
        """Attach a running container; return its sandbox, and whether it is new.

        Its first checkpoint is begun; the gate keeps its first turn waiting until
        that is past its consistent point.

        Raises:
            ContainerNotFound, ContainerNotRunning, Unsupported, EngineUnavailable.
        """
        if not name:
            raise InvalidRequest("no container was named")
        async with self._attaching:
            inspected = await run(self.deps.pools.engine, self.deps.engine.inspect, name)
            known = next(
                (each for each in self.sandboxes.values() if each.record.container_id == inspected["Id"]),
                None,
            )
            if known is not None and known.record.attached:
                return known, False
            container = await run(
                self.deps.pools.engine, open_container, self.deps.engine, self.deps.freezer, inspected["Id"]
            )
            await run(self.deps.pools.engine, self.deps.engine.pin_image, container.image_id)
            reached(Point.ATTACH_PINNED)
            record = SandboxRecord(
                id=known.record.id if known else SandboxId(secrets.token_hex(8)),
                name=container.name,
                container_id=container.id,
                image=container.image,
                image_id=container.image_id,
                container_state=ContainerState.RUNNING,
                attached=True,
                attached_at_ns=time.time_ns(),
                mounts=container.mounts,
                owner=owner_of(inspected["Config"].get("Labels")),
            )
            if known is not None:
                record = replace(
                    known.record, name=container.name, attached=True, mounts=container.mounts, note=""
                )
            sandbox = known or SandboxCoordinator(record, self.deps)
            sandbox.record = record
            sandbox.use(container)
            await sandbox.record_event(
                "attached", f"attached to {container.name}", changes=(put_sandbox(record),)
            )
            reached(Point.ATTACH_RECORDED)
            self.add(sandbox)
            self.deps.spawn(self._first_checkpoint(sandbox))
            # The gate has to be shut before the caller can begin a turn.
            await asyncio.sleep(0)
            return sandbox, known is None

    async def _first_checkpoint(self, sandbox: SandboxCoordinator) -> None:
        """Take the checkpoint that a sandbox's first turn is compared with."""
        try:
            async with sandbox.holding() as open_gate:
                first = sandbox.record.head_checkpoint_id is None
                await sandbox.take(Origin.ATTACH, even_if_unchanged=first, captured=open_gate)
        except Exception as error:
            reason = f"first checkpoint: {describe(error)}"
            if not isinstance(error, (TurnkeepError, OSError)):
                log.exception("first checkpoint failed", sandbox=sandbox.record.name)
            await sandbox.update("failed", reason, record={"note": reason})

    async def detach(self, name: str) -> SandboxCoordinator:
        """Stop watching a sandbox. A turn that is open is closed and captured first."""
        sandbox = self.attached(name)
        await sandbox.abandon_open("the sandbox was detached")
        async with sandbox.holding():
            await sandbox.update("detached", "", record={"attached": False})
            reached(Point.DETACH_RECORDED)
            await sandbox.stop_following()
            if sandbox.container is not None:
                sandbox.container.close()
                sandbox.container = None
        return sandbox

    async def on_event(self, event: ContainerEvent) -> None:
        """Follow what Docker says happened to a container."""
        sandbox = next(
            (
                each
                for each in self.sandboxes.values()
                if each.record.container_id == event.container_id and each.record.attached
            ),
            None,
        )
        if sandbox is None:
            wanted = event.labels.get(ENABLE_LABEL) == "true" and self.deps.config.auto_attach
            if event.action == "start" and wanted:
                await self.auto_attach(event.container_id)
            return
        match event.action:
            case "die":
                await sandbox.on_container_event(ContainerState.STOPPED, "its container stopped")
            case "destroy":
                await sandbox.abandon_open("its container was removed")
                await sandbox.on_container_event(
                    ContainerState.GONE,
                    "its container was removed; restore --new brings it back in a new one",
                )
            case "start" | "restart":
                await sandbox.on_container_event(ContainerState.RUNNING, "")
            case "pause":
                await sandbox.on_container_event(ContainerState.PAUSED, "its container is paused")
            case "unpause":
                await sandbox.on_container_event(ContainerState.RUNNING, "")
            case "rename":
                name = own_name(event.labels.get("name", sandbox.record.name))
                await sandbox.on_container_event(
                    sandbox.record.container_state, sandbox.record.note, name=name
                )

    async def auto_attach(self, container_id: str) -> None:
        """Attach a container that asks for it by its label; a failure is logged."""
        try:
            await self.attach(container_id)
        except TurnkeepError as error:
            log.warning("not attached", container=container_id[:12], reason=error.message, hint=error.hint)

    async def reconcile(self) -> None:
        """Make the records agree with what the engine says now: after a start, or lost events."""
        for sandbox in list(self.sandboxes.values()):
            if not sandbox.record.attached:
                continue
            try:
                inspected = await run(
                    self.deps.pools.engine, self.deps.engine.inspect, sandbox.record.container_id
                )
            except ContainerNotFound:
                if sandbox.record.container_state is not ContainerState.GONE:
                    await self.on_event(ContainerEvent(sandbox.record.container_id, "destroy", {}))
                continue
            state = state_of(inspected)
            name = own_name(inspected["Name"].lstrip("/"))
            if (state, name) != (sandbox.record.container_state, sandbox.record.name):
                notes = {
                    ContainerState.STOPPED: "its container stopped",
                    ContainerState.PAUSED: "its container is paused",
                }
                await sandbox.on_container_event(state, notes.get(state, ""), name=name)
        if self.deps.config.auto_attach:
            for container_id in await run(self.deps.pools.engine, self.deps.engine.enabled):
                known = any(each.record.container_id == container_id for each in self.sandboxes.values())
                if not known:
                    await self.auto_attach(container_id)

    # -- checkpoints -------------------------------------------------------

    async def create_checkpoint(
        self, name: str, *, label: str, tags: tuple[str, ...], request_id: str
    ) -> Checkpoint:
        """Take a checkpoint by hand.

        Raises:
            Conflict: the name is taken.
        """
        sandbox = self.attached(name)
        async with sandbox.holding() as open_gate:
            answer = self.deps.journal.answer(request_id) if request_id else None
            if answer is not None:
                return (await self.checkpoint("", checkpoint=answer["checkpoint"]))[0]
            journal, sandbox_id = self.deps.journal, sandbox.record.id
            kept = await run(self.deps.pools.long, journal.checkpoints, sandbox_id) if label else []
            if any(each.name == label for each in kept):
                raise Conflict(
                    f"a checkpoint is named {label} already", object=f"sandbox {sandbox.record.name}"
                )

            def answers(made: Checkpoint) -> list[Change]:
                value = {"checkpoint": made.id}
                return [put_answer(request_id, "checkpoint", sandbox.record.id, value)] if request_id else []

            checkpoint = await sandbox.take(
                Origin.MANUAL, name=label, tags=tags, answers=answers, captured=open_gate
            )
            assert checkpoint is not None
            return checkpoint

    async def delete_checkpoint(self, checkpoint: Checkpoint) -> int:
        """Delete a checkpoint; return how many got its parent as theirs.

        The record goes before the journal's: after a crash in between recovery
        finds it gone. The data goes with the next prune.

        Raises:
            Conflict: it is a sandbox's head.
        """
        async with self._deleting:
            for sandbox in self.sandboxes.values():
                if sandbox.record.head_checkpoint_id == checkpoint.id:
                    raise Conflict(
                        f"it is the head of sandbox {sandbox.record.name}",
                        object=f"checkpoint {checkpoint.id[:12]}",
                        hint="its present state descends from it; restore another first",
                    )
            owner = self.sandboxes.get(checkpoint.sandbox_id)
            if owner is None:
                await run(self.deps.pools.commit, self._forget, checkpoint.id)
                return 0
            async with owner.holding():
                # All of a sandbox's are read, which is no work for the loop.
                pool, journal = self.deps.pools.long, self.deps.journal
                states = [
                    turn.harness_state.snapshot_id
                    for turn in await run(pool, journal.turns, checkpoint.sandbox_id)
                    if turn.checkpoint_id == checkpoint.id and turn.harness_state is not None
                ]
                for snapshot_id in (checkpoint.id, *states):
                    await run(self.deps.pools.commit, self._forget, snapshot_id)
                    reached(Point.DELETE_FORGOTTEN)
                children = [
                    replace(each, parent_id=checkpoint.parent_id)
                    for each in await run(pool, journal.checkpoints, checkpoint.sandbox_id)
                    if each.parent_id == checkpoint.id
                ]
                changes: list[Change] = [Delete("checkpoint", checkpoint.id)]
                changes += [put_checkpoint(child) for child in children]
                details = {"checkpoint": checkpoint.id}
                await owner.record_event(
                    "checkpoint_deleted", checkpoint.id[:12], details=details, changes=changes
                )
                reached(Point.DELETE_RECORDED)
        return len(children)

    def _forget(self, snapshot_id: str) -> None:
        try:
            self.deps.repository.delete(SnapshotId(snapshot_id))
        except SnapshotNotFound:
            return

    # -- restores ----------------------------------------------------------

    async def restore(
        self, name: str, wish: restoring.Wish, progress: Progress
    ) -> tuple[SandboxCoordinator, restoring.Outcome]:
        """Restore a sandbox's own container (see `restore.restore`)."""
        sandbox = self.attached(name)
        outcome = await restoring.restore(sandbox, wish, progress)
        return sandbox, outcome

    def counts(self, sandbox_id: SandboxId) -> Mapping[str, int]:
        """Return the numbers of a sandbox's turns by outcome."""
        found = self.deps.journal.turn_counts(sandbox_id)
        outcomes = (TurnState.DURABLE, TurnState.SKIPPED, TurnState.FAILED)
        by_outcome = {state.value.lower(): found.get(state, 0) for state in outcomes}
        return {"total": sum(found.values()), **by_outcome}
