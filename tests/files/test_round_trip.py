"""What comes back is what was there, in everything."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from turnkeep_store.nodes import remove_tree

from . import contents
from .conftest import MakeSandbox
from .listing import listing
from .sandboxes import Sandbox, Saved

EXTENT_TREE = 4 * 8
"""Sectors that ext4 may take more to say where the others are."""

Fill = Callable[[Path], None]


def _clear(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY)
    try:
        for name in os.listdir(fd):
            remove_tree(fd, os.fsencode(name))
    finally:
        os.close(fd)


def _restore_into_new(make_sandbox: MakeSandbox, box: Sandbox, saved: Saved) -> Sandbox:
    new = make_sandbox(box)
    new.restore_cold(saved)
    return new


@pytest.mark.parametrize("fill", contents.CONTENTS)
def test_into_an_empty_layer(make_sandbox: MakeSandbox, fill: Fill) -> None:
    box = make_sandbox([contents.image])
    fill(box.root)
    saved = box.checkpoint()
    new = _restore_into_new(make_sandbox, box, saved)
    assert listing(new.root) == saved.listing


@pytest.mark.parametrize("fill", contents.CONTENTS)
def test_into_a_running_sandbox(make_sandbox: MakeSandbox, fill: Fill) -> None:
    """From the image's state, and from a sandbox that lost everything."""
    box = make_sandbox([contents.image])
    before = box.checkpoint()
    fill(box.root)
    saved = box.checkpoint()
    box.restore_live(before)
    assert listing(box.root) == before.listing
    box.restore_live(saved)
    assert listing(box.root) == saved.listing
    _clear(box.root)
    assert listing(box.root) == {}
    box.restore_live(saved)
    assert listing(box.root) == saved.listing


@pytest.mark.parametrize("fill", [each for each in contents.CONTENTS if each is not contents.wide_folder])
def test_over_another_state(make_sandbox: MakeSandbox, fill: Fill) -> None:
    """Names are the same and nothing else is; both ways back end the same."""
    box = make_sandbox([contents.image])
    fill(box.root)
    saved = box.checkpoint()
    _disturb(box.root)
    box.restore_live(saved)
    assert listing(box.root) == saved.listing
    _disturb(box.root)
    box.restore_cold(saved)
    assert listing(box.root) == saved.listing


def _disturb(root: Path) -> None:
    """Change each of the first names in one way or another."""
    for number, path in enumerate(sorted(os.scandir(root), key=lambda each: os.fsencode(each.name))[:40]):
        is_folder = path.is_dir(follow_symlinks=False)
        match number % 4:
            case 0:
                os.chown(path, 7, 8, follow_symlinks=False)
                os.setxattr(path, "trusted.new", b"1", follow_symlinks=False)
            case 1 if not is_folder:
                os.unlink(path)
                os.mkdir(path)
            case 1:
                shutil.rmtree(path)
                os.symlink("elsewhere", path)
            case 2 if path.is_file(follow_symlinks=False):
                os.truncate(path, 3)
            case _:
                os.utime(path, ns=(0, 5), follow_symlinks=False)


def test_sparse_files_take_no_more_room(make_sandbox: MakeSandbox) -> None:
    box = make_sandbox()
    contents.sparse_files(box.root)
    contents.large_file(box.root)
    saved = box.checkpoint()
    before = {path: _layout(box.overlay.upper / path.name) for path in box.root.iterdir()}
    for path in before:
        path.unlink()
    box.restore_live(saved)
    live = {path: _layout(box.overlay.upper / path.name) for path in before}
    new = _restore_into_new(make_sandbox, box, saved)
    cold = {path: _layout(new.overlay.upper / path.name) for path in before}
    for path, (blocks, data) in before.items():
        for found_blocks, found in (live[path], cold[path]):
            assert found == data
            assert found_blocks <= blocks + EXTENT_TREE


def _layout(path: Path) -> tuple[int, list[tuple[int, int]]]:
    """Return the allocated blocks and where data begins and ends."""
    found = []
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # blocks are allocated when data is written back
        fd, end = file.fileno(), 0
        with suppress(OSError):  # ENXIO: nothing but a hole is left
            while True:
                start = os.lseek(fd, end, os.SEEK_DATA)
                end = os.lseek(fd, start, os.SEEK_HOLE)
                found.append((start, end))
        return os.fstat(fd).st_blocks, found


# Names that share a letter share an inode; a dot takes a name away.
GROUPS = ["....", "aabb", "aaaa", "abab", ".aaa", "abcd", "a.a.", "aab.", "babb"]


