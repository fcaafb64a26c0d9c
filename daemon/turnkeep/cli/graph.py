"""A tree of turns as lines beside the log, in the manner of `git log --graph`.

The nodes come newest first, each before its parent. Every branch that is still
looking for its parent has a lane; where several find the same one, they join:

    ● 13
    │ ● 12
    │ ● 11
    ├─╯
    ● 7
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Strokes:
    """The characters to draw with."""

    down: str
    across: str
    joint: str
    between: str
    corner: str
    crossing: str


LINES = Strokes(down="│", across="─", joint="├", between="┴", corner="╯", crossing="┼")
ASCII = Strokes(down="|", across="-", joint="+", between="+", corner="'", crossing="+")


def draw(
    nodes: Iterable[tuple[str, str | None]], mark: Callable[[str], str], strokes: Strokes = LINES
) -> Iterator[tuple[str, str | None]]:
    """Yield lines with the key of the node each is for; None for lines where branches join.

    `nodes` are keys with their parents' keys, `mark` gives a node's character.
    """
    lanes: list[str | None] = []
    for key, parent in nodes:
        mine = [number for number, wanted in enumerate(lanes) if wanted == key]
        if len(mine) > 1:
            yield _joining(lanes, mine, strokes), None
            for number in mine[1:]:
                lanes[number] = None
        column = mine[0] if mine else _free(lanes)
        lanes[column] = key
        yield _row(lanes, column, mark(key), strokes), key
        lanes[column] = parent
        while lanes and lanes[-1] is None:
            lanes.pop()


def _free(lanes: list[str | None]) -> int:
    if None not in lanes:
        lanes.append(None)
    return lanes.index(None)


def _row(lanes: list[str | None], column: int, mark: str, strokes: Strokes) -> str:
    cells = [strokes.down if wanted is not None else " " for wanted in lanes]
    cells[column] = mark
    return " ".join(cells).rstrip()


def _joining(lanes: list[str | None], mine: list[int], strokes: Strokes) -> str:
    first, last = mine[0], mine[-1]
    line = ""
    for number, wanted in enumerate(lanes):
        inside = first <= number < last
        if number == first:
            cell = strokes.joint
        elif number == last:
            cell = strokes.corner
        elif number in mine:
            cell = strokes.between
        elif wanted is not None:
            cell = strokes.crossing if inside else strokes.down
        else:
            cell = strokes.across if inside else " "
        line += cell + (strokes.across if inside else " ")
    return line.rstrip()
