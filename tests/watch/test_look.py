"""Looking again at a few paths, where what is known or touched is odd."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from turnkeep.errors import ResourceExhausted
from turnkeep.watch.look import look_again
from turnkeep.watch.scan import scan
from turnkeep.watch.table import NEVER, Sight, Status

Look = Callable[..., dict[bytes, Status | None]]


@pytest.fixture
def root(disk: Path) -> Path:
    root = disk / "root"
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/b/file").write_bytes(b"content")
    (root / "other").mkdir()
    os.link(root / "a/b/file", root / "other/name")
    return root


@pytest.fixture
def fd(root: Path) -> Iterator[int]:
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def known(fd: int) -> dict[bytes, Status]:
    """What a scan found."""
    return scan(fd, overlay=False).files


def test_nothing_touched(fd: int, known: dict[bytes, Status]) -> None:
    assert look_again(fd, Sight(known), [], overlay=False) == {}
    assert look_again(fd, Sight(known), [b""], [b""], overlay=False) == {}


def test_what_is_touched_and_the_folder_that_it_is_in(fd: int, known: dict[bytes, Status]) -> None:
    found = look_again(fd, Sight(known), [b"a/b/c", b"a/none", b"none"], overlay=False)
    assert found == {b"a/b": known[b"a/b"], b"a/b/c": known[b"a/b/c"], b"a": known[b"a"]} | {
        b"a/none": None,
        b"none": None,
    }


def test_other_names(fd: int, known: dict[bytes, Status]) -> None:
    for touched, inodes in (([b"other/name"], []), ([], [known[b"other/name"][1]])):
        found = look_again(fd, Sight(known), touched, (), inodes, overlay=False)
        assert found.keys() >= {b"a/b/file", b"other/name"}


def test_what_came_after_all_else_was_touched(fd: int) -> None:
    """A folder is there, and was not when it was asked what was touched: its time will come."""
    found = look_again(fd, Sight(), [b"a/b/file"], overlay=False)
    assert found == {b"a/b": None, b"a/b/file": None}
    later = look_again(fd, Sight().changed(found), [b"a"], [b"a"], overlay=False)
    assert {path for path, status in later.items() if status} == {b"a", b"a/b", b"a/b/c", b"a/b/file"}


def test_beneath_what_is_deep(root: Path, fd: int, known: dict[bytes, Status]) -> None:
    old = {**known, b"a/b/gone": NEVER, b"a/b/c/gone": NEVER}
    (root / "a/b/c/new").touch()
    found = look_again(fd, Sight(old), [b"a"], [b"a"], overlay=False)
    assert {path for path, status in found.items() if status is None} == {b"a/b/gone", b"a/b/c/gone"}
    assert found[b"a/b/c/new"] is not None
    assert b"other" not in found


def test_what_is_excluded(root: Path, fd: int) -> None:
    exclude = {b"a/b/c", b"other"}
    known = scan(fd, overlay=False, exclude=exclude).files
    (root / "a/b/c/new").touch()
    touched = [b"a/b/c/new", b"a/b/c", b"a", b"other/name"]
    found = look_again(fd, Sight(known), touched, [b"a"], overlay=False, exclude=exclude)
    assert found.keys() == {b"a", b"a/b", b"a/b/file"}


def test_what_is_no_folder_any_more(root: Path, fd: int, known: dict[bytes, Status]) -> None:
    os.rename(root / "a/b", root / "moved")
    os.symlink("../moved", root / "a/b")
    found = look_again(fd, Sight(known), [b"a/b/file", b"a/b", b"moved"], [b"a/b", b"moved"], overlay=False)
    assert {path for path, status in found.items() if status is None} == {b"a/b/file", b"a/b/c"}
    assert dict(Sight(known).changed(found).items()) == scan(fd, overlay=False).files


@pytest.mark.parametrize("touched", [[b"a"], [b"a/b/c/new", b"a/b/file"], [b"other", b"gone", b"a/b/c"]])
def test_what_was_never_looked_at(
    root: Path, fd: int, known: dict[bytes, Status], touched: list[bytes]
) -> None:
    (root / "a/b/c/new").touch()
    never = dict.fromkeys({*known, b"gone", b"gone/too"}, NEVER)
    found = look_again(fd, Sight(never), touched, overlay=False)
    now = scan(fd, overlay=False).files
    assert {path: now.get(path) for path in found} == found
    assert found.keys() >= set(touched)
    assert (b"gone/too" in found) == (b"gone" in touched)


def test_too_many(root: Path, fd: int, known: dict[bytes, Status]) -> None:
    for number in range(30):
        (root / f"other/{number}").touch()
    with pytest.raises(ResourceExhausted):
        look_again(fd, Sight(known), [b"other"], [b"other"], overlay=False, max_paths=20)
