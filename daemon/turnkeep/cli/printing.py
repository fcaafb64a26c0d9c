"""How the commands print: tables, fields, JSON, progress bars.

Nothing here reads markup: every cell is text, escaped by `words.safe`, with a
style beside it. What is piped is plain and as wide as it has to be.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from turnkeep.cli import words
from turnkeep.client import Progress
from turnkeep.codec import to_json

Cell = str | Text
Pairs = list[tuple[str, Cell | list[Cell]]]

_UNBOUNDED = 1_000_000

STYLES = {
    "STATELESS": "dim",
    "FILESYSTEM": "green",
    "PROCESS": "yellow",
    "FULL": "yellow",
    "DURABLE": "green",
    "SKIPPED": "dim",
    "FAILED": "bold red",
    "running": "green",
    "paused": "yellow",
    "stopped": "yellow",
    "gone": "red",
    "ok": "green",
    "degraded": "yellow",
    "missing": "bold red",
    "added": "green",
    "removed": "red",
}


def console(*, stderr: bool = False) -> Console:
    """Return a console that takes nothing for markup and does not cut off what is piped."""
    made = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not made.is_terminal:
        made.width = _UNBOUNDED
    return made


def styled(text: str, style: str | None = None) -> Text:
    """Return escaped text in a style; that of the word itself unless given."""
    return Text(words.safe(text), style=style if style is not None else STYLES.get(text, ""))


def emit(value: Any) -> None:
    """Print a value as JSON. ASCII only, so that no content reaches the terminal raw."""
    sys.stdout.write(json.dumps(to_json(value), indent=2) + "\n")


def emit_line(value: Any) -> None:
    """Print a value as one line of JSON, at once."""
    sys.stdout.write(json.dumps(to_json(value)) + "\n")
    sys.stdout.flush()


_NARROW = 130


def table(
    out: Console,
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    flexible: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> None:
    """Print rows under their heads; only the flexible columns give way on a narrow terminal,
    and the optional ones are left out there.

    A head that begins with ">" stands over a column of numbers.
    """
    if out.width < _NARROW:
        left_out = set(optional)
        shown = [index for index, head in enumerate(heads) if head.removeprefix(">") not in left_out]
        heads = [heads[index] for index in shown]
        rows = [[row[index] for index in shown] for row in rows]
    give_way = set(flexible)
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in heads:
        name = head.removeprefix(">")
        grid.add_column(name, justify="right" if head != name else "left", no_wrap=name not in give_way)
    for row in rows:
        grid.add_row(*(_cell(cell) for cell in row))
    write(out, grid)


def fields(out: Console, pairs: Pairs) -> None:
    """Print names and values below each other. Several values take a line each, none is left out."""
    grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        values = [value] if isinstance(value, (str, Text)) else list(value)
        for number, item in enumerate(values):
            grid.add_row(name if number == 0 else "", styled(item) if isinstance(item, str) else item)
    write(out, grid)


def write(out: Console, renderable: Any) -> None:
    """Print without the blanks that Rich leaves at the ends of lines."""
    with out.capture() as captured:
        out.print(renderable)
    for line in captured.get().splitlines():
        out.file.write(line.rstrip() + "\n")


def _cell(cell: Cell) -> Text:
    text = styled(cell) if isinstance(cell, str) else cell
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


@contextlib.contextmanager
def progress_bar(err: Console) -> Iterator[Callable[[Progress], None] | None]:
    """Give a function that shows progress, or None where nobody is looking."""
    if not err.is_terminal:
        yield None
        return
    shown = bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    with shown:
        task = shown.add_task("", total=None)

        def show(step: Progress) -> None:
            shown.update(task, description=words.safe(step.phase), completed=step.done, total=step.total)

        yield show
