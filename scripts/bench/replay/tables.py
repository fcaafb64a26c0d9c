"""The replay's tables, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from turnkeep.model import TurnClass

from bench.replay.figures import MISSING, Pair, Result, Spread, spread

Cell = Callable[[Result], str]

_MIB = 1024 * 1024
_NS = 1e9
_MS = 1e6
_INSIDE = {
    "begin": "BeginTurn and EndTurn, as the harness clocks them",
    "gate": "  of it in the gate",
    "inspect": "inspection",
    "freeze": "freeze",
    "captured": "EndTurn to captured",
    "durable": "EndTurn to durable",
}


def show(console: Console, results: Sequence[Result], totals: Sequence[Result]) -> None:
    """Print all tables."""
    for title, columns in (("turns", _turns()), ("traffic", _TRAFFIC), ("time", _TIME)):
        console.print(f"\n{title}")
        console.print(_table(columns, results, totals))
    for total in totals:
        console.print(f"\n{total.name}, turn by turn")
        console.print(_inside(total))
        console.print(
            f"  daemon: {total.cpu_s / total.turns * 1000:.1f} ms of processor time a turn,"
            f" {_mib(total.memory)} of memory at the most"
        )


_CLASSES = {
    "stateless": TurnClass.STATELESS,
    "files": TurnClass.FILESYSTEM,
    "process": TurnClass.PROCESS,
    "full": TurnClass.FULL,
}


def _turns() -> Mapping[str, Cell]:
    def count(name: str) -> Cell:
        return lambda each: str(each.classes.get(name, 0))

    return {
        "turns": lambda each: str(each.turns),
        **{short: count(name) for short, name in _CLASSES.items()},
        MISSING: count(MISSING),
        "failed": lambda each: str(each.failed),
        "cut": lambda each: str(each.cut_off),
        "exits agree": lambda each: f"{each.exit_agrees} of {each.exit_known}",
        "on = off": lambda each: f"{each.exit_same} of {each.turns}",
    }


_TRAFFIC: Mapping[str, Cell] = {
    "stored": lambda each: _mib(each.stored),
    "first": lambda each: _mib(each.stored_first),
    "processes": lambda each: _mib(each.stored_processes),
    "other": lambda each: _mib(each.stored_other),
    "tar | zstd": lambda each: _mib(each.snapshots),
    "share": lambda each: _percent(each.of_snapshots),
    "commits": lambda each: _mib(each.layers),
    "share ": lambda each: _percent(each.of_layers),
    "real commit": lambda each: f"{each.committed / each.layer_last:.3f} ×" if each.layer_last else "",
}

_TIME: Mapping[str, Cell] = {
    "delay p50": lambda each: _ms(spread(each.exposed).p50),
    "p95": lambda each: _ms(spread(each.exposed).p95),
    "p99": lambda each: _ms(spread(each.exposed).p99),
    "max": lambda each: _ms(spread(each.exposed).most),
    "of the run": lambda each: _percent(each.share),
    "with": lambda each: f"{each.on / _NS:.1f} s",
    "without": lambda each: f"{each.off / _NS:.1f} s",
    "more": lambda each: f"{(each.slower - 1) * 100:+.1f} %",
    "waits": lambda each: f"{each.waits / _NS:.1f} s",
}


def _table(columns: Mapping[str, Cell], results: Sequence[Result], totals: Sequence[Result]) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("run", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.name, *(cell(result) for cell in columns.values()))
    table.add_section()
    for result in totals:
        table.add_row(result.name, *(cell(result) for cell in columns.values()))
    return table


def _inside(total: Result) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(min_width=52)
    for name in ("p50", "p95", "p99", "max", "turns"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, title in _INSIDE.items():
        values = total.exposed if key == "begin" else total.inside.get(key, ())
        if values:
            table.add_row(title, *_spread(spread(values)))
    return table


def _spread(found: Spread) -> list[str]:
    return [*(_ms(value) for value in (found.p50, found.p95, found.p99, found.most)), str(found.count)]


def write(
    path: Path,
    machine: Mapping[str, str],
    settings: Mapping[str, Any],
    pairs: Sequence[tuple[Pair, Result]],
    totals: Sequence[Result],
) -> None:
    """Write everything as JSON, each turn included."""
    document = {
        "machine": dict(machine),
        "settings": dict(settings),
        "totals": [_result(total) for total in totals],
        "runs": [{**_result(result), "played": _played(pair)} for pair, result in pairs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def _result(result: Result) -> dict[str, Any]:
    exposed = asdict(spread(result.exposed))
    ratios = {
        "share": result.share,
        "on_of_off": result.slower,
        "stored_of_snapshots": result.of_snapshots,
        "stored_of_layers": result.of_layers,
    }
    inside = {key: asdict(spread(values)) for key, values in result.inside.items() if values}
    plain = {key: value for key, value in asdict(result).items() if key not in ("exposed", "inside")}
    return {**plain, **ratios, "exposed": exposed, "inside": inside}


def _played(pair: Pair) -> dict[str, Any]:
    daemon = pair.on.daemon
    return {
        "off": [asdict(turn) for turn in pair.off.turns],
        "on": [asdict(turn) for turn in pair.on.turns],
        "turnkeep": [asdict(turn) for turn in daemon.turns] if daemon else [],
        "errors": list(daemon.errors) if daemon else [],
    }


def _mib(value: float) -> str:
    size = value / _MIB
    return f"{size:,.{2 if size < 10 else 1 if size < 100 else 0}f} MiB"


def _ms(value: float) -> str:
    size = value / _MS
    return f"{size:,.{2 if size < 10 else 1 if size < 100 else 0}f} ms"


def _percent(share: float) -> str:
    return f"{share * 100:.{2 if share < 0.1 else 1}f} %"
