"""What the handles on sandboxes and turns remember, whichever flavour they have."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from turnkeep.client import calls, values
from turnkeep.client.calls import Call
from turnkeep.client.session import Session
from turnkeep.errors import Conflict, InternalError, TurnFailed, TurnkeepError, TurnNotFound, WaitTimeout
from turnkeep.model import TurnMetadata, TurnState

EXCEPTION_LABEL = "turnkeep.exception"
"""The label of a turn whose body raised: the exception's class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnWish:
    """How a harness wants a turn to be begun."""

    label: str = ""
    harness_turn_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: TurnMetadata = field(default_factory=TurnMetadata)
    take_over: bool = False
    gate_timeout_s: float | None = None


class SandboxHandle:
    """A sandbox: how to name it in calls, and what was last heard of it."""

    def __init__(self, container: str, info: values.SandboxInfo | None) -> None:
        self._container = container
        self._info = info

    @property
    def key(self) -> str:
        """What names the sandbox in calls: its id, or what it was attached by until that is known."""
        return self._info.id if self._info else self._container

    @property
    def known(self) -> bool:
        """Whether the daemon has ever answered; with `on_error="ignore"` it may not have."""
        return self._info is not None

    @property
    def attached(self) -> bool:
        """Whether Turnkeep watches it, as far as was last heard."""
        return self._info is not None and self._info.attached

    @property
    def name(self) -> str:
        """The container's name when last seen."""
        return self._info.name if self._info else self._container

    @property
    def info(self) -> values.SandboxInfo:
        """What the daemon last said of it; `refresh` asks again.

        Raises:
            Conflict: it could not be attached yet.
        """
        if self._info is None:
            hint = "it is tried again at the next turn"
            raise Conflict(
                "the sandbox is not attached yet", object=f"container {self._container}", hint=hint
            )
        return self._info

    def _learn(self, info: values.SandboxInfo) -> values.SandboxInfo:
        self._info = info
        return info

    def _learn_own(self, info: values.SandboxInfo) -> None:
        """Take over what a restore answered, unless it made another sandbox."""
        if self._info is None or self._info.id == info.id:
            self._learn(info)


class TurnHandle:
    """The bookkeeping of one bracketed turn.

    `labels` may be added to and `metadata` replaced until the turn ends. With
    `on_error="ignore"`, `number` stays None and `error` says why when the turn
    could not be begun; the body runs all the same.
    """

    def __init__(self, session: Session, wish: TurnWish) -> None:
        self.label = wish.label
        self.harness_turn_id = wish.harness_turn_id or str(uuid.uuid4())
        self.labels = dict(wish.labels)
        self.metadata = wish.metadata
        self.info: values.TurnInfo | None = None
        self.gate_wait_ns = 0
        self.abandoned_turn: int | None = None
        self.error: TurnkeepError | None = None
        self._session = session
        self._token = session.token
        self._wish = wish

    @property
    def number(self) -> int | None:
        """The turn's number; None if it could not be begun."""
        return self.info.number if self.info else None

    def _adopt(self, info: values.TurnInfo) -> None:
        """Stand for a turn that was begun elsewhere."""
        self.info = info
        self.label = info.label
        self.harness_turn_id = info.harness_turn_id
        self._token = info.session

    def _begin_call(self, sandbox: str) -> Call[values.TurnBegun]:
        return calls.begin_turn(
            sandbox,
            self._token,
            self.harness_turn_id,
            label=self.label,
            take_over=self._wish.take_over,
            gate_timeout_s=self._wish.gate_timeout_s,
        )

    def _begun(self, answer: values.TurnBegun) -> None:
        self.info = answer.turn
        self.gate_wait_ns = answer.gate_wait_ns
        self.abandoned_turn = answer.abandoned_turn

    def _end_call(self, sandbox: str) -> Call[values.TurnInfo]:
        return calls.end_turn(
            sandbox, self._token, self.harness_turn_id, labels=self.labels, metadata=self.metadata
        )

    def _label_exception(self, raised: BaseException | None) -> None:
        if raised is not None:
            self.labels.setdefault(EXCEPTION_LABEL, type(raised).__name__)

    def _lost(self, error: TurnkeepError, raised: BaseException | None = None) -> None:
        """Settle a failed begin or end: raise it, or keep it in `error`.

        An exception of the body is never replaced by one of Turnkeep's.
        """
        self.error = error
        if raised is not None:
            raised.add_note(f"turnkeep: the turn could not be ended: {error}")
            return
        if not self._session.tolerates(error):
            raise error

    def _begun_number(self) -> int:
        """Return the number.

        Raises:
            TurnkeepError: what kept the turn from being begun.
        """
        if self.number is None:
            raise self.error or Conflict("the turn has not begun", object=f"turn {self.harness_turn_id}")
        return self.number


def settled(turn: values.TurnInfo, wanted: TurnState) -> values.TurnInfo:
    """Return a turn that was waited for.

    Raises:
        TurnFailed: it failed and will not reach the state.
        WaitTimeout: it is still on its way.
    """
    if turn.state.reaches(wanted):
        return turn
    if turn.state is TurnState.FAILED:
        hint = "the next turn's checkpoint will hold what it changed"
        raise TurnFailed(turn.state_reason or "the turn failed", object=f"turn {turn.number}", hint=hint)
    raise WaitTimeout(f"the turn is {turn.state}, not yet {wanted}", object=f"turn {turn.number}")


def only(turns: list[values.TurnInfo], number: int, sandbox: str) -> values.TurnInfo:
    """Return the turn with this number.

    Raises:
        TurnNotFound: it is not among them.
    """
    for turn in turns:
        if turn.number == number:
            return turn
    raise TurnNotFound("the sandbox has no such turn", object=f"turn {number} of {sandbox}")


def unfinished(method: str) -> InternalError:
    """Return the error for work whose last message was not its result."""
    return InternalError(
        f"the daemon ended {method} without a result", hint="the daemon's log has the details"
    )
