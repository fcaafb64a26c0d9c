"""The chain that holds the journal's events together.

Each event carries a hash over its fields and the hash of the event before, so
that whoever knows the hash of one event knows all before it: none of them can
be changed, left out or put in between without that hash changing. Haber and
Stornetta, "How to Time-Stamp a Digital Document" (1991), is where this comes
from. What was cut off at the end is found only by who kept a later head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any

from blake3 import blake3

from turnkeep.errors import InvalidRequest

GENESIS = bytes(32)
"""What stands for the hash before the first event."""

Row = tuple[int, int, str, str | None, str, int, str, str, str]
"""An event: sequence, time_ns, kind, sandbox_id, sandbox_name, turn, message; details and changes as JSON."""

_HEAD = re.compile(r"(\d{1,18}):([0-9a-f]{64})")
_MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Head:
    """An event's number and hash: all that came before it is fixed by them. Number 0 is before the first."""

    sequence: int = 0
    hash: bytes = GENESIS

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read what `str` gave.

        Raises:
            InvalidRequest: it is none.
        """
        found = _HEAD.fullmatch(text.strip())
        if found is None:
            raise InvalidRequest(
                f"{text[:80]!r} is no head of a journal",
                hint="it is NUMBER:HASH, as turnkeep journal head prints it",
            )
        return cls(int(found[1]), bytes.fromhex(found[2]))


def link(previous: bytes, row: Row) -> bytes:
    """Return the hash of an event: BLAKE3 of the hash before it and of the event's fields as a JSON array."""
    return blake3(previous + json.dumps(row, separators=(",", ":")).encode()).digest()


def problems(rows: Iterable[tuple[Row, bytes]], kept: Iterable[Head] = ()) -> Iterator[str]:
    """Yield what is wrong with a journal's events, given in order with their hashes.

    `kept` are heads that were written down earlier, elsewhere. Without one the end
    may have been cut off, or all of it been written anew, and nothing shows it.
    """
    at = Head()
    found = 0
    heads = {head.sequence: head for head in kept}
    for row, stored in rows:
        if row[0] != at.sequence + 1:
            found += 1
            yield _missing(at.sequence + 1, row[0] - 1)
        elif not _is_row(row) or link(at.hash, row) != stored:
            found += 1
            yield f"event {row[0]} ({row[2]}): it, or the one before it, is not what was recorded"
        at = Head(row[0], stored)
        if heads.pop(at.sequence, at) != at:
            found += 1
            yield f"event {at.sequence}: not the one whose hash was kept; something up to it was changed"
        if found >= _MOST_PROBLEMS:
            yield "and perhaps more: the check ends here"
            return
    if (last := max(heads, default=0)) > at.sequence:
        yield _missing(at.sequence + 1, last) + ": the journal was cut, or is another one"


def _is_row(row: tuple[object, ...]) -> bool:
    """Whether an event's values have the types that were recorded: SQLite lets any stand anywhere."""
    kinds: tuple[type | UnionType, ...] = (int, int, str, str | None, str, int, str, str, str)
    return all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True))


def _missing(first: int, last: int) -> str:
    return f"event {first} is missing" if first == last else f"events {first} to {last} are missing"


def exported(row: Row, stored: bytes) -> str:
    """Return an event as a line of JSON from which anybody can compute its hash (see `link`)."""
    names = ("sequence", "time_ns", "kind", "sandbox_id", "sandbox_name", "turn", "message")
    line: dict[str, Any] = dict(zip(names, row[:7], strict=True))
    line |= {"details": row[7], "changes": row[8], "hash": stored.hex()}
    return json.dumps(line)
