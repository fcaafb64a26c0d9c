"""What the replay is made of, without a sandbox: archives, commands' output, sizes, figures."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import zstandard
from bench.replay import checkouts, figures, sizes
from bench.replay.arms import Arm, Daemon, Played
from bench.replay.commands import Outcome
from bench.replay.figures import Pair
from bench.replay.sizes import Sizes
from bench.replay.traces import Step, Trace
from demo.stage import Failed


def archive(**files: str) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.mtime = len(text), 1000, 1234567
            tar.addfile(member, io.BytesIO(text.encode()))
    made.seek(0)
    return made


def test_a_release_is_moved_below_the_testbed_and_given_to_root() -> None:
    source = archive(**{"flask-1/setup.py": "x", "flask-1/src/a.py": "yy", "flask-1/../../etc/passwd": "no"})
    with tarfile.open(fileobj=io.BytesIO(checkouts.rooted(source))) as tar:
        members = tar.getmembers()
        assert [each.name for each in members] == ["testbed", "testbed/setup.py", "testbed/src/a.py"]
        assert {(each.uid, each.mtime) for each in members[1:]} == {(0, 1234567)}
        content = tar.extractfile("testbed/src/a.py")
        assert content is not None
        assert content.read() == b"yy"


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(Failed, match="cannot be read"):
        checkouts.rooted(io.BytesIO(b"no tar at all" * 100))


def test_a_layer_is_measured_by_its_files_and_by_its_compressed_tar(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "zeros").write_bytes(bytes(1_000_000))
    (tmp_path / "small").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("small")
    found = sizes.measure(tmp_path)
    assert (found.layer, found.files) == (1_000_003, 2)
    assert 0 < found.snapshot < 10_000


def test_the_snapshot_is_as_large_as_the_compressed_bytes_of_tar(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 40)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        tar.add(tmp_path, ".")
    about = len(zstandard.compress(whole.getvalue(), sizes.LEVEL))
    assert abs(sizes.measure(tmp_path).snapshot - about) < 400


def test_spread() -> None:
    assert figures.spread([7]) == figures.Spread(p50=7, p95=7, p99=7, most=7, count=1)
    found = figures.spread(range(101))
    assert (found.p50, found.p95, found.p99, found.most, found.count) == (50, 95, 99, 100, 101)


def played(number: int, code: int | None, *, exposed: int = 0, size: int = 0) -> Played:
    step = Step(turn=number, command="true", cwd="/", shell=("sh", "-c"), exit=0)
    return Played(
        step=step,
        outcome=Outcome(exit=code, took_ns=1, digest="", shown=""),
        wait_ns=10,
        begin_ns=exposed,
        end_ns=exposed,
        sizes=Sizes(snapshot=size, layer=2 * size, files=1) if size else None,
    )


def pair(name: str, stored: int) -> Pair:
    daemon = Daemon(
        turns=(),
        checkpoints=(),
        stored_bytes=stored,
        other_bytes=5,
        cpu_s=1.0,
        memory_bytes=stored,
        errors=("turn 2: lost",),
    )
    return Pair(
        trace=Trace(name=name, sdist="", steps=()),
        off=Arm(turns=[played(1, 0, size=100), played(2, None, size=300)], total_ns=1000),
        on=Arm(
            turns=[played(1, 0, exposed=3), played(2, 1, exposed=5)],
            total_ns=1100,
            attach_ns=6,
            daemon=daemon,
        ),
        committed=600,
    )


def test_the_figures_of_one_run() -> None:
    found = figures.result(pair("one", 40))
    assert (found.turns, found.errors, found.cut_off) == (2, 1, 0)
    assert (found.exit_known, found.exit_agrees, found.exit_same) == (2, 1, 1)
    assert found.classes == {figures.MISSING: 2}
    assert (found.snapshots, found.layers, found.layer_last) == (400, 800, 600)
    assert (found.of_snapshots, found.of_layers) == (0.1, 0.05)
    assert list(found.exposed) == [6, 10]
    assert found.share == pytest.approx(22 / 1100)
    assert found.slower == pytest.approx(1.1)


def test_the_figures_of_runs_together_are_sums_and_all_turns() -> None:
    both = figures.together("all", [figures.result(pair("one", 40)), figures.result(pair("two", 60))])
    assert (both.turns, both.stored, both.snapshots, both.on) == (4, 100, 800, 2200)
    assert both.memory == 60
    assert both.classes == {figures.MISSING: 4}
    assert list(both.exposed) == [6, 10, 6, 10]
