"""The tools that Turnkeep is compared with: what they bring back is what they were given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import disk, loop
from bench.cpu import DaemonClock
from bench.tools import Borg, Restic, Rsync, Store, TarZstd, Tool, why_missing


def fill(folder: Path) -> None:
    """Make a small tree with a bit of everything that all tools keep."""
    (folder / "below" / "deeper").mkdir(parents=True)
    (folder / "text").write_text("one\n" * 1000)
    (folder / "below" / "empty").touch()
    (folder / "below" / "deeper" / "random").write_bytes(os.urandom(300_000))
    (folder / "link").symlink_to("text")
    os.link(folder / "text", folder / "below" / "again")


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        else:
            content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (status.st_mode, content)
    return found


@pytest.mark.parametrize("make", [Restic, Borg, Rsync, TarZstd, Store])
def test_what_is_brought_back_is_what_was_kept(make: Callable[[], Tool], tmp_path: Path) -> None:
    tool = make()
    if reason := why_missing(tool.program):
        pytest.skip(reason)
    tree, own, target = tmp_path / "tree", tmp_path / "own", tmp_path / "target"
    for folder in (tree, own, target):
        folder.mkdir()
    fill(tree)
    tool.prepare(own)
    tool.keep(tree, "first")
    wanted = listing(tree)
    before = disk.allocated_bytes(tool.stored_folder())
    (tree / "text").write_text("two\n" * 2000)
    tool.keep(tree, "second")
    assert disk.allocated_bytes(tool.stored_folder()) > before
    if tool.in_place:
        tool.bring("second", target)
        assert listing(target) == listing(tree)
    tool.bring("first", target)
    assert listing(target) == wanted


def test_a_tool_that_is_not_there_is_named() -> None:
    assert "no-such-program is not installed" in why_missing("no-such-program")
    assert why_missing("") == why_missing("sh") == ""


def test_what_has_two_names_takes_up_its_space_once(tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(os.urandom(100_000))
    alone = disk.allocated_bytes(tmp_path)
    os.link(tmp_path / "first", tmp_path / "second")
    assert disk.allocated_bytes(tmp_path) == alone >= 100_000
    assert disk.content(tmp_path) == (2, 200_000)
    disk.forget(tmp_path)
    disk.read_all(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_file_system_of_its_own_is_gone_afterwards(tmp_path: Path) -> None:
    if reason := loop.why_not("ext4"):
        pytest.skip(reason)
    with loop.file_system(tmp_path, "ext4", 64 << 20) as root:
        (root / "file").write_bytes(b"x")
        assert root.is_mount()
        disk.write_out(root)
    assert not root.is_mount()
    assert not (tmp_path / "ext4.img").exists()


def test_a_process_clock_goes_on_while_it_works() -> None:
    clock = DaemonClock(os.getpid())
    before_ns = clock.spent_ns()
    sum(range(200_000))
    assert clock.spent_ns() > before_ns
