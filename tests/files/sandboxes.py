"""A sandbox without a container: an overlay of our own, driven as the daemon drives one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnkeep.checkpointer.capture import Capture, Checkpointer, Inspection
from turnkeep.checkpointer.states import State
from turnkeep.checkpointer.view import Baseline, FrozenView
from turnkeep.config import Classify, Limits
from turnkeep.model import Decision, Mount, MountKind, TurnClass
from turnkeep.paths import ROOTFS
from turnkeep.runtime.places import Place
from turnkeep.watch.tracker import Tracker
from turnkeep.watch.trail import TrackedFolders
from turnkeep_store.diff import Delta, diff
from turnkeep_store.ids import Digest, TreeId
from turnkeep_store.layers import LayerView
from turnkeep_store.nodes import set_attributes_of
from turnkeep_store.repository import Repository
from turnkeep_store.restorer import Written, apply_difference
from turnkeep_store.synchroniser import synchronise
from turnkeep_store.tree import Entry

from .listing import Listing, listing
from .overlays import Overlay


class FakeView:
    """A container as `Checkpointer` sees it, whose root file system is an overlay of ours.

    Its mount target is where the overlay is mounted here, since our processes
    see their mappings under that path.
    """

    def __init__(self, overlay: Overlay) -> None:
        mount = Mount(target=str(overlay.merged), kind=MountKind.ROOTFS, covered=True)
        self.place = Place(slot=ROOTFS, mount=mount, host_path=str(overlay.upper))
        self.image = LayerView(overlay.layers)
        self.further: list[Place] = []
        self.id = "0" * 64
        self.init_pid = 1
        self.running = True
        self.inspected: Mapping[str, Any] = {}
        self.command = ("sleep", "infinity")
        self.health_check: tuple[str, ...] = ()
        self.processes: list[int] = []
        self.used_ns = 0
        self.freezer_folder = ""

    def configuration(self) -> Mapping[str, Any]:
        return {}

    def runc_root(self) -> Path:
        return Path("/nowhere")

    def procs_files(self) -> list[str]:
        return []

    def covered(self) -> tuple[Place, ...]:
        return (self.place, *self.further)

    def pids(self) -> list[int]:
        return self.processes

    def usage_ns(self) -> int:
        return self.used_ns

    @contextlib.contextmanager
    def frozen(self, budget_s: float, *, hold: bool = False) -> Iterator[FrozenView | None]:
        yield None

    def image_view(self, place: Any) -> LayerView | None:
        return self.image if place is self.place else None


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint, and what was there when it was taken."""

    tree: TreeId
    digest: Digest
    decision: Decision
    listing: Listing


class Sandbox:
    """Checkpoints and restores of one overlay, with the baseline kept as the daemon keeps it."""

    def __init__(self, overlay: Overlay, repository: Repository, limits: Limits | None = None) -> None:
        self.overlay = overlay
        self.root = overlay.merged
        self.repository = repository
        self.view = FakeView(overlay)
        tracked = TrackedFolders(Tracker(str(overlay.upper.parent / "scratch")), audit=1.0)
        self.checkpointer = Checkpointer(repository, limits or Limits(), Classify(), None, tracked)
        # What it finds is not what the tracker says, and takes nothing from the tracker.
        self._truth = Checkpointer(repository, limits or Limits(), Classify())
        self.baseline = Baseline()
        self.expected_misses = 0

    def close(self) -> None:
        """Unmount the overlay and let go of its layers. Nobody may have missed a change."""
        tracked = self.checkpointer.states.tracked
        assert tracked is not None
        tracked.close()
        self.view.image.close()
        self.overlay.unmount(at_any_rate=True)
        assert tracked.figures.missed == self.expected_misses

    def inspect(self) -> Inspection:
        """Look at what changed."""
        return self.checkpointer.inspect(self.view, self.baseline)

    def capture(self, inspection: Inspection, *, busy: bool = False) -> Capture:
        """Take the state of this instant. A busy sandbox ran since the inspection."""
        if busy:
            self.view.used_ns += 1_000_000_000
        return self.checkpointer.capture(inspection, self.baseline)

    def commit(self, capture: Capture) -> Saved:
        """Make a capture durable and go on from it."""
        committed = self.checkpointer.commit(capture, self.baseline, {})
        self.baseline = committed.baseline
        self.baseline.fold()
        snapshot = committed.snapshot
        decision = capture.inspection.decision
        return Saved(snapshot.tree, snapshot.digest, decision, listing(self.root))

    def checkpoint(self, *, busy: bool = False) -> Saved:
        """Inspect, capture, commit."""
        return self.commit(self.capture(self.inspect(), busy=busy))

    def end_turn(self) -> bool:
        """Inspect; without a change, settle. Returns whether the turn was stateless."""
        inspection = self.inspect()
        stateless = inspection.decision.turn_class is TurnClass.STATELESS
        if stateless:
            self.checkpointer.settle(inspection, self.baseline)
        else:
            inspection.drop()
        return stateless

    def full_state(self) -> State:
        """Read everything, whatever is known."""
        return self._truth.states.current_state(self.view, None)

    def restore_live(self, saved: Saved) -> Written:
        """Bring the mounted sandbox to a checkpoint; its digest is compared as the daemon does."""
        before = self.checkpointer.states.current_state(self.view, self.baseline)
        have = before.source.read_directory(before.tree).entries[ROOTFS]
        want = self._rootfs(saved)
        deltas = diff(before.source, have.subtree, want.subtree)
        fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY)
        try:
            assert want.subtree is not None
            written = apply_difference(fd, before.source, want.subtree, deltas, self.view.image)
            set_attributes_of(fd, want)
        finally:
            os.close(fd)
        after = self.checkpointer.states.current_state(self.view, before.baseline, before.source)
        assert after.digest == saved.digest, self._differing(after, saved)
        self.baseline = Baseline(saved.tree, None, after.baseline.places)
        return written

    def restore_cold(self, saved: Saved) -> Written:
        """Unmount, make the upper layer equal to a checkpoint, mount again."""
        self.overlay.unmount()
        written = fill_upper(self.overlay.upper, self.repository, self._rootfs(saved))
        state = self.full_state()
        assert state.digest == saved.digest, self._differing(state, saved)
        self.baseline = Baseline(saved.tree, None, state.baseline.places)
        self.overlay.mount()
        return written

    def differing(self, a: TreeId, b: TreeId) -> list[Delta]:
        """Return how two stored trees differ."""
        return list(diff(self.repository, a, b))

    def _rootfs(self, saved: Saved) -> Entry:
        return self.repository.read_directory(saved.tree).entries[ROOTFS]

    def _differing(self, state: State, saved: Saved) -> list[Delta]:
        return list(diff(state.source, saved.tree, state.tree))


def fill_upper(upper: Path, repository: Repository, rootfs: Entry) -> Written:
    """Make the upper layer of an unmounted overlay equal to a checkpoint's root file system."""
    fd = os.open(upper, os.O_PATH | os.O_DIRECTORY)
    try:
        assert rootfs.subtree is not None
        written = synchronise(fd, repository, rootfs.subtree, upper=True)
        set_attributes_of(fd, rootfs, overlay=True)
    finally:
        os.close(fd)
    return written
