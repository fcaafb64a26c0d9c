"""The recovery: play fault-free runs, break and restore others, compare, print."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demo import stage
from rich.console import Console

from bench import machine, report
from bench.interrupt import Interrupts
from bench.recovery import engines, plans, runs, tables, verdicts
from bench.recovery.engines import Engine
from bench.recovery.plans import Case, Fault
from bench.recovery.verdicts import Reference, Verdict
from bench.replay import checkouts, options, traces
from bench.replay.options import Plan
from bench.replay.traces import Trace
from bench.replay.waits import Waits

_OUTPUT = traces.ROOT / "build" / "bench-recovery.json"
_QUICK_RUNS, _QUICK_TURNS, _QUICK_WRITTEN = 1, 8, 1
_SCALE, _QUICK_SCALE = 0.05, 0.02


def main() -> int:
    """Run it; return the exit code."""
    return options.guarded("bench-recovery", _run, _options())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench-recovery", description="Break replayed agent runs at random turns and restore them."
    )
    options.add(parser, output=_OUTPUT, scale=_SCALE)
    parser.add_argument(
        "--faults",
        default=",".join(Fault),
        help=f"what happens to runs, of {', '.join(Fault)} (all of them)",
    )
    parser.add_argument("--each", action="store_true", help="break each recorded run by each fault")
    parser.add_argument("--references", type=int, default=2, help="fault-free runs of each (2)")
    found = parser.parse_args()
    options.settle(parser, found, runs=_QUICK_RUNS, turns=_QUICK_TURNS, scale=_QUICK_SCALE)
    if unknown := set(found.faults.split(",")) - set(Fault):
        parser.error(f"--faults knows {', '.join(Fault)}, not {', '.join(sorted(unknown))}")
    if found.references < 2:
        parser.error("--references has to be 2 or more: one run does not show what differs by nature")
    return found


def _run(stack: contextlib.ExitStack, found: argparse.Namespace, interrupts: Interrupts) -> None:
    plan = options.plan(found)
    faults = [Fault(name) for name in found.faults.split(",")]
    cases = _cases(found, plan, faults)
    engine = stack.enter_context(engines.machines())
    stack.enter_context(stage.pin_removed(engine.client))
    folder = stack.enter_context(options.private_folder("recovery"))
    # One that is killed. Only for the cases in which it is.
    own = stack.enter_context(engines.own()) if Fault.ENGINE in faults else engine
    stack.callback(interrupts.ignore)
    about = machine.describe(engine.client.info(), version("turnkeep"), folder)
    recovery = Recovery(engine, own, folder, plan.waits, found.limit, found.references)
    judged: list[Verdict] = []
    started = time.monotonic()
    try:
        for verdict in recovery.judged(cases):
            judged.append(verdict)
    finally:
        # However it ended: what was done until then took long enough.
        if judged:
            about["waits"] = plan.waits_said
            about["played"] = f"in {(time.monotonic() - started) / 60:.0f} minutes, {len(judged)} faults"
            about["load"] += f", {machine.load()} after"
            _tell(found.output, about, plan.settings, judged)


def _cases(found: argparse.Namespace, plan: Plan, faults: Sequence[Fault]) -> list[Case]:
    recorded = [trace for trace in plan.traces if trace.name not in plan.synthetic]
    written = [trace for trace in plan.traces if trace.name in plan.synthetic]
    if found.quick:
        written = written[:_QUICK_WRITTEN]
    return plans.cases(recorded, written, faults, found.seed, each=found.each)


def _tell(
    output: Path, about: Mapping[str, str], settings: Mapping[str, Any], judged: Sequence[Verdict]
) -> None:
    console = Console(width=options.WIDTH, highlight=False, markup=False)
    report.show_machine(console, about)
    tables.show(console, judged)
    tables.write(output, about, settings, judged)
    print(f"written to {output}")


class Recovery:
    """Plays the cases one after the other, those of one run together."""

    def __init__(
        self, engine: Engine, own: Engine, folder: Path, waits: Waits, limit_s: float, references: int
    ) -> None:
        self._engine = engine
        self._own = own
        self._folder = folder
        self._waits = waits
        self._limit_s = limit_s
        self._references = references
        self._name = f"turnkeep-recovery-{secrets.token_hex(4)}"

    def judged(self, cases: Sequence[Case]) -> Iterator[Verdict]:
        """Yield what came of each case, as soon as it is known."""
        number = 0
        # In their order; the fault-free runs serve all cases of their run.
        for trace in {case.trace: None for case in cases}:
            report.progress(f"{number} of {len(cases)}, {trace.name}: fault-free runs")
            checkout = checkouts.prepare(self._engine.client, self._name, trace.sdist)
            known = self._reference(trace, checkout)
            for case in (each for each in cases if each.trace is trace):
                number += 1
                report.progress(f"{number} of {len(cases)}, {trace.name}: {case.fault}")
                verdict = self._judged(case, checkout, known, number)
                report.progress("")
                print(f"{number} of {len(cases)}, {case}: {_word(verdict)}", flush=True)
                yield verdict

    def _reference(self, trace: Trace, checkout: Path) -> Reference:
        return verdicts.reference(
            [
                runs.whole(self._engine, self._name, checkout, trace, self._limit_s)
                for _ in range(self._references)
            ]
        )

    def _judged(self, case: Case, checkout: Path, known: Reference, number: int) -> Verdict:
        os.sync()
        broken = runs.broken(
            case,
            self._own if case.fault is Fault.ENGINE else self._engine,
            self._name,
            checkout,
            self._folder / f"{number}",
            limit_s=self._limit_s,
            waits=self._waits.drawn(case.trace.name, len(case.trace.steps)),
        )
        return verdicts.judged(broken, known)


def _word(verdict: Verdict) -> str:
    if verdict.error:
        return f"failed: {verdict.error}"
    back = f"back to turn {verdict.turn}, {verdict.mode}, {verdict.restore_ns / 1e6:.0f} ms"
    word = "exact" if verdict.exact else "exact but for names" if verdict.exact_but_names else "NOT exact"
    return f"{word}, {back}"
