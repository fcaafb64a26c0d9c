"""What is broken, when, in which run. Drawn with a seed, and pure."""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.replay.traces import Trace

_LONGEST_DELAY_S = 0.2


class Fault(enum.StrEnum):
    """What happens to a run."""

    KILL = "kill"
    """`docker kill`: the container ends, its layer is there."""
    REMOVE = "remove"
    """`docker rm --force`: nothing of it is there."""
    DAEMON = "daemon"
    """SIGKILL to Turnkeep's daemon."""
    ENGINE = "engine"
    """SIGKILL to dockerd; a new one ends the containers of the old one."""


class Moment(enum.StrEnum):
    """When in a turn it happens."""

    TOOL = "tool"
    """While the command runs."""
    END = "end"
    """After EndTurn, while the turn is inspected, captured, committed, or has been."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A run that is broken once: `delay_s` after the moment, in turn `at`, counted from 1."""

    trace: Trace
    fault: Fault
    at: int
    moment: Moment
    delay_s: float

    def __str__(self) -> str:
        return f"{self.trace.name}, {self.fault} in turn {self.at} ({self.moment} + {self.delay_s:.3f} s)"


def cases(
    recorded: Sequence[Trace], written: Sequence[Trace], faults: Sequence[Fault], seed: int, *, each: bool
) -> list[Case]:
    """Return what is to be broken: the runs written for this by every fault, each recorded one by one.

    Which one goes from fault to fault; with `each`, every run is broken by every fault.
    """
    drawn = []
    for number, trace in enumerate(recorded):
        drawn += [
            _drawn(trace, fault, seed) for fault in (faults if each else [faults[number % len(faults)]])
        ]
    for trace in written:
        drawn += [_drawn(trace, fault, seed) for fault in faults]
    return drawn


def _drawn(trace: Trace, fault: Fault, seed: int) -> Case:
    random_ = random.Random(f"{seed} {trace.name} {fault}")
    # Not in the last turn where that can be helped: something is to go on afterwards.
    last = max(1, len(trace.steps) - 1)
    return Case(
        trace=trace,
        fault=fault,
        at=random_.randint(min(2, last), last),
        moment=random_.choice(list(Moment)),
        delay_s=random_.random() * _LONGEST_DELAY_S,
    )
