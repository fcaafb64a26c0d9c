"""Plots are drawn from a document alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="only the extra «bench» has it")

from bench import plots

MACHINE = {"date": "some day", "turnkeep": "0", "cpu": "one", "kernel": "6", "engine": "Docker"}


def measure(median: float, **axes: Any) -> dict[str, Any]:
    """One measure of a document, as far as plots look at it."""
    return {"axes": axes, "median": median, "p95": median * 2, "values": [median]}


def everything() -> dict[str, Any]:
    """Return a document with something for every plot."""
    sizes = [
        measure(1e6 * changed, quantity=what, files=files, changed=changed)
        for what in ("freeze", "captured", "durable", "rollback", "stored", "cpu")
        for files in (100, 1000)
        for changed in (1, 5)
    ]
    sizes += [
        measure(1e6, quantity=what, files=files) for what in ("end", "begin", "decision") for files in (1, 2)
    ]
    sizes += [
        measure(1e6, quantity=what, file_bytes=size, operation="appended")
        for what in ("freeze", "durable", "rollback")
        for size in (1 << 20, 1 << 30)
    ]
    peers = [
        measure(1e6, quantity=what, files=files, tool=tool)
        for what in ("keep", "back", "stored")
        for files in (100, 1000)
        for tool in ("Turnkeep", "borg")
    ]
    store = [
        measure(1e6, quantity=what, tool=tool)
        for what in ("in", "out", "stored")
        for tool in ("turnkeep_store", "borg")
    ]
    processes = [
        measure(1e6, quantity="stopped", memory_bytes=1 << 24, tool="Turnkeep"),
        measure(1e6, quantity="back", of="a 64 MiB server", tool="Turnkeep"),
    ]
    found = {"sizes": sizes, "peers": peers, "store": store, "processes": processes}
    parts = {
        name: {"measures": {str(number): each for number, each in enumerate(rows)}}
        for name, rows in found.items()
    }
    return {"machine": MACHINE, "parts": parts}


def test_each_plot_is_drawn_as_svg_and_png(tmp_path: Path) -> None:
    drawn = plots.draw(everything(), tmp_path / "plots")
    assert {path.stem for path in drawn} == {"sizes", "costs", "large", "peers", "store", "processes"}
    for path in drawn:
        begin = path.read_bytes()[:5]
        assert begin == (b"<?xml" if path.suffix == ".svg" else b"\x89PNG\r")


def test_the_same_document_gives_the_same_svg(tmp_path: Path) -> None:
    first = plots.draw(everything(), tmp_path / "first")
    second = plots.draw(everything(), tmp_path / "second")
    for one, other in zip(first, second, strict=True):
        if one.suffix == ".svg":
            assert one.read_bytes() == other.read_bytes()


def test_parts_without_figures_have_no_plots(tmp_path: Path) -> None:
    parts: dict[str, Any] = {name: {"measures": {}} for name in ("sizes", "peers", "store", "processes")}
    assert plots.draw({"machine": MACHINE, "parts": parts}, tmp_path) == []
