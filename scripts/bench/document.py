"""The JSON: everything that was measured, single values included."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Part


def document(machine: Mapping[str, str], parts: Sequence[Part]) -> dict[str, Any]:
    """Return what is written; plots are drawn from it, too."""
    return {"machine": dict(machine), "parts": {part.name: _part(part) for part in parts}}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read(paths: Iterable[Path]) -> dict[str, Any]:
    """Return the documents as one: a part that several have is the last one's.

    Raises:
        OSError, ValueError: one cannot be read.
    """
    merged: dict[str, Any] = {"machine": {}, "parts": {}}
    for path in paths:
        content = json.loads(path.read_text())
        merged["machine"] = content["machine"]
        merged["parts"].update(content["parts"])
    return merged


def _part(part: Part) -> dict[str, Any]:
    return {
        "summary": part.summary,
        "options": dict(part.settings),
        "notes": list(part.notes),
        "measures": {key: _measure(part, key) for key in part.measures},
    }


def _measure(part: Part, key: str) -> dict[str, Any]:
    measure, figure = part.measures[key], part.found[key]
    return {
        "title": measure.title.strip(),
        "unit": measure.unit,
        "axes": dict(measure.axes),
        "median": figure.median,
        "p95": figure.p95,
        "moved_bytes": measure.moved_bytes or None,
        "peer": measure.peer or None,
        "peer_ratio": part.peer_ratio(key),
        "floor": measure.floor or None,
        "floor_ratio": part.ratio(key, measure.floor),
        "targets": [
            {
                "most": limit.most,
                "times": limit.of or None,
                "tail": limit.tail,
                "kept": part.keeps(key, limit),
            }
            for limit in measure.limits
        ],
        "values": list(figure.values),
    }
