"""The state machine of one sandbox, as harnesses drive it: begin, end, wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from turnkeep_store.points import reached

from turnkeep.coordinator.captures import Captures
from turnkeep.coordinator.deps import run, to_its_end
from turnkeep.errors import (
    Conflict,
    GateTimeout,
    TurnFailed,
    TurnNotFound,
    WaitTimeout,
)
from turnkeep.model import (
    NO_TURN,
    HarnessState,
    Turn,
    TurnMetadata,
    TurnNumber,
    TurnState,
    TurnTimings,
)
from turnkeep.points import Point


class SandboxCoordinator(Captures):
    """One attached container: its turns, captures and record. Lives on the event loop."""

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
        reached(Point.TURN_BEGUN)
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
        reached(Point.STATE_STORED)
        await self.update("harness_state", f"{state.size} bytes", turn=self.turn(number), harness_state=state)
        reached(Point.STATE_RECORDED)

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
        reached(Point.TURN_ENDED)
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
