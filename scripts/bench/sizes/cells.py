"""One sandbox with so many files: a turn and a rollback for each number of changed ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from demo.stage import Failed
from turnkeep.client import Client, Sandbox, TurnInfo
from turnkeep.model import TurnState

from bench import floors
from bench.cpu import DaemonClock
from bench.samples import Samples
from bench.sizes import rows
from bench.upper import Upper

# The first capture takes in everything: with many files that is a while.
_FIRST_S = 600.0


class Cells:
    """Measures one sandbox, round by round. `counts` are the numbers of changed files."""

    def __init__(
        self,
        samples: Samples,
        tk: Client,
        upper: Upper,
        counts: Sequence[int],
        clock: DaemonClock,
        floor_file: Path,
    ) -> None:
        self.files = upper.files
        self._samples = samples
        self._upper = upper
        self._counts = counts
        self._clock = clock
        self._floor_file = floor_file
        self._box: Sandbox = tk.attach(upper.container.name or "")
        self._reversed = False

    def start(self) -> None:
        """Take the turn that every rollback goes back to."""
        with self._box.turn(label="base", gate_timeout_s=_FIRST_S) as turn:
            self._upper.edit(1)
        info = turn.wait(timeout_s=_FIRST_S)
        _expect(info, TurnState.DURABLE, 1)
        self._base = info.number
        self._content = {count: self._upper.content(count) for count in self._counts}

    def run(self) -> None:
        """Measure everything once; the order is another one from round to round.

        Raises:
            Failed: something else happened than what was to be measured.
        """
        self._reversed = not self._reversed
        os.sync()
        self._settle()
        self._stateless()
        for count in reversed(self._counts) if self._reversed else self._counts:
            self._floors(count)
            os.sync()
            self._turn(count)
            self._rollback(count)
            self._settle()

    def _turn(self, count: int) -> None:
        turn = self._box.turn(label=f"{count} files")
        before_ns = self._clock.spent_ns()
        with self._samples.timed(rows.key("begin", self.files)):
            turn.begin()
        self._upper.edit(count)
        with self._samples.timed(rows.key("end", self.files)):
            turn.end()
        info = turn.wait(timeout_s=_FIRST_S)
        spent_ns = self._clock.spent_ns() - before_ns
        _expect(info, TurnState.DURABLE, count)
        values = {
            "inspect": info.timings.inspect_ns,
            "freeze": info.timings.freeze_ns,
            "captured": info.timings.captured_ns,
            "durable": info.timings.durable_ns,
            "stored": info.stored_bytes,
            "cpu": spent_ns,
        }
        for what, value in values.items():
            self._samples.add(rows.key(what, self.files, count), value)

    def _rollback(self, count: int) -> None:
        with self._samples.timed(rows.key("rollback", self.files, count)):
            result = self._box.restore(turn=self._base, mode="live")
        self._samples.add(rows.key("rollback_freeze", self.files, count), result.freeze_ns)
        if result.changed_paths != count:
            raise Failed(f"the rollback was to bring {count} files back and wrote {result.changed_paths}")
        if self._upper.content(count) != self._content[count]:
            raise Failed(f"after the rollback to turn {self._base} the files have other content than then")

    def _stateless(self) -> None:
        turn = self._box.turn(label="idle")
        before_ns = self._clock.spent_ns()
        turn.begin()
        self._upper.idle()
        turn.end()
        info = turn.wait()
        self._samples.add(rows.key("cpu", self.files, 0), self._clock.spent_ns() - before_ns)
        _expect(info, TurnState.SKIPPED, 0)
        self._samples.add(rows.key("inspect", self.files, 0), info.timings.inspect_ns)

    def _settle(self) -> None:
        """Have the daemon look once, so that no turn pays for the rollback before it."""
        with self._box.turn(label="settle") as turn:
            pass
        turn.wait()

    def _floors(self, count: int) -> None:
        with self._samples.timed(rows.floor("read", count)):
            data = self._upper.read(count)
        floors.compress(self._samples, rows.floor("zstd", count), data)
        floors.fsync(self._samples, rows.FSYNC, self._floor_file)


def _expect(info: TurnInfo, state: TurnState, changed: int) -> None:
    if (info.state, info.changed_files) != (state, changed):
        raise Failed(
            f"turn {info.number} was to be {state} with {changed} changed files,"
            f" and is {info.state} with {info.changed_files}: {info.state_reason}"
        )
