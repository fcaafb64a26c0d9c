"""One run, played with Turnkeep or without: the same commands, the same waits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import turnkeep
from demo import stage
from docker.models.containers import Container
from turnkeep.client import Sandbox, Turn, TurnInfo
from turnkeep.client.values import Checkpoint
from turnkeep.errors import TurnkeepError

from bench.replay import commands, sizes
from bench.replay.commands import Outcome
from bench.replay.sizes import Sizes
from bench.replay.traces import Step, Trace

_SETTLED_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One turn as it was played, in nanoseconds by the harness's clock."""

    step: Step
    outcome: Outcome
    wait_ns: int
    begin_ns: int = 0
    end_ns: int = 0
    sizes: Sizes | None = None

    @property
    def exposed_ns(self) -> int:
        """What the agent waited for Turnkeep in this turn."""
        return self.begin_ns + self.end_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """What the daemon spent and kept in one run."""

    turns: Sequence[TurnInfo]
    checkpoints: Sequence[Checkpoint]
    stored_bytes: int
    """In the store's packs and records at the end."""
    other_bytes: int
    """Journal and index at the end."""
    cpu_s: float
    memory_bytes: int
    errors: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A run that was played to its end."""

    turns: Sequence[Played]
    total_ns: int
    attach_ns: int = 0
    daemon: Daemon | None = None


Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """How runs are played."""

    limit_s: float
    progress: Progress = field(default=lambda _: None)

    def off(self, trace: Trace, waits: Sequence[float], container: Container) -> Arm:
        """Play a run without Turnkeep; after each turn, its clock stopped, measure the writable layer."""
        upper = sizes.upperdir(container)
        turns, total_ns = [], 0
        for number, (step, wait) in enumerate(zip(trace.steps, waits, strict=True)):
            self.progress(number)
            started = time.monotonic_ns()
            wait_ns = _wait(wait)
            outcome = commands.run(container.name or "", step, self.limit_s)
            total_ns += time.monotonic_ns() - started
            measured = sizes.measure(upper)
            turns.append(Played(step=step, outcome=outcome, wait_ns=wait_ns, sizes=measured))
        return Arm(turns=turns, total_ns=total_ns)

    def on(self, trace: Trace, waits: Sequence[float], container: Container, folder: Path) -> Arm:
        """Play a run with Turnkeep, by a daemon of its own with an empty store."""
        with _serving(folder) as (tk, pid):
            started = time.monotonic_ns()
            box = tk.attach(container.name or "")
            attach_ns = time.monotonic_ns() - started
            turns, errors = [], []
            for number, (step, wait) in enumerate(zip(trace.steps, waits, strict=True)):
                self.progress(number)
                played, turn = self._turn(box, container, step, wait)
                turns.append(played)
                if turn.error is not None:
                    errors.append(f"turn {step.turn}: {turn.error}")
            total_ns = time.monotonic_ns() - started
            daemon = _leave(box, pid, folder, errors)
        return Arm(turns=turns, total_ns=total_ns, attach_ns=attach_ns, daemon=daemon)

    def _turn(self, box: Sandbox, container: Container, step: Step, wait: float) -> tuple[Played, Turn]:
        wait_ns = _wait(wait)
        turn = box.turn(label=step.command[:80])
        begin_ns = _timed(turn.begin)
        outcome = commands.run(container.name or "", step, self.limit_s)
        end_ns = _timed(turn.end)
        played = Played(step=step, outcome=outcome, wait_ns=wait_ns, begin_ns=begin_ns, end_ns=end_ns)
        return played, turn


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[tuple[turnkeep.client.Client, int]]:
    environment = stage.private_environment(folder)
    with (
        stage.daemon(folder, environment) as pid,
        # As a harness would be set up that is not to stop because of us. What went wrong is counted.
        turnkeep.connect(environment["TURNKEEP_ADDRESS"], on_error="ignore") as tk,
    ):
        yield tk, pid


def _leave(box: Sandbox, pid: int, folder: Path, errors: list[str]) -> Daemon:
    """Let the last turn settle, and see what the run has come to."""
    # A turn that failed is among those that are listed.
    with contextlib.suppress(TurnkeepError):
        box.wait(timeout_s=_SETTLED_S)
    process = psutil.Process(pid)
    times = process.cpu_times()
    kept, other = stage.stored_files(folder)
    return Daemon(
        turns=box.turns(),
        checkpoints=box.checkpoints(),
        stored_bytes=kept,
        other_bytes=other,
        cpu_s=times.user + times.system + times.children_user + times.children_system,
        memory_bytes=process.memory_info().rss,
        errors=errors,
    )


def _wait(wait_s: float) -> int:
    """Wait for the LLM."""
    started = time.monotonic_ns()
    time.sleep(wait_s)
    return time.monotonic_ns() - started


def _timed(call: Callable[[], None]) -> int:
    started = time.monotonic_ns()
    call()
    return time.monotonic_ns() - started
