"""The plots. Each takes a part's measures, and gives None where it has nothing to show."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.plots import style
from bench.plots.style import COLOURS, Measures

_MS = 1e6
_FILES = "files in the writable layer"
_SERVER = "a 64 MiB server"


def sizes(found: Measures) -> Figure | None:
    """Time against the number of files, a line for each number of changed ones."""
    panels = {
        "freeze": ("Freeze window of a turn", 2 * _MS),
        "captured": ("EndTurn to captured", 10 * _MS),
        "durable": ("EndTurn to durable", None),
        "rollback": ("Rollback, call to answer", 5 * _MS),
    }
    return _by_files(found, panels)


def costs(found: Measures) -> Figure | None:
    """What a turn costs besides time, and what one costs that changed nothing."""
    if not found.all(quantity="cpu"):
        return None
    figure, (stored, cpu, calls) = style.new(1, 3)
    for colour, count in zip(COLOURS, found.values("changed", quantity="stored"), strict=False):
        style.draw_line(stored, found.line("files", quantity="stored", changed=count), f"{count:,}", colour)
    for colour, count in zip(COLOURS, found.values("changed", quantity="cpu"), strict=False):
        label = f"{count:,}" if count else "none"
        style.draw_line(cpu, found.line("files", quantity="cpu", changed=count), label, colour)
    names = {"decision": "stateless decision", "end": "EndTurn round trip", "begin": "BeginTurn, gate open"}
    for colour, (quantity, label) in zip(COLOURS, names.items(), strict=False):
        style.draw_line(calls, found.line("files", quantity=quantity), label, colour)
    stored.set_title("Stored for a turn")
    cpu.set_title("Daemon's processor time a turn")
    calls.set_title("Decision and calls")
    for axes in (stored, cpu, calls):
        style.logarithmic(axes, x="count", y="bytes" if axes is stored else "ns")
        axes.set_xlabel(_FILES)
    stored.legend(title="changed files")
    cpu.legend(title="changed files")
    calls.legend()
    return figure


def large(found: Measures) -> Figure | None:
    """One large file: time against its size, a line for each thing that happened to it."""
    operations = found.values("operation", quantity="freeze")
    if not operations:
        return None
    panels = {
        "freeze": "Freeze window, one large file",
        "durable": "EndTurn to durable",
        "rollback": "Rollback, call to answer",
    }
    figure, axes = style.new(1, len(panels))
    for panel, (quantity, title) in zip(axes, panels.items(), strict=True):
        for colour, operation in zip(COLOURS, operations, strict=False):
            line = found.line("file_bytes", quantity=quantity, operation=operation)
            style.draw_line(panel, line, operation, colour)
        style.draw_floor(panel, found.line("file_bytes", quantity="floor read"), "floor: read it")
        style.draw_floor(panel, found.line("file_bytes", quantity="floor zstd"), "floor: zstd -1", "--")
        style.logarithmic(panel, x="bytes")
        panel.set_xlabel("size of the file")
        panel.set_title(title)
    axes[0].legend(fontsize=7)
    return figure


def peers(found: Measures) -> Figure | None:
    """What a user would use instead: keeping and going back against the number of files."""
    if not found.values("tool", quantity="keep"):
        return None
    panels = {"keep": "Keep a turn, durable", "back": "Go back", "stored": "Stored for a turn"}
    figure, axes = style.new(1, len(panels), height=3.2)
    for panel, (quantity, title) in zip(axes, panels.items(), strict=True):
        unit = "bytes" if quantity == "stored" else "ns"
        if _along(panel, found, quantity, "files", unit=unit, x="count"):
            panel.set_xlabel(_FILES)
        panel.set_title(title)
    for panel in axes[1:]:
        if legend := panel.get_legend():
            legend.remove()
    return figure


def store(found: Measures) -> Figure | None:
    """The store as a library, beside tools that keep a whole folder."""
    tools = found.values("tool", quantity="in")
    if not tools:
        return None
    order = sorted(tools, key=lambda name: (not name.startswith("turnkeep"), name))
    panels = {"in": "In: a folder kept", "out": "Out: brought back", "stored": "On the disk"}
    figure, axes = style.new(1, len(panels), height=1.9)
    for panel, (quantity, title) in zip(axes, panels.items(), strict=True):
        rows = {tool: each for tool in order if (each := found[{"quantity": quantity, "tool": tool}])}
        style.bars(panel, rows, list(rows.values()), unit="bytes" if quantity == "stored" else "ns")
        panel.set_title(title)
    return figure


def processes(found: Measures) -> Figure | None:
    """Dumps and live restores of processes."""
    ways = {each["axes"]["tool"]: each for each in found.all(quantity="back", of=_SERVER)}
    if not ways:
        return None
    figure, (stopped, restored) = style.new(1, 2, height=2.6)
    _along(stopped, found, "stopped", "memory_bytes", unit="ns", x="bytes")
    stopped.set_title("Stopped for a dump, as a server sees it")
    style.bars(restored, ways, list(ways.values()), unit="ns")
    restored.set_title(f"{_SERVER[0].upper()}{_SERVER[1:]} back")
    return figure


def endurance(found: Measures) -> Figure | None:
    """The daemon's memory and its turns, over many turns."""
    resident = found.line("turns", quantity="resident")
    if not resident:
        return None
    figure, (memory, durable) = style.new(1, 2, height=2.2)
    style.draw_line(memory, resident, "resident", style.OURS)
    style.draw_line(durable, found.line("turns", quantity="durable"), "durable", style.OURS)
    for panel, title, unit in ((memory, "Resident size", "bytes"), (durable, "EndTurn to durable", "ns")):
        style.linear(panel, unit)
        panel.set_title(title)
        panel.set_xlabel("turns")
    return figure


