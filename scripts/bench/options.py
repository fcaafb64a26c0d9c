"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import plans
from bench.plans import MEASURED, ONLY_FULL, Plan
from bench.rounds import CHANGED

_BUILD = Path(__file__).parents[2] / "build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is to do."""

    plan: Plan
    parts: tuple[str, ...]
    output: Path
    plots: Path
    draw: tuple[Path, ...]
    """Documents to draw instead of measuring."""


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Return what the command line asks for; ends the program where it cannot be understood."""
    parser = _parser()
    given = parser.parse_args(arguments)
    plan = plans.QUICK if given.quick else plans.FULL if given.full else plans.SHORT
    if given.minutes is not None:
        plan = replace(plan, seconds=given.minutes * 60)
    if given.runs is not None:
        if given.runs < 1:
            parser.error("--runs has to be 1 or more")
        plan = replace(plan, files=replace(plan.files, runs=given.runs))
    if given.files is not None:
        if given.files < CHANGED:
            parser.error(f"--files has to be {CHANGED} or more")
        plan = replace(plan, files=replace(plan.files, files=given.files))
    default = [each for each in MEASURED if given.full or each not in ONLY_FULL]
    return Options(
        plan=plan,
        parts=tuple(each for each in MEASURED if each in (given.only or default)),
        output=given.output,
        plots=given.plots,
        draw=tuple(given.draw),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="Measure Turnkeep beside its peers.")
    add = parser.add_argument
    add("--only", nargs="+", choices=list(MEASURED), metavar="PART", help=f"of {', '.join(MEASURED)}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few runs of little, to see that it works")
    size.add_argument("--full", action="store_true", help="everything, as long as it takes")
    add("--minutes", type=float, help="begin no further round after so long (4, with --full without end)")
    add("--runs", type=int, help="how often at most the part «files» is measured (10, with --full 20)")
    add("--files", type=int, help="files in that part's writable layer (5000)")
    add("--output", type=Path, default=_BUILD / "bench.json", help="where the JSON goes (build/bench.json)")
    add("--plots", type=Path, default=_BUILD / "plots", help="the folder for the plots (build/plots)")
    add("--draw", type=Path, nargs="+", default=[], metavar="JSON", help="only draw what was measured before")
    return parser
