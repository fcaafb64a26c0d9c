"""A trail has no gap, or says so."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from turnkeep.watch.tracker import Touched, Tracker
from turnkeep.watch.trail import Collected, TrackedFolders, Trail

NAMES = st.frozensets(st.sampled_from([b"a", b"b", b"c", b"d"]))
INODES = st.frozensets(st.integers(1, 4))
TOUCHED = st.builds(Touched, NAMES, NAMES, INODES, st.sampled_from([True, True, True, False]))
COLLECTED = st.none() | st.builds(Collected, st.integers(1, 6), TOUCHED)


def _of(number: int, name: bytes = b"", *, complete: bool = True) -> Collected:
    return Collected(number, Touched(frozenset({name}), frozenset({name}), frozenset({number}), complete))


def test_what_follows_is_taken_in() -> None:
    trail = Trail(3)
    assert trail.follow(_of(4, b"a"))
    assert trail.follow(_of(5, b"b"))
    assert trail == Trail(5, {b"a", b"b"}, {b"a", b"b"}, {4, 5})


@pytest.mark.parametrize(
    "next_one",
    [None, _of(3), _of(4), _of(6), _of(5, complete=False)],
    ids=["nothing known", "an earlier one", "the same once more", "one left out", "incomplete"],
)
def test_gaps(next_one: Collected | None) -> None:
    trail = Trail(4, {b"a"}, {b"a"}, {1})
    assert not trail.follow(next_one)
    assert trail == Trail()
    # From nothing nothing follows, not even the first.
    assert not trail.follow(_of(1))
    assert not trail.follow(_of(5))


def test_a_copy_goes_on_by_itself() -> None:
    trail = Trail(1)
    other = trail.copy()
    assert trail.follow(_of(2, b"a"))
    assert other == Trail(1)


@given(st.integers(0, 3), st.lists(COLLECTED, max_size=6))
def test_only_what_is_without_a_gap(number: int, many: list[Collected | None]) -> None:
    trail = Trail(number)
    taken: list[Touched] = []
    for each in many:
        follows = number > 0 and each is not None and each.number == number + 1 and each.touched.complete
        number = number + 1 if follows else 0
        taken = [*taken, each.touched] if follows and each is not None else []
        assert trail.follow(each) is follows
        assert trail.number == number
        assert trail.paths == {path for touched in taken for path in touched.paths}
        assert trail.deep == {path for touched in taken for path in touched.deep}
        assert trail.inodes == {inode for touched in taken for inode in touched.inodes}


@pytest.fixture
def tracked(disk: Path) -> Iterator[TrackedFolders]:
    tracked = TrackedFolders(Tracker(str(disk / "scratch")))
    yield tracked
    tracked.close()


def _collect(tracked: TrackedFolders, root: Path) -> Collected:
    collected = tracked.collect(str(root))
    assert collected is not None
    return collected


def test_collections_are_counted(tracked: TrackedFolders, disk: Path) -> None:
    root = disk / "root"
    root.mkdir()
    first = _collect(tracked, root)
    assert (first.number, first.touched.complete) == (1, False)
    trail = Trail(first.number)
    for name in ("a", "b"):
        (root / name).touch()
        assert trail.follow(_collect(tracked, root))
    assert trail.paths == {b"a", b"b"}
    # What somebody else collects is missing here.
    (root / "c").touch()
    assert b"c" in _collect(tracked, root).touched.paths
    assert not trail.follow(_collect(tracked, root))


def test_two_at_once_leave_gaps_for_each_other(tracked: TrackedFolders, disk: Path) -> None:
    """Nothing that happened is in none of the collections, and no two have one number."""
    root = disk / "root"
    root.mkdir()
    _collect(tracked, root)
    collected: list[Collected] = []

    def work(name: str) -> None:
        for number in range(200):
            (root / f"{name}{number}").touch()
            collected.append(_collect(tracked, root))

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.number for each in collected) == list(range(2, 402))
    paths = {path for each in collected for path in each.touched.paths}
    assert paths == {b"%s%d" % (name, number) for name in (b"a", b"b") for number in range(200)}


def test_a_root_that_is_made_anew_is_tracked_anew(tracked: TrackedFolders, disk: Path) -> None:
    root = disk / "root"
    root.mkdir()
    trail = Trail(_collect(tracked, root).number)
    os.rmdir(root)
    root.mkdir()
    (root / "lost").touch()
    ended = _collect(tracked, root)
    assert not trail.follow(ended)
    begun = _collect(tracked, root)
    assert not Trail(ended.number).follow(begun)
    trail = Trail(begun.number)
    (root / "found").touch()
    assert trail.follow(_collect(tracked, root))
    assert trail.paths == {b"found"}


def test_forgotten_and_tracked_again(tracked: TrackedFolders, disk: Path) -> None:
    trail = Trail(_collect(tracked, disk).number)
    tracked.forget([str(disk), "/never/tracked"])
    assert not trail.follow(_collect(tracked, disk))


def test_what_is_not_tracked(tracked: TrackedFolders) -> None:
    assert tracked.collect("/proc") is None
    tracked.forget(["/proc"])
