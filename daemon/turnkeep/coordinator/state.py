"""What is known of one sandbox, in memory and in the journal, and its container."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from turnkeep.checkpointer.view import Baseline
from turnkeep.coordinator.deps import Deps, run, to_its_end
from turnkeep.errors import (
    TurnNotFound,
)
from turnkeep.journal import Change, Happened, put_sandbox, put_turn
from turnkeep.model import (
    NO_TURN,
    ContainerState,
    Event,
    SandboxRecord,
    Turn,
    TurnNumber,
)
from turnkeep.runtime.container import Container, open_container
from turnkeep.runtime.places import Places


class SandboxState:
    """The record, the active turns and the container of one sandbox; all writes go through `update`.

    Two locks, always taken in this order. `_turns` orders the calls of harnesses
    (begin, end). `_work` orders what touches the container's files: captures,
    checkpoints by hand, restores. `_writing` is held for one journal entry.
    """

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

    @property
    def capturing(self) -> bool:
        """Whether a turn is on its way to being durable."""
        return any(turn is not self._open for turn in self._active.values())

    @property
    def open_turn(self) -> Turn | None:
        """The turn that is open."""
        return self._open

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

    async def stop_following(self) -> None:
        """Stop following the folders that the container can write to."""
        if self.places is not None:
            folders = [place.host_path for place in self.places.covered if place.host_path]
            # It waits for whoever takes in events of the same file system.
            await run(self.deps.pools.capture, self.deps.checkpointer.states.forget, folders)

    async def on_container_event(self, state: ContainerState, message: str, *, name: str = "") -> None:
        """Note what happened to the container."""
        if state is not ContainerState.RUNNING and self.container is not None:
            self.container.close()
            self.container = None
        if state is ContainerState.GONE:
            await self.stop_following()
        fields: dict[str, Any] = {"container_state": state, "name": name or self.record.name, "note": message}
        if replace(self.record, **fields) != self.record:
            await self.update("container", message or state.value, record=fields)

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Keep captures and the gate shut for a `with` block: a restore, a checkpoint by hand.

        Yields what opens the gate before the block is left.
        """
        self._before_consistent += 1
        shut = True

        async def open_gate() -> None:
            nonlocal shut
            if shut:
                shut = False
                self._before_consistent -= 1
                await self._notify()

        try:
            async with self._work:
                yield open_gate
        finally:
            await open_gate()

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
        happened = Happened.of(
            kind,
            message,
            sandbox=self.record,
            turn=turn.number if turn is not None else NO_TURN,
            details=details,
            changes=changes,
        )
        event = await self.deps.commits.append(happened)
        await self._notify()
        return event

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()
