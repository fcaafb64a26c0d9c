"""What all plots have in common: how measures are found, colours, axes, files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

# Told apart in greyscale and by people who see fewer colours (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#999933")
OURS = COLOURS[0]
_FAINT, _TARGET = "#BBBBBB", "#999999"
_KIB, _MIB, _GIB = 1024, 1024**2, 1024**3

mpl.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E5E5E5",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        # One run's SVG is the same each time it is drawn.
        "svg.hashsalt": "turnkeep",
    }
)


@dataclass(frozen=True, slots=True)
class Point:
    """One measure in a plot."""

    x: float
    median: float
    p95: float


class Measures:
    """A part's measures, found by what they are of and what was varied."""

    def __init__(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        self._found = list(found.values())

    def __getitem__(self, axes: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the one measure that has all these axes; None if there is none."""
        return next(iter(self.all(**axes)), None)

    def all(self, **axes: Any) -> list[Mapping[str, Any]]:
        """Return all measures that have these axes."""
        wanted = axes.items()
        return [each for each in self._found if wanted <= each["axes"].items()]

    def values(self, axis: str, **axes: Any) -> list[Any]:
        """Return what was varied on an axis, in ascending order."""
        return sorted({each["axes"][axis] for each in self.all(**axes) if axis in each["axes"]})

    def line(self, x: str, **axes: Any) -> list[Point]:
        """Return the measures along an axis."""
        found = [each for each in self.all(**axes) if x in each["axes"]]
        points = [Point(each["axes"][x], each["median"], each["p95"]) for each in found]
        return sorted(points, key=lambda point: point.x)


def new(rows: int, columns: int, *, height: float = 2.7) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many plots, from left to right and downwards."""
    figure = Figure(figsize=(3.6 * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def draw_line(axes: Axes, points: Sequence[Point], label: str, colour: str, **options: Any) -> None:
    """Draw medians as a line, and up to the 95th percentile a whisker."""
    if not points:
        return
    xs = [point.x for point in points]
    medians = [point.median for point in points]
    above = [max(0.0, point.p95 - point.median) for point in points]
    none = [0.0] * len(points)
    shown = {"marker": "o", "markersize": 3.5, "linewidth": 1.4, "capsize": 2, "elinewidth": 0.8, **options}
    axes.errorbar(xs, medians, yerr=[none, above], label=label, color=colour, **shown)


def draw_floor(axes: Axes, points: Sequence[Point], label: str, dashes: str = ":") -> None:
    """Draw what nobody can go below."""
    if points:
        xs, ys = [point.x for point in points], [point.median for point in points]
        axes.plot(xs, ys, color=_FAINT, linestyle=dashes, linewidth=1.2, label=label)


def draw_target(axes: Axes, value: float, label: str) -> None:
    """Draw what a figure is to stay below."""
    axes.axhline(value, color=_TARGET, linestyle="--", linewidth=0.9)
    axes.annotate(
        label, (0.995, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7
    )


def logarithmic(axes: Axes, *, x: str, y: str = "ns") -> None:
    """Make both axes logarithmic, with sizes and times as people write them."""
    drawn = sorted({value for line in axes.get_lines() for value in line.get_xdata()})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(drawn))
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator(_ticks(low, high, y)))
    for axis, unit in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: text(value, unit)))
        axis.set_minor_locator(NullLocator())


def linear(axes: Axes, y: str) -> None:
    """Begin the vertical axis at zero, with sizes and times as people write them."""
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value, "count")))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value, y)))


def _ticks(low: float, high: float, unit: str) -> list[float]:
    """Return round values between two: a few, and more where all lie close together."""
    if unit == "bytes":
        return [value for power in range(21) if low <= (value := 4.0**power) <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if high > 300 * low else (1, 3) if high > 20 * low else (1, 2, 5)
    return [value for power in decades for step in steps if low <= (value := step * 10.0**power) <= high]


def bars(axes: Axes, labels: Iterable[str], found: Sequence[Mapping[str, Any]], *, unit: str) -> None:
    """Draw a bar for each measure, Turnkeep's own in its colour, with its median at the end."""
    names = list(labels)
    medians = [each["median"] for each in found]
    colours = [OURS if "turnkeep" in name.lower() else _FAINT for name in names]
    drawn = axes.barh(names, medians, color=colours, height=0.65)
    axes.bar_label(drawn, [text(value, unit) for value in medians], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)


def text(value: float, unit: str) -> str:
    """Return a figure as short as an axis needs it."""
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "bytes":
        scales: list[tuple[float, str]] = [(_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB"), (1, "B")]
    else:
        scales = [(1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1, "ns")]
    if not value:
        return "0"
    size, name = next((each for each in scales if value >= each[0]), scales[-1])
    return f"{value / size:.3g} {name}"


def caption(document: Mapping[str, Any]) -> str:
    """Return what a plot was measured on, in two lines."""
    about = document["machine"]
    first = " · ".join(filter(None, (about.get(key) for key in ("date", "turnkeep", "cpu", "memory"))))
    second = f"kernel {about.get('kernel', '')} · {about.get('engine', '')}"
    return f"median, whisker to the 95th percentile · {first}\n{second}"


def save(figure: Figure, folder: Path, name: str, below: str) -> list[Path]:
    """Write a figure as SVG and PNG; return the files."""
    figure.supxlabel(below, fontsize=6, x=0.01, ha="left")
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    figure.savefig(paths[0], metadata={"Date": None})
    figure.savefig(paths[1], dpi=150)
    return paths