def _link(root: Path, groups: str) -> None:
    """Make the names of four folders into groups of hardlinks."""
    made: dict[str, Path] = {}
    for number, letter in enumerate(groups):
        path = root / f"{number % 2}" / f"name{number}"
        path.parent.mkdir(exist_ok=True)
        if letter in made:
            os.link(made[letter], path)
        elif letter != ".":
            path.write_bytes(f"{letter} of {groups}".encode())
            os.chmod(path, 0o600 | ord(letter) % 8)
            made[letter] = path


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(GROUPS, 2)))
def test_hardlinks_are_regrouped(make_sandbox: MakeSandbox, first: str, second: str) -> None:
    box = make_sandbox()
    _link(box.root, first)
    before = box.checkpoint()
    _clear(box.root)
    _link(box.root, second)
    after = box.checkpoint()
    box.restore_live(before)
    assert listing(box.root) == before.listing
    box.restore_live(after)
    assert listing(box.root) == after.listing
    box.restore_cold(before)
    assert listing(box.root) == before.listing


def _linked_symlinks(root: Path, version: str) -> None:
    os.symlink(version, root / "a")


def _linked_fifos(root: Path, version: str) -> None:
    os.mkfifo(root / "a", 0o600 if version == "one" else 0o640)


def _linked_kinds(root: Path, version: str) -> None:
    if version == "one":
        os.mkfifo(root / "a")
    else:
        (root / "a").write_bytes(b"a file")


@pytest.mark.parametrize("make", [_linked_symlinks, _linked_fifos, _linked_kinds])
def test_a_replaced_inode_keeps_its_names(
    make_sandbox: MakeSandbox, make: Callable[[Path, str], None]
) -> None:
    """The further names do not differ between the trees, and still have to follow."""
    box = make_sandbox()
    saved = []
    for version in ("one", "two"):
        _clear(box.root)
        make(box.root, version)
        (box.root / "folder").mkdir()
        for name in ("b", "folder/c"):
            os.link(box.root / "a", box.root / name, follow_symlinks=False)
        saved.append(box.checkpoint())
    for each in (*saved, *saved):
        box.restore_live(each)
        assert listing(box.root) == each.listing


@pytest.mark.parametrize("hidden", ["by a file", "by nothing"])
def test_linked_names_in_a_folder_that_goes(make_sandbox: MakeSandbox, hidden: str) -> None:
    """The image has that folder, and the wanted state has something else above it, or nothing."""

    def image(root: Path) -> None:
        (root / "d/sub").mkdir(parents=True)
        (root / "d/sub/x").write_bytes(b"x")

    box = make_sandbox([image])
    untouched = box.checkpoint()
    shutil.rmtree(box.root / "d")
    if hidden == "by a file":
        (box.root / "d").write_bytes(b"was a folder")
    saved = box.checkpoint()
    box.restore_live(untouched)
    os.link(box.root / "d/sub/x", box.root / "d/sub/y")
    linked = box.checkpoint()
    for each in (saved, linked):
        box.restore_live(each)
        assert listing(box.root) == each.listing


def test_a_program_that_runs_is_replaced_under_all_its_names(make_sandbox: MakeSandbox) -> None:
    box = make_sandbox()
    program = box.root / "program"
    shutil.copy2("/bin/sleep", program)
    os.link(program, box.root / "alias")
    before = box.checkpoint()
    with open(program, "ab") as file:
        file.write(b"grown")
    after = box.checkpoint()
    pid = os.posix_spawn(program, ["sleep", "300"], {})
    try:
        box.restore_live(before)
        assert listing(box.root) == before.listing
        box.restore_live(after)
        assert listing(box.root) == after.listing
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def test_hardlinks_deeper_than_a_path_may_be_long(make_sandbox: MakeSandbox) -> None:
    box = make_sandbox()
    contents.deep_tree(box.root)
    here = os.open(box.root, os.O_RDONLY)
    for _ in range(400):
        below = os.open(contents.DEEP_NAME, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.mknod("a", dir_fd=here)
    os.link("a", "b", src_dir_fd=here, dst_dir_fd=here)
    os.close(here)
    saved = box.checkpoint()
    assert listing(_restore_into_new(make_sandbox, box, saved).root) == saved.listing


def test_a_renamed_copy_does_not_pass_for_what_it_was_copied_from(make_sandbox: MakeSandbox) -> None:
    """The kernel notes which file of the image a file is a copy of; after a cold restore that is over."""
    box = make_sandbox([contents.image])
    old = box.root / "folder/file"
    status = old.stat()
    os.chmod(old, 0o600)
    os.rename(old, box.root / "moved")
    # A new file that equals the image's: the layer names it, the tree does not.
    old.write_bytes(b"of the image")
    os.utime(old, ns=(0, status.st_mtime_ns))
    saved = box.checkpoint()
    box.restore_cold(saved)
    assert old.read_bytes() == b"of the image"
    assert listing(box.root) == saved.listing
