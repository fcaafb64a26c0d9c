"""The tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from bench.figures import Figure, Grid, Limit, Measure, Part, figures, runs

__all__ = [
    "WIDTH",
    "Figure",
    "Limit",
    "Measure",
    "Part",
    "figures",
    "progress",
    "show",
    "show_machine",
]

WIDTH = 124
_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB
_WIDTHS = {
    "median": 9,
    "p95": 9,
    "runs": 4,
    "rate": 10,
    "peer ÷ it": 15,
    "it ÷ floor": 12,
    "target": 22,
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
    """Print the tables of one part."""
    console.print(f"\n{part.name:<9} {part.summary}")
    if any(key in part.found for rows in part.sections.values() for key in rows):
        console.print(_rows(part))
    for grid in part.grids:
        keys = [key for row in grid.rows.values() for key in row.values()]
        if any(key in part.found for key in keys):
            console.print(f"{grid.title}: median / p95; runs: {runs(part.found, keys)}")
            console.print(_grid(part, grid))
    for note in part.notes:
        console.print(f"  {note}")


def _rows(part: Part) -> Table:
    columns = _columns(part)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(no_wrap=True, min_width=38)
    for name in columns:
        is_last = name == "target"
        title = name.replace("floor", part.compared)
        table.add_column(title, justify="left" if is_last else "right", no_wrap=True, min_width=_WIDTHS[name])
    for section, measures in part.sections.items():
        rows = [key for key in measures if key in part.found]
        if rows:
            table.add_row(section)
        for key in rows:
            cells = _cells(part, key)
            table.add_row(f"  {measures[key].title}", *(cells[name] for name in columns))
        table.add_section()
    return table


def _columns(part: Part) -> list[str]:
    """Return the columns that have something in them."""
    measures = [measure for rows in part.sections.values() for measure in rows.values()]
    empty = {
        "rate": not any(measure.moved_bytes for measure in measures),
        "peer ÷ it": not any(measure.peer for measure in measures),
        "it ÷ floor": not any(measure.floor for measure in measures),
        "target": not any(measure.limits for measure in measures),
    }
    return [name for name in _WIDTHS if not empty.get(name)]


def _cells(part: Part, key: str) -> dict[str, str]:
    measure, figure = part.measures[key], part.found[key]
    return {
        "median": text(figure.median, measure.unit),
        "p95": text(figure.p95, measure.unit),
        "runs": str(len(figure.values)),
        "rate": f"{_rounded(measure.moved_bytes / _MIB / (figure.median / 1e9))} MiB/s"
        if measure.moved_bytes and figure.median
        else "",
        "peer ÷ it": _ratio(part, part.peer_ratio(key), measure.peer),
        "it ÷ floor": _ratio(part, part.ratio(key, measure.floor), measure.floor),
        "target": "\n".join(_verdict(part, key, limit) for limit in measure.limits),
    }


def _grid(part: Part, grid: Grid) -> Table:
    """Return a table of medians and, behind them, 95th percentiles."""
    columns = list(dict.fromkeys(column for row in grid.rows.values() for column in row))
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(grid.corner, no_wrap=True, min_width=24)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for title, row in grid.rows.items():
        if any(key in part.found for key in row.values()):
            table.add_row(title, *(_cell(part, row.get(column, "")) for column in columns))
    return table


def _cell(part: Part, key: str) -> str:
    if key not in part.found:
        return "–"
    figure, unit = part.found[key], part.measures[key].unit
    median, p95 = text(figure.median, unit), text(figure.p95, unit)
    # One unit is enough where both have the same.
    same = median.rpartition(" ")[2] == p95.rpartition(" ")[2]
    return f"{median.rpartition(' ')[0] if same else median} / {p95}"


def text(value: float, unit: str) -> str:
    """Return a figure with its unit."""
    if unit != "bytes":
        return f"{_rounded(value / 1e6)} ms" if value < 10e9 else f"{_rounded(value / 1e9)} s"
    if value < _MIB:
        return f"{_rounded(value / _KIB)} KiB"
    return f"{_rounded(value / _MIB)} MiB" if value < _GIB else f"{_rounded(value / _GIB)} GiB"


def _ratio(part: Part, value: float | None, other: str) -> str:
    return f"{_rounded(value)} × {part.measures[other].short}" if value is not None else ""


def _verdict(part: Part, key: str, limit: Limit) -> str:
    kept = part.keeps(key, limit)
    word = {True: "ok", False: "missed", None: "unknown"}[kept]
    tail = "" if limit.tail == "median" else f"{limit.tail} "
    if not limit.of:
        return f"{word} {tail}≤ {text(limit.most, part.measures[key].unit)}"
    other = part.measures[limit.of].short if limit.of in part.measures else limit.of
    return f"{word} {tail}≤ {limit.most:g} × {other}"


def _rounded(value: float) -> str:
    """Return two or three digits that count: more would only be noise."""
    size = abs(value)
    decimals = 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{decimals}f}"