def _along(panel: Axes, found: Measures, quantity: str, axis: str, *, unit: str, x: str) -> bool:
    """Draw a line for each tool along an axis; bars where only one value was measured."""
    tools = found.values("tool", quantity=quantity)
    order = sorted(tools, key=lambda name: (name != "Turnkeep", name))
    several = len(found.values(axis, quantity=quantity)) > 1
    if several:
        for colour, tool in zip(COLOURS, order, strict=False):
            style.draw_line(panel, found.line(axis, quantity=quantity, tool=tool), tool, colour)
        style.logarithmic(panel, x=x, y=unit)
        panel.legend(fontsize=7)
    else:
        rows = {tool: each for tool in order if (each := found[{"quantity": quantity, "tool": tool}])}
        style.bars(panel, rows, list(rows.values()), unit=unit)
    return several


def _by_files(found: Measures, panels: dict[str, tuple[str, float | None]]) -> Figure | None:
    counts = found.values("changed", quantity="freeze")
    if not counts:
        return None
    figure, axes = style.new(2, 2)
    for panel, (quantity, (title, target)) in zip(axes, panels.items(), strict=True):
        for colour, count in zip(COLOURS, counts, strict=False):
            line = found.line("files", quantity=quantity, changed=count)
            style.draw_line(panel, line, f"{count:,}", colour)
        if target is not None:
            style.draw_target(panel, target, f"target, up to 100 files: {target / _MS:g} ms")
        style.logarithmic(panel, x="count")
        panel.set_title(title)
        panel.set_xlabel(_FILES)
    axes[0].legend(title="changed files", fontsize=7)
    return figure


Plot = Callable[[Measures], Figure | None]

PLOTS: tuple[tuple[str, str, Plot], ...] = (
    ("sizes", "sizes", sizes),
    ("costs", "sizes", costs),
    ("large", "sizes", large),
    ("peers", "peers", peers),
    ("store", "store", store),
    ("processes", "processes", processes),
    ("endurance", "endurance", endurance),
)
"""Each plot's name, the part that it shows, and what draws it."""
