"""Equal states have equal digests, whichever way they were reached; others have others."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from turnkeep_store.ids import Digest

from .conftest import MakeSandbox
from .contents import SECOND
from .sandboxes import Sandbox

Step = Callable[[Path], None]


def _base(root: Path) -> None:
    for folder in ("d", "d/sub", "empty"):
        (root / folder).mkdir()
    for path in ("d/a", "d/b", "d/sub/x", "f", "g"):
        (root / path).write_bytes(path.encode())
        os.utime(root / path, ns=(0, SECOND))
    os.symlink("f", root / "l")
    os.utime(root / "l", ns=(0, SECOND), follow_symlinks=False)
    os.mkfifo(root / "p")


def _top(root: Path) -> None:
    (root / "d/b").unlink()
    (root / "d/c").write_bytes(b"d/c")
    os.utime(root / "d/c", ns=(0, SECOND))


@pytest.fixture
def box(make_sandbox: MakeSandbox) -> Sandbox:
    """A sandbox on an image of two layers."""
    return make_sandbox([_base, _top])


def _write(path: Path, content: bytes, mtime_ns: int = SECOND) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(0, mtime_ns))


def nothing(root: Path) -> None:
    pass


def mode_there_and_back(root: Path) -> None:
    for path in ("d", "d/a", "f", "empty"):
        mode = stat.S_IMODE((root / path).stat().st_mode)
        os.chmod(root / path, 0)
        os.chmod(root / path, mode)


def attribute_there_and_back(root: Path) -> None:
    for path in ("d/a", "d/sub"):
        os.setxattr(root / path, "user.a", b"1")
        os.removexattr(root / path, "user.a")


def owner_there_and_back(root: Path) -> None:
    for path in ("l", "p", "f", "d"):
        os.chown(root / path, 1, 2, follow_symlinks=False)
        os.chown(root / path, 0, 0, follow_symlinks=False)


def opened_for_writing(root: Path) -> None:
    with open(root / "f", "r+b"):
        pass
    os.utime(root / "f", ns=(0, SECOND))


def made_and_deleted(root: Path) -> None:
    (root / "d/sub/new").write_bytes(b"x")
    (root / "d/sub/new").unlink()
    (root / "new").mkdir()
    (root / "new").rmdir()


def file_deleted_and_restored(root: Path) -> None:
    (root / "d/a").unlink()
    _write(root / "d/a", b"d/a")
    (root / "l").unlink()
    os.symlink("f", root / "l")
    os.utime(root / "l", ns=(0, SECOND), follow_symlinks=False)


def file_renamed_there_and_back(root: Path) -> None:
    os.rename(root / "d/a", root / "else")
    os.rename(root / "else", root / "d/a")


def folder_deleted_and_recreated(root: Path) -> None:
    shutil.copytree(root / "d", root / "aside", symlinks=True)
    shutil.rmtree(root / "d")
    shutil.copytree(root / "aside", root / "d", symlinks=True)
    shutil.rmtree(root / "aside")


def folder_was_a_file(root: Path) -> None:
    shutil.copytree(root / "d", root / "aside", symlinks=True)
    shutil.rmtree(root / "d")
    (root / "d").write_bytes(b"x")
    (root / "d").unlink()
    os.rename(root / "aside", root / "d")


def link_made_and_deleted(root: Path) -> None:
    os.link(root / "f", root / "f2")
    (root / "f2").unlink()


def same_content_in_pieces(root: Path) -> None:
    with open(root / "f", "r+b") as file:
        file.write(b"f")
    os.utime(root / "f", ns=(0, SECOND))


def folder_time(root: Path) -> None:
    os.utime(root / "d", ns=(0, 1))


AS_THE_IMAGE: list[Step] = [
    nothing,
    mode_there_and_back,
    attribute_there_and_back,
    owner_there_and_back,
    opened_for_writing,
    made_and_deleted,
    file_deleted_and_restored,
    file_renamed_there_and_back,
    folder_deleted_and_recreated,
    folder_was_a_file,
    link_made_and_deleted,
    same_content_in_pieces,
    folder_time,
]


@pytest.mark.parametrize("way", AS_THE_IMAGE)
def test_what_is_as_in_the_image_is_no_change(box: Sandbox, way: Step) -> None:
    untouched = box.checkpoint()
    way(box.root)
    assert box.end_turn(), "the turn is stateless"
    assert box.checkpoint().digest == untouched.digest
    assert box.full_state().digest == untouched.digest


@pytest.mark.parametrize("way", AS_THE_IMAGE)
def test_a_change_is_the_same_after_detours(box: Sandbox, make_sandbox: MakeSandbox, way: Step) -> None:
    """The way to a state leaves no trace in its digest; nor does it between checkpoints."""
    straight = make_sandbox(box)
    for root in (box.root, straight.root):
        _write(root / "d/new", b"new")
        (root / "d/c").unlink()
    way(box.root)
    assert box.checkpoint().digest == straight.checkpoint().digest


def test_an_opaque_folder_equals_one_with_whiteouts(box: Sandbox, make_sandbox: MakeSandbox) -> None:
    other = make_sandbox(box)
    shutil.rmtree(box.root / "d")
    (box.root / "d").mkdir()
    _write(box.root / "d/new", b"x")
    for name in ("a", "c"):
        (other.root / "d" / name).unlink()
    shutil.rmtree(other.root / "d/sub")
    _write(other.root / "d/new", b"x")
    assert _is_opaque(box.overlay.upper / "d")
    assert not _is_opaque(other.overlay.upper / "d")
    assert box.checkpoint().digest == other.checkpoint().digest


def _is_opaque(folder: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(folder)


def test_a_folder_inside_an_opaque_one_hides_the_image_too(box: Sandbox, make_sandbox: MakeSandbox) -> None:
    other = make_sandbox(box)
    shutil.rmtree(box.root / "d")
    (box.root / "d/sub").mkdir(parents=True)
    for name in ("a", "c", "sub/x"):
        (other.root / "d" / name).unlink()
    assert box.checkpoint().digest == other.checkpoint().digest


def test_live_and_cold_restores_have_one_digest(box: Sandbox, make_sandbox: MakeSandbox) -> None:
    shutil.rmtree(box.root / "d")
    (box.root / "d").mkdir()
    _write(box.root / "d/a", b"other")
    os.link(box.root / "d/a", box.root / "linked")
    (box.root / "g").unlink()
    (box.root / "g").mkdir()
    saved = box.checkpoint()
    live, cold = make_sandbox(box), make_sandbox(box)
    for each in (live, cold):
        _write(each.root / "d/sub/x", b"x")
        (each.root / "f").unlink()
        each.checkpoint()
    live.restore_live(saved)
    cold.restore_cold(saved)
    assert _is_opaque(box.overlay.upper / "d")
    assert not _is_opaque(cold.overlay.upper / "d"), "the layers differ"
    digests = {each.full_state().digest for each in (box, live, cold)}
    assert digests == {saved.digest}


def content(root: Path) -> None:
    _write(root / "f", b"F")


def time_of_a_file(root: Path) -> None:
    os.utime(root / "f", ns=(0, SECOND + 1))


def time_of_a_symlink(root: Path) -> None:
    os.utime(root / "l", ns=(0, SECOND + 1), follow_symlinks=False)


def mode(root: Path) -> None:
    os.chmod(root / "d/sub", 0o700)


def owner_of_a_symlink(root: Path) -> None:
    os.chown(root / "l", 0, 1, follow_symlinks=False)


def attribute(root: Path) -> None:
    os.setxattr(root / "empty", "user.a", b"")


def attribute_of_a_symlink(root: Path) -> None:
    os.setxattr(root / "l", "trusted.a", b"", follow_symlinks=False)


def deleted(root: Path) -> None:
    (root / "d/a").unlink()


def folder_deleted(root: Path) -> None:
    (root / "empty").rmdir()


def folder_emptied(root: Path) -> None:
    shutil.rmtree(root / "d/sub")
    (root / "d/sub").mkdir()


def empty_folder(root: Path) -> None:
    (root / "d/sub/new").mkdir()


def linked(root: Path) -> None:
    os.link(root / "f", root / "f2")


def copied(root: Path) -> None:
    shutil.copy2(root / "f", root / "f2")


def fifo_for_a_file(root: Path) -> None:
    (root / "g").unlink()
    os.mkfifo(root / "g", 0o644)
    os.utime(root / "g", ns=(0, SECOND))


def longer_by_a_hole(root: Path) -> None:
    os.truncate(root / "f", 100)
    os.utime(root / "f", ns=(0, SECOND))


def test_unequal_states_have_unequal_digests(box: Sandbox, make_sandbox: MakeSandbox) -> None:
    found: dict[Digest, str] = {}
    for way in (
        *(nothing, content, time_of_a_file, time_of_a_symlink, mode, owner_of_a_symlink, attribute),
        *(attribute_of_a_symlink, deleted, folder_deleted, folder_emptied, empty_folder, linked, copied),
        *(fifo_for_a_file, longer_by_a_hole),
    ):
        other = make_sandbox(box)
        other.checkpoint()
        way(other.root)
        saved = other.checkpoint()
        assert saved.digest not in found, f"{way.__name__} and {found[saved.digest]}"
        found[saved.digest] = way.__name__
        assert other.full_state().digest == saved.digest
