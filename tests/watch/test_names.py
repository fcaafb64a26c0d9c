"""Names and depths that only somebody hostile would think of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .followed import Followed
from .operations import append

NAMES = [
    b"new\nline",
    b"\xff\xfe not UTF-8 \x80",
    b"n" * 255,
    b"\xc3\xa9" * 127,
    b"file (deleted)",
    b" (deleted)",
    b"\\012 \\040",
    b"#123",
    b"-",
    b"a ",
    b"...",
    "\u202e".encode(),
]


@pytest.mark.parametrize("name", NAMES)
def test_names(box: Followed, name: bytes) -> None:
    root = os.fsencode(box.root)
    folder = os.path.join(root, b"own", name)
    os.mkdir(folder)
    box.look()
    for _ in range(2):
        with open(os.path.join(folder, name), "ab") as file:
            file.write(b"+")
        assert os.path.join(b"own", name, name) in box.look().paths
    os.rename(folder, os.path.join(root, name))
    box.look()
    with open(os.path.join(root, name, name), "ab") as file:
        file.write(b"+")
    assert os.path.join(name, name) in box.look().paths
    os.unlink(os.path.join(root, name, name))
    os.rmdir(os.path.join(root, name))
    box.look()


def test_named_as_if_gone_beside_one_that_is_not(box: Followed) -> None:
    for name in ("folder", "folder (deleted)", "folder (deleted) (deleted)"):
        (box.root / name).mkdir()
        (box.root / name / "file").touch()
    box.look()
    with box.undrained():
        append(box.root / "folder/file")
        append(box.root / "folder (deleted)/file")
        os.rename(box.root / "folder", box.root / "away")
        os.rename(box.root / "folder (deleted)", box.root / "folder")
        os.rename(box.root / "folder (deleted) (deleted)", box.root / "folder (deleted)")
        append(box.root / "folder (deleted)/file")
        box.look()
    append(box.root / "folder (deleted)/file")
    assert b"folder (deleted)/file" in box.look().paths


@contextmanager
def _deep(top: Path, depth: int) -> Iterator[int]:
    """Give a folder that lies deeper than any path can tell."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(b"n" * 250, dir_fd=fd)
        fd, above = os.open(b"n" * 250, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd), fd
        os.close(above)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_in(folder: int) -> None:
    with open(os.open("file", os.O_WRONLY | os.O_CREAT | os.O_APPEND, dir_fd=folder), "wb") as file:
        file.write(b"+")


def test_deeper_than_a_path_can_tell(box: Followed) -> None:
    with _deep(box.root / "own", 40) as folder:
        box.look()
        for _ in range(2):
            _write_in(folder)
            box.look()
        os.mkdir("more", dir_fd=folder)
        box.look()
        os.rename("more", "most", src_dir_fd=folder, dst_dir_fd=folder)
        os.rename(box.root / "own", box.root / "moved")
        _write_in(folder)
        box.look()
        os.unlink("file", dir_fd=folder)
        os.rmdir("most", dir_fd=folder)
        box.look()


def test_deep_folders_of_others(box: Followed, disk: Path) -> None:
    (disk / "others").mkdir()
    with _deep(disk / "others", 40) as folder:
        _write_in(folder)
        append(box.root / "own/file")
        assert box.look().paths == {b"own/file"}
