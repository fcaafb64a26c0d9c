"""Changing one member of a JSON text and leaving every other character as it is.

People keep configuration in their own order, indentation and way of writing
numbers. Parsing and printing it again would lose that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """One member of an object: where its key begins and ends, and its value."""

    key: str
    start: int
    key_end: int
    value: int
    end: int


def keys(text: str, path: Sequence[str] = ()) -> list[str]:
    """Return the keys of the object at a path, in their order; one that is there twice, twice.

    Raises:
        ValueError: it is no JSON, or there is no object.
    """
    return [member.key for member in _members(text, _find(text, path))]


def with_member(text: str, path: Sequence[str], key: str, value: Any) -> str:
    """Return the text with a new member at the end of the object at a path.

    Raises:
        ValueError: it is no JSON, there is no object, or it has this key.
    """
    at = _find(text, path)
    members = _members(text, at)
    if any(member.key == key for member in members):
        raise ValueError(f"there is a member {key!r}")
    unit = _unit(text)
    if not members:
        close = _skip(text, at + 1)
        indent = _line_indent(text, at)
        rendered = _render({key: value}, unit, indent)
        return text[:at] + rendered + text[close + 1 :]
    last = members[-1]
    before = text.index(",", members[-2].end) + 1 if len(members) > 1 else at + 1
    lead, colon = text[before : last.start], text[last.key_end : last.value]
    compact = not lead and len(colon) == 1
    lead = lead or ("" if compact else " ")
    rendered = _render(value, unit if "\n" in lead else None, lead.rpartition("\n")[2], compact=compact)
    return f"{text[: last.end]},{lead}{json.dumps(key)}{colon}{rendered}{text[last.end :]}"


def without_member(text: str, path: Sequence[str], key: str) -> str:
    """Return the text without a member of the object at a path.

    Raises:
        ValueError: it is no JSON, there is no object, or no such member.
    """
    at = _find(text, path)
    members = _members(text, at)
    index = next((number for number, member in enumerate(members) if member.key == key), None)
    if index is None:
        raise ValueError(f"there is no member {key!r}")
    if len(members) == 1:
        return text[: at + 1] + text[_skip(text, members[0].end) :]
    if index == 0:
        return text[: members[0].start] + text[members[1].start :]
    return text[: members[index - 1].end] + text[members[index].end :]


def _find(text: str, path: Sequence[str]) -> int:
    """Return where the object at a path begins."""
    json.loads(text)  # from here on it is known to be JSON
    at = _skip(text, 0)
    for key in path:
        found = [member.value for member in _members(text, at) if member.key == key]
        if not found:
            raise ValueError(f"there is no member {key!r}")
        at = found[-1]
    return at


def _members(text: str, at: int) -> list[_Member]:
    if text[at] != "{":
        raise ValueError("it is no object")
    found: list[_Member] = []
    position = _skip(text, at + 1)
    while text[position] != "}":
        start = position
        key, key_end = _DECODER.raw_decode(text, start)
        value = _skip(text, text.index(":", key_end) + 1)
        _, end = _DECODER.raw_decode(text, value)
        found.append(_Member(key=key, start=start, key_end=key_end, value=value, end=end))
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return found


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None
    return found.end()


def _unit(text: str) -> str | None:
    """Return what one level is indented by; None for a text of one line."""
    found = re.match(r"\s*\{\s*?\n([ \t]*)", text)
    if found is None:
        return None if text.strip() != "{}" else "  "
    return found[1] or "  "


def _line_indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    found = re.match(r"[ \t]*", line)
    assert found is not None
    return found[0]


def _render(value: Any, unit: str | None, indent: str, *, compact: bool = False) -> str:
    if unit is None:
        return json.dumps(value, separators=(",", ":") if compact else (", ", ": "))
    return json.dumps(value, indent=unit).replace("\n", "\n" + indent)
