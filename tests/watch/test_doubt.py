"""Where not everything is known that was touched, that is said; and afterwards all is known again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from turnkeep.watch.touched import Notes, Orphans
from turnkeep.watch.tracker import Tracker, Watch

from .conftest import MakeFollowed
from .followed import Followed
from .operations import append

MOST_QUEUED = "/proc/sys/fs/fanotify/max_queued_events"


@contextmanager
def own_tracker(disk: Path, max_touched: int) -> Iterator[Tracker]:
    tracker = Tracker(str(disk / "scratch"), max_touched=max_touched)
    try:
        yield tracker
    finally:
        tracker.close()


def watched(tracker: Tracker, folder: Path) -> Watch:
    """Follow a folder from now on."""
    watch = tracker.watch(str(folder))
    assert watch is not None, tracker.why_not(str(folder))
    watch.collect()
    return watch


def test_the_first_time(tracker: Tracker, disk: Path) -> None:
    watch = tracker.watch(str(disk))
    assert watch is not None
    (disk / "new").touch()
    touched = watch.collect()
    assert not touched.complete
    assert touched.why
    assert not touched.paths
    assert watch.collect().complete
    watch.close()


def test_more_than_the_kernel_queues(make_followed: MakeFollowed, disk: Path, tracker: Tracker) -> None:
    with open(MOST_QUEUED) as file:
        most = int(file.read())
    if most > 100_000:
        pytest.skip(f"this host queues {most} events")
    box, other = make_followed(), make_followed()
    overflows = tracker.counters.overflows
    with box.undrained():
        append(box.root / "own/file")
        (disk / "0").touch()
        # Each name is an event.
        for number in range(most + 1):
            os.rename(disk / str(number), disk / str(number + 1))
        append(box.root / "own/other")
        for each in (box, other):
            touched = each.look_or_start_over()
            assert not touched.complete
            assert touched.why == "more happened at once than the kernel queues"
            assert not touched.paths
    assert tracker.counters.overflows == overflows + 1
    for each in (box, other):
        append(each.root / "own/file")
        assert b"own/file" in each.look().paths


BOUNDS = pytest.mark.parametrize(("most", "count"), [(100_000, 50), (1000, 3000)])


@BOUNDS
def test_more_than_is_remembered(disk: Path, most: int, count: int) -> None:
    folder = disk / "followed"
    folder.mkdir()
    with own_tracker(disk, max_touched=most) as tracker:
        watch = watched(tracker, folder)
        for number in range(count):
            (folder / str(number)).touch()
        touched = watch.collect()
        assert touched.complete is (count < most)
        assert len(touched.paths) == (count if touched.complete else 0)
        (folder / "one more").touch()
        assert watch.collect().paths == {b"one more"}


@BOUNDS
def test_more_lost_names_than_are_remembered(disk: Path, most: int, count: int) -> None:
    folder = disk / "followed"
    folder.mkdir()
    (disk / "lost").mkdir()
    (disk / "left").mkdir()
    for number in range(count):
        (disk / "lost" / str(number)).touch()
        os.link(disk / "lost" / str(number), disk / "left" / str(number))
    with own_tracker(disk, max_touched=most) as tracker:
        watch = watched(tracker, folder)
        inodes = {path.stat().st_ino for path in (disk / "left").iterdir()}
        for number in range(count):
            os.unlink(disk / "lost" / str(number))
        touched = watch.collect()
        assert touched.complete is (count < most)
        assert touched.inodes >= (inodes if touched.complete else set())
        assert watch.collect().complete


@pytest.mark.parametrize("deep", [True, False])
def test_notes_are_bounded(deep: bool) -> None:
    notes = Notes("/followed", 10)
    assert not notes.take([]).complete
    for count, complete in ((5, True), (6, False), (5, True)):
        for number in range(count):
            notes.note(b"%d" % number, deep=deep)
            notes.note(b"%d" % number, inode=number + 1)
        touched = notes.take([100])
        assert touched.complete is complete
        assert len(touched.paths) == (count if complete else 0)
        assert len(touched.deep) == (count if complete and deep else 0)
        assert touched.inodes == (frozenset([*range(1, count + 1), 100]) if complete else frozenset())


@given(st.lists(st.integers(1, 8) | st.none(), max_size=40), st.integers(1, 4))
def test_lost_names_are_told_to_all(touched: list[int | None], most: int) -> None:
    """Who asks now and then is told the same as one who asks in the end, or that it asks too late."""
    orphans = Orphans(most)
    position = start = orphans.since(0)[0]
    since: set[int] = set()
    ever: set[int] = set()
    for inode in [*touched, None]:
        if inode is not None:
            orphans.add(inode)
            since.add(inode)
            ever.add(inode)
            continue
        position, found = orphans.since(position)
        assert (found is None) == (len(since) > most)
        assert found is None or set(found) == since
        since = set()
    _, found = orphans.since(start)
    assert found is None if len(ever) > most else found is not None and set(found) == ever


def test_closed(disk: Path, tracker: Tracker) -> None:
    watch = watched(tracker, disk)
    other = disk / "other"
    other.mkdir()
    staying = watched(tracker, other)
    watch.close()
    for _ in range(2):
        touched = watch.collect()
        assert not touched.complete
        assert touched.why == "it is no longer followed"
    assert watch.ended
    (other / "new").touch()
    assert staying.collect().paths == {b"new"}
    staying.close()
    assert not staying.collect().complete
    watch.close()


def test_all_closed(disk: Path) -> None:
    with own_tracker(disk, 100) as tracker:
        watch = watched(tracker, disk)
    for _ in range(2):
        assert not watch.collect().complete
    watch.close()
    assert tracker.watch(str(disk)) is not None
    tracker.close()


def test_begun_again(box: Followed) -> None:
    for _ in range(3):
        box.watch.close()
        append(box.root / "own/file")
        box.begin_again()
        append(box.root / "own/file")
        assert b"own/file" in box.look().paths


def test_leaving_while_another_joins(disk: Path) -> None:
    """The last to leave ends what all share."""
    folders = [disk / "one", disk / "other"]

    def follow(folder: Path) -> None:
        try:
            for number in range(200):
                watch = watched(tracker, folder)
                (folder / str(number)).touch()
                assert os.fsencode(str(number)) in watch.collect().paths
                watch.close()
        except BaseException as error:
            failed.append(error)

    failed: list[BaseException] = []
    with own_tracker(disk, 1000) as tracker:
        for folder in folders:
            folder.mkdir()
        threads = [threading.Thread(target=follow, args=(folder,)) for folder in folders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failed


@pytest.mark.parametrize("folder", ["/proc", "/sys", "/proc/self/fd"])
def test_a_file_system_that_others_change(tracker: Tracker, folder: str) -> None:
    assert tracker.watch(folder) is None
    assert "file systems of its kind" in tracker.why_not(folder)


def test_an_overlay_itself(tracker: Tracker, box: Followed) -> None:
    assert tracker.watch(str(box.root)) is None
    assert tracker.why_not(str(box.root))


def test_no_folder(tracker: Tracker, disk: Path) -> None:
    missing = disk / "missing"
    assert tracker.watch(str(missing)) is None
    assert "no such folder" in tracker.why_not(str(missing))
    missing.mkdir()
    watch = tracker.watch(str(missing))
    assert watch is not None
    assert tracker.why_not(str(missing)) == ""
    watch.close()


def test_followed_already(tracker: Tracker, disk: Path) -> None:
    watch = watched(tracker, disk)
    assert tracker.watch(str(disk)) is None
    assert "already" in tracker.why_not(str(disk))
    watch.close()


def test_no_place_to_try_it_out(disk: Path) -> None:
    tracker = Tracker("/proc/nothing")
    assert tracker.watch(str(disk)) is None
    assert "tried out and failed" in tracker.why_not(str(disk))
    tracker.close()
