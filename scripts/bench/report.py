"""The tables and the JSON."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 120
_MIB = 1024 * 1024
_WIDTHS = {"median": 9, "p95": 9, "runs": 4, "peer ÷ it": 15, "it ÷ floor": 12, "target": 18}


@dataclass(frozen=True, slots=True)
class Limit:
    """What a median is to stay within: `most` in the measure's unit, or so many times that of `of`."""

    most: float
    of: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of a table: what it is compared with, above and below."""

    title: str
    peer: str = ""
    floor: str = ""
    unit: str = "ns"
    short: str = ""
    """What the rows that are compared with it call it."""
    limits: tuple[Limit, ...] = ()


Sections = Mapping[str, Mapping[str, Measure]]
"""A table: the rows below each heading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What all runs of one measure come to."""

    values: Sequence[int]
    median: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All that was measured of one thing."""

    name: str
    summary: str
    settings: Mapping[str, Any]
    sections: Sections
    found: Mapping[str, Figure]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def measures(self) -> Mapping[str, Measure]:
        """All rows that something was measured for."""
        rows = {key: measure for each in self.sections.values() for key, measure in each.items()}
        return {key: measure for key, measure in rows.items() if key in self.found}

    def ratio(self, key: str, other: str) -> float | None:
        """Return how many times the other one's median a measure's is; None where that says nothing."""
        if other not in self.found or not self.found[other].median:
            return None
        return self.found[key].median / self.found[other].median

    def peer_ratio(self, key: str) -> float | None:
        """Return how many times a measure's median its peer's is."""
        peer = self.measures[key].peer
        return self.ratio(peer, key) if peer in self.found else None

    def keeps(self, key: str, limit: Limit) -> bool | None:
        """Whether a measure stays within a limit; None if what it depends on was not measured."""
        if not limit.of:
            return self.found[key].median <= limit.most
        ratio = self.ratio(key, limit.of)
        return None if ratio is None else ratio <= limit.most


def figures(samples: Mapping[str, Sequence[int]]) -> dict[str, Figure]:
    """Return the figure of every measure."""
    return {
        key: Figure(values=values, median=statistics.median(values), p95=_p95(values))
        for key, values in samples.items()
        if values
    }


def progress(what: str) -> None:
    """Say on a terminal how far it is; "" takes that away again."""
    if sys.stderr.isatty():
        print(f"\r{what:<60}\r", end="", file=sys.stderr, flush=True)


def show_machine(console: Console, machine: Mapping[str, str]) -> None:
    """Print what it was measured on."""
    for key, value in machine.items():
        console.print(f"{key:<9} {value}")


def show(console: Console, part: Part) -> None:
    """Print the table of one part."""
    console.print(f"\n{part.name:<9} {part.summary}")
    columns = ["median", "p95", "runs", "peer ÷ it", "it ÷ floor", "target"]
    if not any(measure.floor for measure in part.measures.values()):
        columns.remove("it ÷ floor")
    if not any(measure.limits for measure in part.measures.values()):
        columns.remove("target")
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(no_wrap=True, min_width=38)
    for name in columns:
        is_last = name == "target"
        table.add_column(name, justify="left" if is_last else "right", no_wrap=True, min_width=_WIDTHS[name])
    for section, measures in part.sections.items():
        rows = [key for key in measures if key in part.found]
        if rows:
            table.add_row(section)
        for key in rows:
            cells = _cells(part, key)
            table.add_row(f"  {measures[key].title}", *(cells[name] for name in columns))
        table.add_section()
    console.print(table)
    for note in part.notes:
        console.print(f"  {note}")


def _cells(part: Part, key: str) -> dict[str, str]:
    measure, figure = part.measures[key], part.found[key]
    return {
        "median": _text(figure.median, measure.unit),
        "p95": _text(figure.p95, measure.unit),
        "runs": str(len(figure.values)),
        "peer ÷ it": _ratio(part, part.peer_ratio(key), measure.peer),
        "it ÷ floor": _ratio(part, part.ratio(key, measure.floor), measure.floor),
        "target": "\n".join(_verdict(part, key, limit) for limit in measure.limits),
    }


def write(path: Path, machine: Mapping[str, str], parts: Sequence[Part]) -> None:
    """Write everything, single values included, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": dict(machine), "parts": {part.name: _part(part) for part in parts}}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _part(part: Part) -> dict[str, Any]:
    measures = {
        key: {
            "title": measure.title.strip(),
            "unit": measure.unit,
            "median": part.found[key].median,
            "p95": part.found[key].p95,
            "peer": measure.peer or None,
            "peer_ratio": part.peer_ratio(key),
            "floor": measure.floor or None,
            "floor_ratio": part.ratio(key, measure.floor),
            "targets": [
                {"most": limit.most, "times": limit.of or None, "kept": part.keeps(key, limit)}
                for limit in measure.limits
            ],
            "values": list(part.found[key].values),
        }
        for key, measure in part.measures.items()
    }
    return {"options": dict(part.settings), "notes": list(part.notes), "measures": measures}


def _p95(values: Sequence[int]) -> float:
    if len(values) < 2:
        return float(values[0])
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def _text(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{_rounded(value / 1024)} KiB" if value < _MIB else f"{_rounded(value / _MIB)} MiB"
    return f"{_rounded(value / 1e6)} ms"


def _ratio(part: Part, value: float | None, other: str) -> str:
    return f"{_rounded(value)} × {part.measures[other].short}" if value is not None else ""


def _verdict(part: Part, key: str, limit: Limit) -> str:
    kept = part.keeps(key, limit)
    word = {True: "ok", False: "missed", None: "unknown"}[kept]
    if not limit.of:
        return f"{word} ≤ {_text(limit.most, part.measures[key].unit)}"
    other = part.measures[limit.of].short if limit.of in part.measures else limit.of
    return f"{word} ≤ {limit.most:g} × {other}"


def _rounded(value: float) -> str:
    """Return two or three digits that count: more would only be noise."""
    size = abs(value)
    decimals = 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{decimals}f}"
