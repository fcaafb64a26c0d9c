"""A large file of which little changed is brought back by writing little."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from turnkeep_store.chunker import GRID

from .conftest import MakeSandbox

SIZE = 40 * GRID + 1000


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more" * 100)


def changed_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(SIZE // 2)
        file.write(b"other")


def cut_to_half(path: Path) -> None:
    os.truncate(path, SIZE // 2)


def cut_and_made_long_again(path: Path) -> None:
    os.truncate(path, SIZE - 3 * GRID)
    os.truncate(path, SIZE)


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (appended, 0),
        (changed_in_the_middle, 0),
        (cut_to_half, SIZE - SIZE // 2),
        (cut_and_made_long_again, 3 * GRID),
    ],
)
def test_only_chunks_that_differ_are_written(
    make_sandbox: MakeSandbox, change: Callable[[Path], None], lost: int
) -> None:
    box = make_sandbox()
    path = box.root / "large"
    path.write_bytes(os.urandom(SIZE))
    full = box.checkpoint()
    inode = path.stat().st_ino
    change(path)
    changed = box.checkpoint()
    back = box.restore_live(full)
    assert box.full_state().digest == full.digest
    assert back.bytes <= lost + 2 * GRID
    box.restore_live(changed)
    assert box.full_state().digest == changed.digest
    assert path.stat().st_ino == inode


def test_holes_come_back(make_sandbox: MakeSandbox) -> None:
    box = make_sandbox()
    path = box.root / "large"
    with path.open("wb") as file:
        file.write(os.urandom(SIZE // 2))
        file.truncate(SIZE)
    sparse = box.checkpoint()
    with path.open("r+b") as file:
        file.seek(SIZE - GRID)
        file.write(os.urandom(GRID))
    filled = box.checkpoint()
    box.restore_live(sparse)
    assert box.full_state().digest == sparse.digest
    box.restore_live(filled)
    assert box.full_state().digest == filled.digest
