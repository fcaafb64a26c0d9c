"""What the replay plays: the traces' format, their folder, the waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench.replay import traces, waits
from bench.replay.waits import Waits
from demo.stage import Failed


def turn(run: str, number: int, **more: Any) -> str:
    return json.dumps({"run": run, "turn": number, "command": f"echo {number}", **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [turn("one", 1, sdist="flask==2.2.*"), turn("two", 1), turn("one", 2, exit=3, tokens=7)]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines) + "\n\n")
    return tmp_path


def test_turns_of_one_run_are_together_in_their_order(folder: Path) -> None:
    one, two = traces.load(folder)
    assert (one.name, one.sdist, [step.turn for step in one.steps]) == ("one", "flask==2.2.*", [1, 2])
    assert (two.name, two.sdist, len(two.steps)) == ("two", "", 1)


def test_what_a_line_does_not_say_has_a_default(folder: Path) -> None:
    first, second = traces.load(folder / "runs.jsonl")[0].steps
    assert (first.exit, first.cwd, first.shell) == (None, "/testbed", ("bash", "-lc"))
    assert (second.exit, second.limit_s, second.probe) == (3, None, False)


@pytest.mark.parametrize("line", ["no json", "[]", '{"run": "one"}', '{"run": "one", "turn": "x"}'])
def test_a_line_of_another_format_is_named(folder: Path, line: str) -> None:
    (folder / "runs.jsonl").write_text(turn("one", 1) + "\n" + line + "\n")
    with pytest.raises(Failed, match=r"runs\.jsonl, line 2"):
        traces.load(folder)


def test_a_folder_without_runs_says_how_to_name_another(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="--traces"):
        traces.load(tmp_path)


def test_the_option_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, other = tmp_path / "named", tmp_path / "other"
    named.mkdir()
    other.mkdir()
    monkeypatch.setenv(traces.VARIABLE, str(other))
    assert traces.folder(named) == named
    assert traces.folder(None) == other
    monkeypatch.setenv(traces.VARIABLE, str(tmp_path / "absent"))
    with pytest.raises(Failed, match="TRACES=FOLDER"):
        traces.folder(None)


def test_selecting_bounds_the_recorded_runs_only(folder: Path) -> None:
    recorded = traces.load(folder)
    written = traces.load(traces.SYNTHETIC)
    assert traces.selected(recorded, written, runs=1) == [recorded[0], *written]
    assert traces.selected(recorded, written, only="two") == [recorded[1]]
    with pytest.raises(Failed, match="no run's name contains 'three'; there are one, two"):
        traces.selected(recorded, written, only="three")


def test_the_runs_that_were_written_for_this_have_probes_or_files_to_tell() -> None:
    written = {trace.name: trace for trace in traces.load(traces.SYNTHETIC)}
    assert [name for name, trace in written.items() if not trace.has_probes] == ["synthetic__state-file"]
    assert {trace.sdist for trace in written.values()} == {""}
    assert sum(step.limit_s is not None for trace in written.values() for step in trace.steps) == 3


@pytest.fixture
def distribution(tmp_path: Path) -> Path:
    path = tmp_path / waits.FILE
    sets = {"unit": "seconds", "a set": {"quantiles": {"p90": 10, "p10": 1, "p50": 2}}, "another": {}}
    path.write_text(json.dumps(sets))
    return path


def test_waits_are_the_same_for_the_same_seed_and_run(distribution: Path) -> None:
    drawn = waits.load(distribution, source="a set", scale=0.2, seed=1)
    assert drawn.drawn("one", 5) == drawn.drawn("one", 9)[:5]
    assert drawn.drawn("one", 5) != drawn.drawn("two", 5)
    other = waits.load(distribution, source="a set", scale=0.2, seed=2)
    assert drawn.drawn("one", 5) != other.drawn("one", 5)


def test_waits_lie_between_the_quantiles_and_are_scaled() -> None:
    made = Waits(source="", quantiles=((0.1, 1.0), (0.5, 2.0), (0.9, 8.0)), scale=0.5, seed=1)
    assert [made.at(share) for share in (0.0, 0.1, 0.5, 0.9, 1.0)] == [1.0, 1.0, 2.0, 8.0, 8.0]
    assert made.at(0.7) == pytest.approx(4.0)
    assert all(0.5 <= wait <= 4.0 for wait in made.drawn("one", 200))


def test_an_unknown_set_of_waits_is_named(distribution: Path) -> None:
    with pytest.raises(Failed, match="no quantiles"):
        waits.load(distribution, source="third", scale=1, seed=1)
    with pytest.raises(Failed, match="--waits"):
        waits.load(distribution.with_name("absent"), scale=1, seed=1)
