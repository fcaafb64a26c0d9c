"""What a live restore has written is read again: it is the checkpoint, or it is told apart from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from turnkeep.checkpointer import states
from turnkeep.checkpointer.states import State
from turnkeep.paths import ROOTFS
from turnkeep.restorer.live import trail_of
from turnkeep.watch.trail import Trail
from turnkeep_store.diff import diff
from turnkeep_store.restorer import apply_difference

from .conftest import MakeSandbox
from .sandboxes import Sandbox, Saved

NAMES = [f"folder{number}/file" for number in range(4)]


@pytest.fixture
def saved(make_sandbox: MakeSandbox) -> tuple[Sandbox, Saved]:
    """A sandbox, and a checkpoint of it before each of its files was changed."""
    box = make_sandbox()
    for name in NAMES:
        (box.root / name).parent.mkdir()
        (box.root / name).write_bytes(b"before")
    before = box.checkpoint()
    for name in NAMES:
        (box.root / name).write_bytes(b"after!")
    box.checkpoint()
    return box, before


def _nothing(root: Path) -> None:
    pass


def _other_content(root: Path) -> None:
    (root / NAMES[1]).write_bytes(b"BEFORE")


def _other_mode(root: Path) -> None:
    os.chmod(root / NAMES[2], 0o600)


def _other_time(root: Path) -> None:
    os.utime(root / NAMES[3], ns=(0, 5))


def _gone(root: Path) -> None:
    (root / NAMES[0]).unlink()


def _became_a_folder(root: Path) -> None:
    (root / NAMES[0]).unlink()
    (root / NAMES[0]).mkdir()


def _linked(root: Path) -> None:
    (root / NAMES[0]).unlink()
    os.link(root / NAMES[1], root / NAMES[0])


@pytest.mark.parametrize(
    "spoil", [_nothing, _other_content, _other_mode, _other_time, _gone, _became_a_folder, _linked]
)
def test_what_was_written_otherwise_is_seen(
    saved: tuple[Sandbox, Saved], spoil: Callable[[Path], None]
) -> None:
    box, want = saved
    after = _brought(box, want, spoil)
    assert after.digest == box.full_state().digest
    assert (after.digest == want.digest) is (spoil is _nothing)


def test_what_was_not_written_is_seen(saved: tuple[Sandbox, Saved]) -> None:
    box, want = saved
    after = _brought(box, want, _nothing, leave_out=1)
    assert after.digest == box.full_state().digest != want.digest


def test_no_tree_is_built_where_all_is_as_wanted(
    saved: tuple[Sandbox, Saved], monkeypatch: pytest.MonkeyPatch
) -> None:
    box, want = saved
    monkeypatch.setattr(states, "archive_places", None)
    assert _brought(box, want, _nothing).tree == want.tree


def _brought(box: Sandbox, want: Saved, spoil: Callable[[Path], None], leave_out: int = 0) -> State:
    """Bring the files to a checkpoint, spoil that, and return what reading again finds."""
    before = box.checkpointer.states.known_state(box.view, box.baseline)
    assert before is not None
    trees = [before.source.read_directory(tree).entries[ROOTFS].subtree for tree in (before.tree, want.tree)]
    assert trees[1] is not None
    deltas = list(diff(before.source, *trees))
    assert len(deltas) == len(NAMES)
    fd = os.open(box.root, os.O_PATH | os.O_DIRECTORY)
    try:
        apply_difference(fd, before.source, trees[1], deltas[leave_out:], box.view.image)
    finally:
        os.close(fd)
    spoil(box.root)
    trail: Trail = trail_of(deltas)
    return box.checkpointer.states.after_writing(box.view, before, {ROOTFS: trail}, want.tree)
