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

WIDTH = 118


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table: what it is compared with, above and below."""

    title: str
    peer: str = ""
    floor: str = ""
    unit: str = "ns"


TURNKEEP = {
    "freeze": Measure("freeze window", "commit_pause", "floor_read"),
    "captured": Measure("EndTurn to captured", "commit", "floor_read"),
    "durable": Measure("EndTurn to durable", "commit", "floor_fsync"),
    "durable_seen": Measure("the same by the harness's clock", "commit", "floor_fsync"),
    "end": Measure("EndTurn round trip", "", "floor_fsync"),
    "begin": Measure("BeginTurn round trip, gate open", "", "floor_fsync"),
    "inspect": Measure("EndTurn to the stateless decision"),
    "stored": Measure("stored for the turn", "commit_layer", unit="bytes"),
    "restore": Measure("restore of a kept turn", "replace"),
    "restore_freeze": Measure("  freeze inside it", "", "floor_read"),
    "restore_saving": Measure("restore, saving new changes first", "replace"),
    "restore_saving_freeze": Measure("  freeze inside it", "", "floor_read"),
    "restore_only": Measure("restore, saving nothing first", "replace"),
    "restore_only_freeze": Measure("  freeze inside it", "", "floor_read"),
}
PEER = {
    "commit": Measure("docker commit"),
    "commit_pause": Measure("  pause inside it, by its events"),
    "commit_running": Measure("docker commit --pause=false"),
    "commit_layer": Measure("layer of docker commit", unit="bytes"),
    "replace": Measure("docker rm -f, docker run"),
}
FLOOR = {
    "floor_read": Measure("read the changed files"),
    "floor_fsync": Measure("append 4 KiB and fsync"),
}
MEASURES = TURNKEEP | PEER | FLOOR
_SECTIONS = (("Turnkeep", TURNKEEP), ("peer", PEER), ("floor", FLOOR))


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
    table.add_column("")
    table.add_column("measure", no_wrap=True)
    for name in ("median", "p95", "peer ÷ it", "it ÷ floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("peer, floor", no_wrap=True)
    for section, measures in _SECTIONS:
        for number, (key, measure) in enumerate(measures.items()):
            figure = found[key]
            table.add_row(
                section if number == 0 else "",
                measure.title,
                _text(figure.median, measure.unit),
                _text(figure.p95, measure.unit),
                _ratio(ratio_to_peer(found, key)),
                _ratio(ratio_to_floor(found, key)),
                ", ".join(MEASURES[other].title.strip() for other in (measure.peer, measure.floor) if other),
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
    if unit == "bytes":
        return f"{value / 1024:,.1f} KiB"
    return f"{value / 1e6:,.3f} ms" if value < 1e6 else f"{value / 1e6:,.1f} ms"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
