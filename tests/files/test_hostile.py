"""A sandbox that changes between the capture and the restore leads nothing outside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from turnkeep.paths import ROOTFS
from turnkeep_store.diff import diff
from turnkeep_store.errors import UnsafePath
from turnkeep_store.ids import BlobId
from turnkeep_store.restorer import apply_difference
from turnkeep_store.synchroniser import synchronise

from .conftest import MakeSandbox
from .contents import SECOND
from .listing import Listing, listing
from .sandboxes import Sandbox, Saved

Change = Callable[[Path], None]


def write(root: Path) -> None:
    (root / "folder/file").write_bytes(b"changed")


def delete(root: Path) -> None:
    (root / "folder/file").unlink()


def create(root: Path) -> None:
    (root / "folder/new").write_bytes(b"new")


def make_folder(root: Path) -> None:
    (root / "folder/sub/new").mkdir()
    (root / "folder/sub/new/file").write_bytes(b"new")


def delete_folder(root: Path) -> None:
    (root / "folder/sub/file").unlink()
    (root / "folder/sub").rmdir()


def link(root: Path) -> None:
    os.link(root / "folder/file", root / "folder/linked")


def link_from_elsewhere(root: Path) -> None:
    os.link(root / "folder/file", root / "linked")


def attributes(root: Path) -> None:
    os.chmod(root / "folder/file", 0o4777)
    os.chmod(root / "folder/sub", 0o777)
    os.chown(root / "folder/sub/file", 1, 1)


def time_of_the_folder(root: Path) -> None:
    os.utime(root / "folder/sub", ns=(0, SECOND))


CHANGES: list[Change] = [
    write,
    delete,
    create,
    make_folder,
    delete_folder,
    link,
    link_from_elsewhere,
    attributes,
    time_of_the_folder,
]


def _absolute(outside: Path, root: Path) -> str:
    return str(outside)


def _upwards(outside: Path, root: Path) -> str:
    return os.path.relpath(outside, root)


def _fill(root: Path) -> None:
    (root / "folder/sub").mkdir(parents=True)
    for name in ("folder/file", "folder/sub/file"):
        (root / name).write_bytes(b"before")
        os.chmod(root / name, 0o644)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the host with the same names."""
    outside = tmp_path / "outside"
    outside.mkdir()
    _fill(outside)
    return outside / "folder"


def _apply_although(box: Sandbox, have: Saved, want: Saved) -> bool:
    """Restore as if nothing had changed since `have`; return whether that concerns `folder`."""
    old, new = (box.repository.read_directory(saved.tree).entries[ROOTFS] for saved in (have, want))
    deltas = list(diff(box.repository, old.subtree, new.subtree))
    assert deltas
    fd = os.open(box.root, os.O_PATH | os.O_DIRECTORY)
    try:
        assert new.subtree is not None
        apply_difference(fd, box.repository, new.subtree, deltas, box.view.image)
    finally:
        os.close(fd)
    return any(delta.path.startswith(b"folder") for delta in deltas)


def _below_folder(found: Listing) -> Listing:
    return {path: node for path, node in found.items() if path.startswith(b"folder")}


@contextmanager
def _untouched(folder: Path) -> Iterator[None]:
    before, times = listing(folder), _times(folder)
    yield
    assert listing(folder) == before
    assert _times(folder) == times


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_ctime_ns for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", [_absolute, _upwards])
@pytest.mark.parametrize("back", [False, True], ids=["forwards", "back"])
def test_a_live_restore_stays_inside(
    make_sandbox: MakeSandbox, outside: Path, change: Change, way: Callable[[Path, Path], str], back: bool
) -> None:
    box = make_sandbox()
    _fill(box.root)
    saved = [box.checkpoint()]
    change(box.root)
    saved.append(box.checkpoint())
    if back:
        saved.reverse()
    else:
        box.restore_live(saved[0])
    os.rename(box.root / "folder", box.root / "aside")
    os.symlink(way(outside, box.root), box.root / "folder")
    assert (box.root / "folder/file").read_bytes() == b"before", "the trap is set"
    with _untouched(outside):
        try:
            concerned = _apply_although(box, *saved)
        except UnsafePath:
            return
    # Where the folder itself differs (in its time, say), it is made anew.
    assert not concerned or _below_folder(listing(box.root)) == _below_folder(saved[1].listing)


