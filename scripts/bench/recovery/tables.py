"""The recovery's tables, what was not exact in full, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.recovery.plans import Fault
from bench.recovery.verdicts import Verdict
from bench.replay.figures import spread

_SHOWN = 20
_NS_IN_MS = 1e6

_COUNTS: Mapping[str, Callable[[Verdict], bool]] = {
    "exact": lambda each: each.exact,
    "names aside": lambda each: each.exact_but_names,
    "files": lambda each: each.files_at_once,
    "processes": lambda each: each.processes_at_once,
    "end": lambda each: each.whole_at_end,
    "files only": lambda each: each.files_only,
    "conversation": lambda each: each.conversation_only,
}


def show(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print the shares by kind of fault, then each recovery that was not exact."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("fault", "cases", *_COUNTS, "p50", "max"):
        table.add_column(name, justify="left" if name == "fault" else "right", no_wrap=True)
    for fault in Fault:
        if of_kind := [each for each in verdicts if each.case.fault is fault]:
            table.add_row(str(fault), *_row(of_kind))
    table.add_section()
    table.add_row("in all", *_row(verdicts))
    console.print("\nshares of recoveries; times of restores, from the call to the answer")
    console.print(table)
    probes = sum(each.probes for each in verdicts)
    wrong = sum(len(each.wrong_probes) for each in verdicts)
    other = sum(each.other_outputs for each in verdicts)
    console.print(
        f"  probes of processes after the restores: {probes - wrong} of {probes} as without a fault"
    )
    console.print(f"  other outputs that were not those of the fault-free runs: {other}")
    _show_excused(console, verdicts)
    for each in verdicts:
        if not each.exact:
            _show_inexact(console, each)


def _row(verdicts: Sequence[Verdict]) -> list[str]:
    count = len(verdicts)
    shares = [_share(sum(test(each) for each in verdicts), count) for test in _COUNTS.values()]
    times = [each.restore_ns / _NS_IN_MS for each in verdicts if each.restore_ns]
    found = spread(times) if times else None
    return [str(count), *shares, *([f"{found.p50:,.0f} ms", f"{found.most:,.0f} ms"] if found else ["", ""])]


def _share(part: int, count: int) -> str:
    return f"{part / count:.0%}" if part in (0, count) else f"{part / count:.0%} ({part})"


def _show_excused(console: Console, verdicts: Sequence[Verdict]) -> None:
    """Print what differs between the fault-free runs of each trace, most of it the same for all."""
    by_trace = {each.case.trace.name: each.excused for each in verdicts if not each.error}
    if not by_trace:
        return
    common = set.intersection(*(set(excused) for excused in by_trace.values()))
    console.print(f"\nexcused at the end, because fault-free runs differ in it, in every run: {len(common)}")
    console.print("  " + ", ".join(sorted(common)))
    for name, excused in by_trace.items():
        own = sorted(set(excused) - common)
        more = f" and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
        console.print(f"{name}: {len(own)} more")
        if own:
            console.print("  " + ", ".join(own[:_SHOWN]) + more)


def _show_inexact(console: Console, verdict: Verdict) -> None:
    console.print(
        f"\nnot exact: {verdict.case}, restored to turn {verdict.turn} ({verdict.mode or 'failed'})"
    )
    if verdict.error:
        console.print(f"  {verdict.error}")
        for line in verdict.log:
            console.print(f"  log: {line}")
    if not verdict.can_tell:
        console.print("  the fault-free runs differ in too much for their end to be compared")
    _show_list(console, "right after the restore", verdict.at_once)
    _show_list(console, "a process that did not come back", verdict.lost)
    _show_list(console, "a process that was not there", verdict.extra)
    _show_list(console, "at the end", verdict.at_end)
    _show_list(console, "a probe", verdict.wrong_probes)
    _show_list(console, "the restore noted", verdict.notes)


def _show_list(console: Console, said: str, found: Sequence[object]) -> None:
    for each in found[:_SHOWN]:
        console.print(f"  {said}: {each}")
    if len(found) > _SHOWN:
        console.print(f"  {said}: and {len(found) - _SHOWN} more")


def write(
    path: Path, machine: Mapping[str, str], settings: Mapping[str, Any], verdicts: Sequence[Verdict]
) -> None:
    """Write everything as JSON."""
    document = {
        "machine": dict(machine),
        "settings": dict(settings),
        "faults": {str(fault): _shares([v for v in verdicts if v.case.fault is fault]) for fault in Fault},
        "all": _shares(verdicts),
        "recoveries": [_recovery(each) for each in verdicts],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names that are not UTF-8 are surrogates, which only ASCII can carry.
    path.write_text(json.dumps(document, indent=1) + "\n")


def _shares(verdicts: Sequence[Verdict]) -> dict[str, int]:
    return {"cases": len(verdicts), **{name: sum(map(test, verdicts)) for name, test in _COUNTS.items()}}


def _recovery(verdict: Verdict) -> dict[str, Any]:
    case = verdict.case
    plain = {key: value for key, value in asdict(verdict).items() if key != "case"}
    return {
        "run": case.trace.name,
        "fault": str(case.fault),
        "at": case.at,
        "moment": str(case.moment),
        "delay_s": case.delay_s,
        **{name: test(verdict) for name, test in _COUNTS.items()},
        **plain,
    }
