"""Figures, the rows and grids that show them, and what they are held to."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tail = Literal["median", "p95"]
Axis = str | int | float


@dataclass(frozen=True, slots=True)
class Limit:
    """What a figure is to stay within: `most` in the measure's unit, or so many times that of `of`."""

    most: float
    of: str = ""
    tail: Tail = "median"


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
    moved_bytes: int = 0
    """What was read or written in that time, where a rate says more than a time."""
    axes: Mapping[str, Axis] = field(default_factory=dict)
    """Where it lies in a plot: the measured quantity and what was varied."""


Sections = Mapping[str, Mapping[str, Measure]]
"""A table: the rows below each heading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What all runs of one measure come to."""

    values: Sequence[int]
    median: float
    p95: float

    def at(self, tail: Tail) -> float:
        """Return the median or the 95th percentile."""
        return self.median if tail == "median" else self.p95


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One quantity against two others: the key of a measure in each cell."""

    title: str
    corner: str
    """What the rows are, and what the columns are."""
    rows: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """All that was measured of one thing."""

    name: str
    summary: str
    settings: Mapping[str, Any]
    sections: Sections
    found: Mapping[str, Figure]
    notes: Sequence[str] = field(default_factory=tuple)
    grids: Sequence[Grid] = field(default_factory=tuple)
    in_grids: Mapping[str, Measure] = field(default_factory=dict)
    """Measures that have a cell and no row."""
    compared: str = "floor"
    """What the measures' floors are, where they are none: a heading."""

    @property
    def measures(self) -> Mapping[str, Measure]:
        """All that something was measured for."""
        rows = {key: measure for each in self.sections.values() for key, measure in each.items()}
        return {key: measure for key, measure in {**self.in_grids, **rows}.items() if key in self.found}

    def ratio(self, key: str, other: str, tail: Tail = "median") -> float | None:
        """Return how many times the other one's figure a measure's is; None where that says nothing."""
        if other not in self.found or not self.found[other].at(tail):
            return None
        return self.found[key].at(tail) / self.found[other].at(tail)

    def peer_ratio(self, key: str) -> float | None:
        """Return how many times a measure's median its peer's is."""
        peer = self.measures[key].peer
        return self.ratio(peer, key) if peer in self.found else None

    def keeps(self, key: str, limit: Limit) -> bool | None:
        """Whether a measure stays within a limit; None if what it depends on was not measured."""
        if not limit.of:
            return self.found[key].at(limit.tail) <= limit.most
        ratio = self.ratio(key, limit.of, limit.tail)
        return None if ratio is None else ratio <= limit.most


def figures(samples: Mapping[str, Sequence[int]]) -> dict[str, Figure]:
    """Return the figure of every measure."""
    return {
        key: Figure(values=values, median=statistics.median(values), p95=p95(values))
        for key, values in samples.items()
        if values
    }


def p95(values: Sequence[int]) -> float:
    """Return the 95th percentile, interpolated."""
    if len(values) < 2:
        return float(values[0])
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def runs(found: Mapping[str, Figure], keys: Iterable[str]) -> str:
    """Return how often the measures were taken, as "8" or "3 to 8"."""
    counts = sorted({len(found[key].values) for key in keys if key in found})
    if not counts:
        return "0"
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
