"""No path leads out of its folder, whatever a sandbox makes of it."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from turnkeep_store import beneath
from turnkeep_store.beneath import O_PATH_NOFOLLOW, Descent, open_beneath, parent_beneath
from turnkeep_store.errors import UnsafePath

from .overlays import bind, unmount

ROUNDS = 2000
SECRET = b"the host's own"

Opener = Callable[[int, bytes], int]


def _guarded(root: int, path: bytes) -> int:
    return open_beneath(root, path, os.O_RDONLY)


def _unguarded(root: int, path: bytes) -> int:
    return os.open(path, os.O_RDONLY, dir_fd=root)


@pytest.fixture
def jail(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder that must not be left, and its descriptor. Beside it lies a secret."""
    (tmp_path / "secret").write_bytes(SECRET)
    root = tmp_path / "jail"
    root.mkdir()
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield root, fd
    os.close(fd)


def _read(opener: Opener, root: int, path: bytes) -> bytes:
    fd = opener(root, path)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def _symlink_in_place(root: Path) -> bytes:
    os.symlink(root.parent / "secret", root / "file")
    return b"file"


def _absolute_folder(root: Path) -> bytes:
    os.symlink(root.parent, root / "folder")
    return b"folder/secret"


def _upwards_folder(root: Path) -> bytes:
    os.symlink("..", root / "folder")
    return b"folder/secret"


def _dots(root: Path) -> bytes:
    (root / "a").mkdir()
    return b"a/../../secret"


def _absolute_path(root: Path) -> bytes:
    return os.fsencode(root.parent / "secret")


ESCAPES = [_symlink_in_place, _absolute_folder, _upwards_folder, _dots, _absolute_path]


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_path_leads_outside(jail: tuple[Path, int], escape: Callable[[Path], bytes]) -> None:
    root, fd = jail
    path = escape(root)
    assert _read(_unguarded, fd, path) == SECRET, "the attack works"
    with pytest.raises(UnsafePath):
        _read(_guarded, fd, path)


def test_a_magic_link_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    outside = os.open(tmp_path, os.O_RDONLY)
    here = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)
    try:
        path = b"fd/%d/secret" % outside
        assert _read(_unguarded, here, path) == SECRET, "the attack works"
        with pytest.raises(UnsafePath):
            _read(_guarded, here, path)
    finally:
        os.close(outside)
        os.close(here)


def test_a_mount_point_is_entered_only_where_that_is_meant(jail: tuple[Path, int], tmp_path: Path) -> None:
    root, fd = jail
    (root / "mnt").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/secret").write_bytes(SECRET)
    bind(tmp_path / "other", root / "mnt")
    try:
        assert _read(_unguarded, fd, b"mnt/secret") == SECRET, "it is mounted"
        with pytest.raises(UnsafePath):
            _read(_guarded, fd, b"mnt/secret")
        inside = open_beneath(fd, b"mnt/secret", os.O_RDONLY, cross_mounts=True)
        assert os.read(inside, 100) == SECRET
        os.close(inside)
    finally:
        unmount(root / "mnt")


def test_a_symlink_itself_can_be_held(jail: tuple[Path, int]) -> None:
    root, fd = jail
    os.symlink(root.parent / "secret", root / "link")
    link = open_beneath(fd, b"link", O_PATH_NOFOLLOW)
    assert os.readlink(b"", dir_fd=link) == os.fsencode(root.parent / "secret")
    os.close(link)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/..", b"a/", b"/"])
def test_what_names_nothing_has_no_parent(jail: tuple[Path, int], name: bytes) -> None:
    root, fd = jail
    (root / "a").mkdir()
    with pytest.raises(UnsafePath), parent_beneath(fd, name):
        pass


@pytest.mark.parametrize(("opener", "safe"), [(_guarded, True), (_unguarded, False)])
def test_a_folder_swapped_for_a_symlink_in_a_race(jail: tuple[Path, int], opener: Opener, safe: bool) -> None:
    """The host's file is never read; without the guard the same attack reads it."""
    root, fd = jail
    (root / "folder").mkdir()
    (root / "folder/secret").write_bytes(b"the sandbox's own")
    os.symlink("..", root / "link")
    done = threading.Event()
    seen: set[bytes] = set()

    def swap() -> None:
        for _ in range(ROUNDS):
            # Whoever opens sees the folder or the symlink, and for a moment neither.
            os.rename(root / "folder", root / "aside")
            os.rename(root / "link", root / "folder")
            os.rename(root / "folder", root / "link")
            os.rename(root / "aside", root / "folder")
        # One look for certain, whatever the scheduler did.
        os.rename(root / "folder", root / "aside")
        os.rename(root / "link", root / "folder")
        done.set()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        while True:
            last = done.is_set()
            with suppress(FileNotFoundError, UnsafePath):
                seen.add(_read(opener, fd, b"folder/secret"))
            if last:
                break
    finally:
        thread.join()
    assert (SECRET not in seen) is safe


def test_a_path_may_be_longer_than_one_system_call_takes(jail: tuple[Path, int]) -> None:
    root, fd = jail
    name = b"n" * 200
    here = os.open(root, os.O_RDONLY)
    for _ in range(60):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.symlink(root.parent, "out", dir_fd=here)
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here), "wb") as file:
        file.write(b"deep")
    os.close(here)
    folder = b"/".join([name] * 60)
    before = len(os.listdir("/proc/self/fd"))
    assert _read(_guarded, fd, folder + b"/file") == b"deep"
    with parent_beneath(fd, folder + b"/file") as (parent, last):
        assert os.stat(last, dir_fd=parent).st_size == 4
    with pytest.raises(UnsafePath):
        _read(_guarded, fd, folder + b"/out/secret")
    with pytest.raises(FileNotFoundError):
        _read(_guarded, fd, folder + b"/none")
    assert len(os.listdir("/proc/self/fd")) == before, "nothing stays open"


def test_what_lies_deep_is_opened_from_a_folder_on_the_way(
    jail: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of each is bounded, and so is what stays open, whatever the order."""
    _, root = jail
    lengths: list[int] = []
    names = [b"n" * 100] * 600
    before = len(os.listdir("/proc/self/fd"))
    openat2 = beneath._openat2

    def counted(dir_fd: int, path: bytes, flags: int, mode: int, resolve: int) -> int:
        lengths.append(len(path))
        return openat2(dir_fd, path, flags, mode, resolve)

    monkeypatch.setattr(beneath, "_openat2", counted)
    with Descent(root) as way:
        for depth, name in enumerate(names):
            os.mkdir(name, dir_fd=way.folder(b"/".join(names[:depth])))
        assert len(os.listdir("/proc/self/fd")) - before <= 66
        deepest = os.fstat(way.folder(b"/".join(names))).st_ino
        for depth in range(len(names), 0, -1):
            parent, name = way.parent(b"/".join(names[:depth]))
            assert stat.S_ISDIR(os.stat(name, dir_fd=parent).st_mode)
        assert sum(lengths) < len(names) * 2 * 4096, "not from the top each time"
        assert os.fstat(way.folder(b"/".join(names))).st_ino == deepest
        way.forget(names[0])
        assert len(os.listdir("/proc/self/fd")) == before
        os.symlink("..", b"up", dir_fd=way.folder(b"/".join(names[:300])))
        with pytest.raises(UnsafePath):
            way.folder(b"/".join([*names[:300], b"up", *names[:300]]))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_too_long_is_an_error_of_the_system(jail: tuple[Path, int]) -> None:
    _, fd = jail
    with pytest.raises(OSError, match="File name too long"):
        _guarded(fd, b"n" * 4000)
