"""An audit finds what nobody told of, and the turn holds it all the same."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from turnkeep.watch.trail import Collected, TrackedFolders

from .conftest import MakeSandbox
from .sandboxes import Sandbox


@pytest.fixture
def box(make_sandbox: MakeSandbox) -> Sandbox:
    """A sandbox that is followed, with a checkpoint."""
    box = make_sandbox()
    (box.root / "kept").write_text("as it was")
    for _ in range(2):
        box.checkpoint()
    if not _tracked(box).figures.followed and not os.environ.get("CI"):
        pytest.skip("this host cannot follow changes")
    assert _tracked(box).figures.followed
    return box


def _tracked(box: Sandbox) -> TrackedFolders:
    tracked = box.checkpointer.states.tracked
    assert tracked is not None
    return tracked


def _deafen(tracked: TrackedFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tracker report nothing, as if that were all."""
    collect = tracked.collect

    def deaf(path: str) -> Collected | None:
        collected = collect(path)
        assert collected is not None
        nothing = replace(collected.touched, paths=frozenset(), deep=frozenset(), inodes=frozenset())
        return replace(collected, touched=nothing)

    monkeypatch.setattr(tracked, "collect", deaf)


@pytest.mark.parametrize("audited", [True, False])
def test_a_change_that_nobody_told_of(box: Sandbox, monkeypatch: pytest.MonkeyPatch, audited: bool) -> None:
    tracked = _tracked(box)
    _deafen(tracked, monkeypatch)
    tracked.audit = float(audited)
    (box.root / "kept").write_text("something else")
    (box.root / "new").write_text("new")
    saved = box.checkpoint()
    changed = {path for path in saved.decision.changed_paths if not path.endswith("/")}
    box.expected_misses = tracked.figures.missed
    assert (box.expected_misses > 0) is audited
    assert any(path.endswith("kept") for path in changed) is audited
    assert any(path.endswith("new") for path in changed) is audited


def test_what_raises_no_event_is_not_missed(box: Sandbox) -> None:
    tracked = _tracked(box)
    tracked.audit = 1.0
    file = box.root / "kept"
    os.utime(file, ns=(1, os.stat(file).st_mtime_ns))
    box.checkpoint()
    assert tracked.figures.audits > 0
    assert tracked.figures.missed == 0
