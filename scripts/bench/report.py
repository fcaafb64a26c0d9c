"""The table and the JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 100


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table: what it is compared with, above and below."""

    title: str
    peer: str = ""
    floor: str = ""
    unit: str = "ns"
    short: str = ""
    """What the rows that are compared with it call it."""


TURNKEEP = {
    "freeze": Measure("freeze window", "commit_pause", "floor_read"),
    "captured": Measure("EndTurn to captured", "commit", "floor_read"),
    "durable": Measure("EndTurn to durable", "commit", "floor_fsync"),
    "durable_seen": Measure("  by the harness's clock", "commit", "floor_fsync"),
    "end": Measure("EndTurn round trip", floor="floor_fsync"),
    "begin": Measure("BeginTurn round trip, gate open", floor="floor_fsync"),
    "inspect": Measure("EndTurn to the stateless decision"),
    "stored": Measure("stored for the turn", "commit_layer", unit="bytes"),
    "restore": Measure("restore of a kept turn", "replace"),
    "restore_freeze": Measure("  freeze while writing", floor="floor_read"),
    "restore_saving": Measure("restore, new changes saved first", "replace"),
    "restore_saving_freeze": Measure("  freeze while writing", floor="floor_read"),
    "restore_only": Measure("restore, new changes not saved", "replace"),
    "restore_only_freeze": Measure("  freeze while writing", floor="floor_read"),
}
PEER = {
    "commit": Measure("docker commit", short="commit"),
    "commit_pause": Measure("  pause inside it, by its events", short="pause"),
    "commit_running": Measure("docker commit --pause=false"),
    "commit_layer": Measure("layer of docker commit", unit="bytes", short="layer"),
    "replace": Measure("docker rm -f, docker run", short="rm, run"),
}
FLOOR = {
    "floor_read": Measure("read the changed files", short="read"),
    "floor_fsync": Measure("append 4 KiB and fsync", short="fsync"),
}
MEASURES = TURNKEEP | PEER | FLOOR
_SECTIONS = (("Turnkeep", TURNKEEP), ("Docker alone", PEER), ("the machine", FLOOR))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What all runs of one measure come to."""

    values: Sequence[int]
    median: float
    p95: float


def figures(samples: Mapping[str, Sequence[int]]) -> dict[str, Figure]:
    """Return the figure of every measure."""
    return {
        key: Figure(values=values, median=statistics.median(values), p95=_p95(values))
        for key, values in ((key, samples[key]) for key in MEASURES)
    }


def show(console: Console, machine: Mapping[str, str], options: str, found: Mapping[str, Figure]) -> None:
    """Print the table."""
    for key, value in machine.items():
        console.print(f"{key:<9} {value}")
    console.print(f"{'run':<9} {options}")
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(no_wrap=True)
    for name in ("median", "p95", "peer ÷ it", "it ÷ floor"):
        table.add_column(name, justify="right", no_wrap=True)
    for section, measures in _SECTIONS:
        table.add_row(section)
        for key, measure in measures.items():
            figure = found[key]
            table.add_row(
                f"  {measure.title}",
                _text(figure.median, measure.unit),
                _text(figure.p95, measure.unit),
                _ratio(ratio_to_peer(found, key), measure.peer),
                _ratio(ratio_to_floor(found, key), measure.floor),
            )
        table.add_section()
    console.print(table)


def write(
    path: Path, machine: Mapping[str, str], options: Mapping[str, Any], found: Mapping[str, Figure]
) -> None:
    """Write everything, single values included, as JSON."""
    measures = {
        key: {
            "title": measure.title.strip(),
            "unit": measure.unit,
            "median": found[key].median,
            "p95": found[key].p95,
            "peer": measure.peer or None,
            "peer_ratio": ratio_to_peer(found, key),
            "floor": measure.floor or None,
            "floor_ratio": ratio_to_floor(found, key),
            "values": list(found[key].values),
        }
        for key, measure in MEASURES.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": dict(machine), "options": dict(options), "measures": measures}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def ratio_to_peer(found: Mapping[str, Figure], key: str) -> float | None:
    """Return how many times the measure's median its peer's is."""
    peer = MEASURES[key].peer
    return found[peer].median / found[key].median if peer and found[key].median else None


def ratio_to_floor(found: Mapping[str, Figure], key: str) -> float | None:
    """Return how many times the floor's median the measure's is."""
    floor = MEASURES[key].floor
    return found[key].median / found[floor].median if floor and found[floor].median else None


def _p95(values: Sequence[int]) -> float:
    if len(values) < 2:
        return float(values[0])
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def _text(value: float, unit: str) -> str:
    return f"{_rounded(value / 1024)} KiB" if unit == "bytes" else f"{_rounded(value / 1e6)} ms"


def _ratio(value: float | None, other: str) -> str:
    return f"{_rounded(value)} × {MEASURES[other].short}" if value is not None else ""


def _rounded(value: float) -> str:
    """Return two or three digits that count: more would only be noise."""
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{decimals}f}"
