"""What an event of the journal changes in its tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from turnkeep.model import NO_TURN, Checkpoint, Event, SandboxId, SandboxRecord, Turn, TurnNumber


@dataclass(frozen=True, slots=True)
class Put:
    """Set a projected value. `position` orders the values of one sandbox."""

    kind: str
    key: str
    sandbox_id: str
    position: int
    value: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Delete:
    """Take a projected value away."""

    kind: str
    key: str


Change = Put | Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """Work that was begun and has to be finished or undone: a restore."""

    id: str
    kind: str
    sandbox_id: SandboxId
    details: Mapping[str, Any]


def put_sandbox(sandbox: SandboxRecord) -> Put:
    """Return the change that records a sandbox."""
    return Put("sandbox", sandbox.id, sandbox.id, sandbox.attached_at_ns, sandbox.to_json())


def put_turn(turn: Turn) -> Put:
    """Return the change that records a turn."""
    return Put("turn", f"{turn.sandbox_id}@{turn.number}", turn.sandbox_id, turn.number, turn.to_json())


def put_checkpoint(checkpoint: Checkpoint) -> Put:
    """Return the change that records a checkpoint."""
    return Put(
        "checkpoint", checkpoint.id, checkpoint.sandbox_id, checkpoint.created_at_ns, checkpoint.to_json()
    )


def put_intent(intent: Intent) -> Put:
    """Return the change that records an intent."""
    value = {"kind": intent.kind, "details": dict(intent.details)}
    return Put("intent", intent.id, intent.sandbox_id, 0, value)


def put_answer(request_id: str, kind: str, sandbox_id: str, value: Mapping[str, Any]) -> Put:
    """Return the change that records the answer to a request, to be given again."""
    return Put("answer", request_id, sandbox_id, 0, {"call": kind, **value})


PASSING = frozenset({"turn_begun", "turn_ended", "classified", "captured"})
"""Kinds of events that a power cut may take, with all that was journaled after them and not synced.

They are on the way to something that lasts, and nobody was told that they do; the power
cut ended the sandbox's processes as well. A crash of the daemon takes none of them.
"""


@dataclass(frozen=True, slots=True)
class Happened:
    """An event that is not journaled yet, and what it changes."""

    event: Event
    changes: tuple[Change, ...]

    @property
    def lasts(self) -> bool:
        """Whether it has to survive a power cut."""
        return self.event.kind not in PASSING

    @classmethod
    def of(
        cls,
        kind: str,
        message: str,
        *,
        sandbox: SandboxRecord | None = None,
        turn: TurnNumber = NO_TURN,
        details: Mapping[str, Any] | None = None,
        changes: Iterable[Change] = (),
    ) -> Happened:
        """Describe what happens now."""
        event = Event(
            sequence=0,
            time_ns=time.time_ns(),
            kind=kind,
            sandbox_id=sandbox.id if sandbox else None,
            sandbox_name=sandbox.name if sandbox else "",
            turn=turn,
            message=message,
            details=dict(details or {}),
        )
        return cls(event, tuple(changes))


def to_row(change: Change) -> list[Any]:
    match change:
        case Put(kind, key, sandbox_id, position, value):
            return ["put", kind, key, sandbox_id, position, value]
        case Delete(kind, key):
            return ["delete", kind, key]


def from_row(row: list[Any]) -> Change:
    if row[0] == "put":
        return Put(*row[1:])
    return Delete(*row[1:])
