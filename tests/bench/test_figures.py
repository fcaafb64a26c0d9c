"""Figures, targets and tables, from samples that are known."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from bench import document, report
from bench.budget import Budget
from bench.figures import Grid, Limit, Measure, Part, figures, runs
from bench.samples import Samples
from rich.console import Console

MS = 1_000_000


def part(**samples: list[int]) -> Part:
    """A part with a row for each key, the first of which is Turnkeep's."""
    first, *others = samples
    limits = (Limit(2 * MS), Limit(3 * MS, tail="p95"), *(Limit(0.5, other) for other in others))
    rows = {first: Measure("ours", others[0] if others else "", limits=limits)}
    rows |= {other: Measure(other, short=other) for other in others}
    return Part(name="some", summary="", settings={}, sections={"rows": rows}, found=figures(samples))


def test_a_figure_is_the_median_and_the_interpolated_95th_percentile() -> None:
    found = figures({"a": list(range(1, 22)), "once": [7], "never": []})
    assert (found["a"].median, found["a"].p95) == (11, 20)
    assert (found["once"].median, found["once"].p95) == (7, 7)
    assert "never" not in found


def test_targets_are_of_the_median_the_tail_or_another_measure() -> None:
    made = part(ours=[1 * MS] * 19 + [9 * MS], peer=[3 * MS])
    kept = [made.keeps("ours", limit) for limit in made.measures["ours"].limits]
    assert kept == [True, True, True]
    late = part(ours=[1 * MS] * 10 + [9 * MS] * 9, peer=[3 * MS])
    assert [late.keeps("ours", limit) for limit in late.measures["ours"].limits] == [True, False, True]


def test_a_ratio_to_what_was_not_measured_is_unknown() -> None:
    made = part(ours=[MS], peer=[])
    assert made.peer_ratio("ours") is None
    assert made.keeps("ours", Limit(0.5, "peer")) is None


def test_tables_show_medians_ratios_and_targets() -> None:
    console = Console(width=report.WIDTH, file=io.StringIO(), markup=False)
    report.show(console, part(ours=[MS] * 3, peer=[4 * MS] * 3))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1.00 ms" in shown
    assert "4.00 × peer" in shown
    assert "ok p95 ≤ 3.00 ms" in shown


def test_a_grid_shows_what_there_is_and_says_how_often_it_was_measured() -> None:
    rows = {"5 changed": {"100 files": "a", "1,000 files": "b"}, "9 changed": {"100 files": "c"}}
    found = figures({"a": [MS, MS], "b": [2 * MS]})
    made = Part(
        name="some",
        summary="",
        settings={},
        sections={},
        found=found,
        grids=[Grid(title="freeze", corner="files", rows=rows)],
        in_grids={key: Measure(key) for key in "abc"},
    )
    console = Console(width=report.WIDTH, file=io.StringIO(), markup=False)
    report.show(console, made)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "runs: 1 to 2" in shown
    assert "1.00 / 1.00 ms" in shown
    assert "9 changed" not in shown
    assert runs(found, []) == "0"


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (1_234_567, "ns", "1.23 ms"),
        (61e9, "ns", "61.0 s"),
        (2048, "bytes", "2.00 KiB"),
        (3 << 20, "bytes", "3.00 MiB"),
        (5 << 30, "bytes", "5.00 GiB"),
    ],
)
def test_units(value: float, unit: str, shown: str) -> None:
    assert report.text(value, unit) == shown


def test_documents_hold_every_value_and_can_be_put_together(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "below" / "second.json"
    made = part(ours=[1, 2, 3], peer=[4])
    document.write(first, document.document({"kernel": "1"}, [made]))
    document.write(second, {"machine": {"kernel": "2"}, "parts": {"other": {}}})
    assert json.loads(first.read_text())["parts"]["some"]["measures"]["ours"]["values"] == [1, 2, 3]
    merged = document.read([first, second])
    assert merged["machine"] == {"kernel": "2"}
    assert set(merged["parts"]) == {"some", "other"}


def test_a_budget_that_is_spent_leaves_the_fewest_rounds() -> None:
    assert list(Budget(-1).rounds(9)) == [1, 2]
    assert list(Budget(-1).rounds(9, least=3)) == [1, 2, 3]
    assert list(Budget(-1).rounds(1)) == [1]
    assert list(Budget().rounds(9)) == list(range(1, 10))
    assert Budget(-1).share(0.5).left_s() <= 0


def test_what_warms_caches_up_is_forgotten() -> None:
    samples = Samples()
    samples.add("a", 1)
    with samples.forgotten():
        samples.add("a", 2)
        samples.add("b", 3)
    assert (samples.values["a"], samples.values["b"]) == ([1], [])
