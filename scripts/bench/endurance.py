"""The part about many turns: whether the daemon's memory and its turns stay as they are."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil
import turnkeep
from demo import stage
from demo.stage import Failed
from turnkeep.client import Sandbox
from turnkeep.model import TurnState

from bench import report
from bench.figures import Limit, Measure, Part, figures
from bench.samples import Samples
from bench.scene import Scene
from bench.upper import FILE_BYTES, Upper

CHANGED = 5
_TENTHS = 10
_WARM = 2
"""In the first tenth caches still fill; the second is what the last is held against."""
_GROWTH = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many turns there are, and how many files."""

    turns: int = 10_000
    files: int = 1_000


class _Turns:
    """One sandbox. Its files are changed from outside: execs would take most of the time."""

    def __init__(self, box: Sandbox, upper: Upper, process: psutil.Process) -> None:
        self.samples = Samples()
        self._box = box
        self._upper = upper
        self._process = process

    def run(self, scene: Scene, turns: int) -> int:
        """Take so many turns, or as many as there is time for; return how many."""
        found: list[tuple[int, int]] = []
        for number in scene.budget.rounds(turns, least=_TENTHS):
            if number % 100 == 0:
                report.progress(f"endurance, turn {number:,} of {turns:,}")
            durable_ns = self._turn(number)
            found.append((self._process.memory_info().rss, durable_ns))
        for position, (resident, durable_ns) in enumerate(found):
            tenth = position * _TENTHS // len(found) + 1
            self.samples.add(f"resident_{tenth}", resident)
            self.samples.add(f"durable_{tenth}", durable_ns)
        return len(found)

    def _turn(self, number: int) -> int:
        with self._box.turn() as turn:
            for path in self._upper.paths(CHANGED):
                path.write_bytes(os.urandom(FILE_BYTES // 2).hex().encode())
        info = turn.wait()
        if info.state is not TurnState.DURABLE:
            raise Failed(f"turn {number} was to be kept, and is {info.state}: {info.state_reason}")
        return info.timings.durable_ns


def measure(scene: Scene, plan: Plan) -> Part:
    """Take the turns on a daemon and a sandbox of their own, which are gone afterwards."""
    started = time.monotonic()
    environment = stage.private_environment(scene.folder)
    with (
        stage.container(scene.engine, scene.name) as container,
        stage.daemon(scene.folder, environment) as pid,
        turnkeep.connect(environment["TURNKEEP_ADDRESS"]) as tk,
    ):
        upper = Upper(container, plan.files)
        upper.fill()
        run = _Turns(tk.attach(scene.name), upper, psutil.Process(pid))
        turns = run.run(scene, plan.turns)
    took_s = time.monotonic() - started
    return Part(
        name="endurance",
        summary=f"in {took_s:.0f} s; {turns:,} turns, each changes {CHANGED} of {plan.files:,} files",
        settings={"turns": turns, "files": plan.files, "changed": CHANGED, "file_bytes": FILE_BYTES},
        sections={
            "resident size of the daemon": {
                f"resident_{tenth}": _row("resident", tenth, turns) for tenth in range(1, _TENTHS + 1)
            },
            "EndTurn to durable": {
                f"durable_{tenth}": _row("durable", tenth, turns) for tenth in range(1, _TENTHS + 1)
            },
        },
        found=figures(run.samples.values),
    )


def _row(what: str, tenth: int, turns: int) -> Measure:
    first, last = (turns * each // _TENTHS for each in (tenth - 1, tenth))
    limits = (Limit(_GROWTH, f"{what}_{_WARM}"),) if what == "resident" and tenth == _TENTHS else ()
    return Measure(
        f"turns {first + 1:,} to {last:,}",
        unit="bytes" if what == "resident" else "ns",
        short="second tenth",
        limits=limits,
        axes={"quantity": what, "turns": last},
    )
