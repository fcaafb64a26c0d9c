"""Removing what a sandbox made, however deep and whatever it does meanwhile."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from turnkeep_store import nodes
from turnkeep_store.errors import UnsafePath
from turnkeep_store.nodes import remove_tree

from . import contents
from .listing import listing
from .overlays import build_image, mounted, remove_all

DESCRIPTORS = 8
"""How many more a removal may hold."""


@contextmanager
def _few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + DESCRIPTORS, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """An empty folder and its descriptor."""
    root = tmp_path / "root"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield root, fd
    os.close(fd)
    remove_all(root)


def test_a_deep_tree_goes_with_few_descriptors(folder: tuple[Path, int]) -> None:
    root, fd = folder
    contents.deep_tree(root)
    before = set(os.listdir("/proc/self/fd"))
    with _few_descriptors():
        removed = remove_tree(fd, contents.DEEP_NAME.encode())
    assert removed == contents.DEEP_LEVELS + 13
    assert os.listdir(root) == []
    # What other tests left to the garbage collector may go meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_wide_tree_goes(folder: tuple[Path, int]) -> None:
    root, fd = folder
    for number in range(300):
        (root / f"top/{number}/sub").mkdir(parents=True)
        (root / f"top/{number}/file").touch()
    with _few_descriptors():
        assert remove_tree(fd, b"top") == 901
    assert os.listdir(root) == []


@pytest.mark.parametrize("fill", [contents.names, contents.special_files, contents.modes_and_owners])
def test_what_is_no_folder_goes(folder: tuple[Path, int], fill: contents.Fill) -> None:
    root, fd = folder
    (root / "top").mkdir()
    fill(root / "top")
    expected = len(listing(root))
    assert remove_tree(fd, b"top") == expected
    assert os.listdir(root) == []


def test_symlinks_are_not_followed(folder: tuple[Path, int], tmp_path: Path) -> None:
    root, fd = folder
    (tmp_path / "outside/sub").mkdir(parents=True)
    (tmp_path / "outside/file").write_bytes(b"stays")
    (root / "top/sub").mkdir(parents=True)
    for name in ("link", "top/link", "top/sub/link"):
        os.symlink(tmp_path / "outside", root / name)
    assert remove_tree(fd, b"top") == 4
    assert remove_tree(fd, b"link") == 1
    assert sorted(os.listdir(tmp_path / "outside")) == ["file", "sub"]


def test_a_folder_swapped_for_a_symlink_is_not_entered(
    folder: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, fd = folder
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(b"stays")
    (root / "top/sub").mkdir(parents=True)
    unlink_files = nodes._unlink_files

    def swap_behind(at: int) -> tuple[int, list[bytes]]:
        found = unlink_files(at)
        if found[1]:
            os.rename(root / "top/sub", root / "aside")
            os.symlink(tmp_path / "outside", root / "top/sub")
        return found

    monkeypatch.setattr(nodes, "_unlink_files", swap_behind)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Not a directory"):
        remove_tree(fd, b"top")
    assert os.listdir(tmp_path / "outside") == ["file"]
    # What other tests left to the garbage collector may go meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_folder_moved_out_of_the_tree_leads_no_further(
    folder: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ".." is another folder then, of which nothing may be removed."""
    root, fd = folder
    (root / "top/sub/below").mkdir(parents=True)
    (tmp_path / "other/sub").mkdir(parents=True)
    (tmp_path / "other/file").write_bytes(b"stays")
    step = nodes._step

    def move_behind(at: int, name: bytes) -> int:
        entered = step(at, name)
        if name == b"below":
            os.rename(root / "top/sub/below", tmp_path / "other/below")
        return entered

    monkeypatch.setattr(nodes, "_step", move_behind)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(UnsafePath, match="moved"):
        remove_tree(fd, b"top")
    assert sorted(os.listdir(tmp_path / "other")) == ["below", "file", "sub"]
    # What other tests left to the garbage collector may go meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= before


def test_folders_of_the_image_go_through_a_merged_view(tmp_path: Path) -> None:
    layers = build_image(tmp_path / "image", [contents.image, contents.over_the_image])
    with mounted(tmp_path / "box", layers) as overlay:
        fd = os.open(overlay.merged, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in os.listdir(fd):
                remove_tree(fd, os.fsencode(name))
            assert os.listdir(fd) == []
        finally:
            os.close(fd)
