"""Which folder an event belongs to: roots may be moved, lie in one another, or share files with others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from turnkeep.watch.tracker import Tracker, Watch

from tests.files.overlays import bind, mount_tmpfs, unmount

from .conftest import MakeFollowed
from .followed import compared
from .operations import append, link_open
from .test_doubt import watched


@pytest.fixture
def root(disk: Path) -> Path:
    """A folder with something in it, two levels down."""
    root = disk / "above/root"
    (root / "folder").mkdir(parents=True)
    (root / "file").touch()
    return root


@pytest.fixture
def watch(tracker: Tracker, root: Path) -> Iterator[Watch]:
    watch = watched(tracker, root)
    yield watch
    watch.close()


def _remove(root: Path) -> None:
    shutil.rmtree(root)


def _remove_with_what_is_above(root: Path) -> None:
    shutil.rmtree(root.parent)


def _replace(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def _move(root: Path) -> None:
    os.rename(root, root.parent.parent / "moved")


def _move_what_is_above(root: Path) -> None:
    os.rename(root.parent, root.parent.parent / "moved")


def _move_away_and_back(root: Path) -> None:
    os.rename(root.parent, root.parent.parent / "moved")
    os.rename(root.parent.parent / "moved", root.parent)


def _move_another_there(root: Path) -> None:
    (root.parent / "another").mkdir()
    shutil.rmtree(root)
    root.mkdir()
    os.rename(root.parent / "another", root)


@pytest.mark.parametrize(
    "change",
    [
        _remove,
        _remove_with_what_is_above,
        _replace,
        _move,
        _move_what_is_above,
        _move_away_and_back,
        _move_another_there,
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_moved_or_removed(
    watch: Watch, root: Path, tracker: Tracker, change: Callable[[Path], None], at_once: bool
) -> None:
    if at_once:
        with watch._group.lock:
            (root / "file").write_bytes(b"before")
            change(root)
            touched = watch.collect()
    else:
        (root / "file").write_bytes(b"before")
        change(root)
        touched = watch.collect()
    assert not touched.complete
    assert watch.ended
    assert not watch.collect().complete
    root.mkdir(parents=True, exist_ok=True)
    again = watched(tracker, root)
    (root / "new").touch()
    assert again.collect().paths == {b"new"}
    again.close()


def test_beside_it_something_is_moved(watch: Watch, root: Path) -> None:
    for where in (root.parent, root.parent.parent):
        (where / "beside").mkdir()
        os.rename(where / "beside", where / "root2")
        (where / "root2").rmdir()
    (root / "file").write_bytes(b"written")
    touched = watch.collect()
    assert touched.paths == {b"file"}
    assert not watch.ended


def test_moved_in_from_outside_and_out(watch: Watch, root: Path) -> None:
    outside = root.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep/file").touch()
    watch.collect()
    (outside / "deep/file").write_bytes(b"while it is outside")
    os.rename(outside, root / "inside")
    (root / "inside/deep/file").write_bytes(b"while it is inside")
    touched = watch.collect()
    assert b"inside" in touched.deep
    os.rename(root / "inside", outside)
    (outside / "deep/file").write_bytes(b"while it is outside again")
    assert b"inside" in watch.collect().deep


def test_one_in_another(tracker: Tracker, watch: Watch, root: Path) -> None:
    inner = watched(tracker, root / "folder")
    (root / "folder/new").touch()
    (root / "other").touch()
    assert watch.collect().paths == {b"folder/new", b"other"}
    assert inner.collect().paths == {b"new"}
    os.rename(root / "folder", root / "moved")
    assert b"folder" in watch.collect().deep
    assert not inner.collect().complete
    inner.close()


def test_two_on_one_file_system(make_followed: MakeFollowed) -> None:
    one, other = make_followed(), make_followed()
    append(one.root / "own/file")
    assert b"own/file" in one.look().paths
    assert not other.look().paths
    append(other.root / "own/other")
    assert not one.look().paths
    other.watch.close()
    append(one.root / "own/file")
    assert b"own/file" in one.look().paths


def test_a_file_with_names_elsewhere(tracker: Tracker, watch: Watch, root: Path) -> None:
    other = root.parent / "other"
    other.mkdir()
    os.link(root / "file", other / "file")
    with compared(watch, root) as look:
        os.chmod(other / "file", 0o600)
        look()
        (other / "file").write_bytes(b"by its other name")
        look()
        os.link(other / "file", root / "folder/name")
        look()
        (other / "file").write_bytes(b"once more")
        look()
        os.unlink(other / "file")
        look()
        (root / "file").write_bytes(b"by its own name")
        look()


def test_a_file_that_gets_a_name_elsewhere(watch: Watch, root: Path) -> None:
    with compared(watch, root) as look:
        os.link(root / "file", root.parent / "name")
        look()
        (root.parent / "name").write_bytes(b"by its other name")
        look()
        os.link(root / "file", root.parent / "another")
        (root.parent / "another").write_bytes(b"by its third name")
        os.unlink(root.parent / "another")
        look()


def test_a_root_in_memory(tracker: Tracker, disk: Path) -> None:
    """The root of a file system, then a part of it of which nothing else is mounted."""
    whole, part = disk / "whole", disk / "part"
    whole.mkdir()
    part.mkdir()
    mount_tmpfs(whole)
    try:
        (whole / "part/folder").mkdir(parents=True)
        watch = watched(tracker, whole)
        (whole / "part/folder/new").touch()
        assert watch.collect().paths == {b"part/folder/new"}
        watch.close()
        bind(whole / "part", part)
    finally:
        unmount(whole)
    try:
        both = watched(tracker, part), watched(tracker, part / "folder")
        (part / "folder/other").touch()
        os.rename(part / "folder/other", part / "other")
        assert both[0].collect().paths == {b"folder/other", b"other"}
        assert both[1].collect().paths == {b"other"}
        os.rename(part / "folder", part / "moved")
        assert not both[1].collect().complete
        for each in both:
            each.close()
    finally:
        unmount(part)


def test_a_root_that_nothing_is_above_is_removed(tracker: Tracker, disk: Path) -> None:
    """A part of a file system is mounted, and removed by way of another part."""
    whole, above, part = disk / "whole", disk / "above", disk / "part"
    for each in (whole, above, part):
        each.mkdir()
    mount_tmpfs(whole)
    try:
        (whole / "above/part").mkdir(parents=True)
        (whole / "above/part/file").touch()
        bind(whole / "above/part", part)
        bind(whole / "above", above)
    finally:
        unmount(whole)
    try:
        watch = watched(tracker, part)
        with watch._group.lock:
            shutil.rmtree(above / "part")
            assert not watch.collect().complete
        assert watch.ended
        watch.close()
    finally:
        unmount(above)
        unmount(part)


def test_something_is_mounted_over_it(tracker: Tracker, watch: Watch, root: Path) -> None:
    mount_tmpfs(root)
    try:
        (root / "new").touch()
        assert not watch.collect().complete
        assert watch.ended
        over = watched(tracker, root)
        (root / "other").touch()
        assert over.collect().paths == {b"other"}
    finally:
        unmount(root)
    assert not over.collect().complete
    over.close()


def test_another_mount_of_it_is_taken_away(tracker: Tracker, disk: Path) -> None:
    """Nothing tells of that. It is the first of its file system, by which handles could be opened."""
    one, other = disk / "one", disk / "other"
    one.mkdir()
    other.mkdir()
    mount_tmpfs(one)
    try:
        (one / "root").mkdir()
        bind(one, other)
        watch = watched(tracker, other / "root")
    finally:
        unmount(one)
    try:
        (other / "root/new").touch()
        assert watch.collect().paths == {b"new"}
        watch.close()
    finally:
        unmount(other)


def test_a_file_made_without_a_name_elsewhere(watch: Watch, root: Path) -> None:
    """As older kernels go on to do with what an overlay copied up."""
    fd = os.open(root.parent, os.O_TMPFILE | os.O_WRONLY)
    try:
        with compared(watch, root) as look:
            link_open(fd, root / "new")
            look()
            for _ in range(2):
                os.write(fd, b"+")
                look()
    finally:
        os.close(fd)