@pytest.mark.parametrize("change", [write, attributes, delete])
def test_a_file_that_became_a_symlink_is_replaced(
    make_sandbox: MakeSandbox, outside: Path, change: Change
) -> None:
    """The last name is never followed: the symlink goes, and what it leads to stays."""
    box = make_sandbox()
    _fill(box.root)
    before = box.checkpoint()
    change(box.root)
    after = box.checkpoint()
    path = box.root / "folder/file"
    path.unlink(missing_ok=True)
    os.symlink(outside / "file", path)
    with _untouched(outside):
        _apply_although(box, after, before)
    assert path.read_bytes() == b"before"
    assert not path.is_symlink()


def test_a_folder_swapped_while_it_is_written_to(make_sandbox: MakeSandbox, outside: Path) -> None:
    box = make_sandbox()
    names = [*(f"{number:02}" for number in range(20)), "sub/file"]
    for folder in (box.root / "folder", outside):
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_bytes(b"before")
    before = box.checkpoint()
    for name in names:
        (box.root / "folder" / name).write_bytes(b"after")
    after = box.checkpoint()
    done: list[object] = []

    class Swapping:
        """Content is fetched between any two writes: a good time for an attack."""

        read_directory = box.repository.read_directory

        def get(self, blob: BlobId) -> bytes:
            if len(done) == 10:
                os.rename(box.root / "folder", box.root / "aside")
                os.symlink(outside, box.root / "folder")
            done.append(blob)
            return box.repository.get(blob)

    old, new = (box.repository.read_directory(saved.tree).entries[ROOTFS] for saved in (after, before))
    deltas = list(diff(box.repository, old.subtree, new.subtree))
    fd = os.open(box.root, os.O_PATH | os.O_DIRECTORY)
    try:
        assert new.subtree is not None
        with _untouched(outside), pytest.raises(UnsafePath):
            apply_difference(fd, Swapping(), new.subtree, deltas, box.view.image)
    finally:
        os.close(fd)
    written = [name for name in names if (box.root / "aside" / name).read_bytes() == b"before"]
    assert written == names[:20], "it went on inside until the next folder was opened"


@pytest.mark.parametrize("way", [_absolute, _upwards])
def test_a_cold_restore_replaces_symlinks(
    make_sandbox: MakeSandbox, outside: Path, way: Callable[[Path, Path], str]
) -> None:
    """It compares everything, so that a symlink for a folder is one difference more."""
    box = make_sandbox()
    _fill(box.root)
    saved = box.checkpoint()
    os.rename(box.root / "folder", box.root / "aside")
    os.symlink(way(outside, box.root), box.root / "folder")
    with _untouched(outside):
        box.restore_cold(saved)
    assert listing(box.root) == saved.listing


def test_a_capture_does_not_read_through_symlinks(make_sandbox: MakeSandbox, outside: Path) -> None:
    (outside / "file").write_bytes(b"a secret of the host")
    box = make_sandbox()
    os.symlink(outside, box.root / "absolute")
    os.symlink(os.path.relpath(outside, box.root), box.root / "upwards")
    os.symlink(outside / "file", box.root / "file")
    saved = box.checkpoint()
    assert sorted(saved.listing) == [b"absolute", b"file", b"upwards"]
    entries = box.repository.read_directory(saved.tree).entries[ROOTFS]
    assert entries.subtree is not None
    inside = box.repository.read_directory(entries.subtree).entries
    assert all(entry.target and not entry.content for entry in inside.values())


def test_a_plain_folder_is_synchronised_inside(
    make_sandbox: MakeSandbox, outside: Path, tmp_path: Path
) -> None:
    """A volume, where a link count, a symlink or a device may be anything."""
    box = make_sandbox()
    _fill(box.root)
    saved = box.checkpoint()
    volume = tmp_path / "volume"
    (volume / "folder").mkdir(parents=True)
    os.symlink(outside / "sub", volume / "folder/sub")
    os.symlink(outside / "file", volume / "folder/file")
    entry = box.repository.read_directory(saved.tree).entries[ROOTFS]
    fd = os.open(volume, os.O_PATH | os.O_DIRECTORY)
    try:
        assert entry.subtree is not None
        with _untouched(outside):
            synchronise(fd, box.repository, entry.subtree)
    finally:
        os.close(fd)
    assert listing(volume) == saved.listing
