"""Anything a sandbox may do to its files, checkpoints at any time, and back again on either way."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from turnkeep_store.repository import Repository

from .listing import listing
from .operations import OPERATIONS, Operation, apply, image_base, image_top
from .overlays import Overlay, build_image
from .sandboxes import Sandbox, Saved

TURNS = st.lists(OPERATIONS, min_size=1, max_size=8)
EARLIER = st.integers(0, 30)

EXAMPLES = 150
"""About twenty seconds' worth. A change of the store or the reader deserves thousands."""


class SandboxMachine(RuleBasedStateMachine):
    """Changes files through the merged view of an overlay, and takes and restores checkpoints."""

    repository: ClassVar[Repository]
    layers: ClassVar[Sequence[Path]]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tk-"))
        overlay = Overlay(self.folder, self.layers)
        self.sandbox = Sandbox(overlay, self.repository)
        overlay.mount()
        self.saved = [self.sandbox.checkpoint()]

    def teardown(self) -> None:
        if hasattr(self, "sandbox"):
            self.sandbox.close()
            shutil.rmtree(self.folder)

    @rule(operations=TURNS)
    def work(self, operations: list[Operation]) -> None:
        """Leave changes behind that no checkpoint has."""
        for operation in operations:
            apply(self.sandbox.root, operation)

    @rule(operations=TURNS, late=st.lists(OPERATIONS, max_size=2))
    def checkpoint(self, operations: list[Operation], late: list[Operation]) -> None:
        """Work, and take a checkpoint; `late` happens between the inspection and the freeze."""
        self.work(operations)
        inspection = self.sandbox.inspect()
        self.work(late)
        saved = self.sandbox.commit(self.sandbox.capture(inspection, busy=bool(late)))
        self.compare_with_full(saved)
        self.saved.append(saved)

    @rule(operations=st.lists(OPERATIONS, max_size=2))
    def end_turn(self, operations: list[Operation]) -> None:
        """A turn counts as stateless only if what is there is the last checkpoint."""
        self.work(operations)
        assert self.sandbox.baseline.tree is not None
        last = self.repository.read_directory(self.sandbox.baseline.tree).digest()
        same = self.sandbox.full_state().digest == last
        assert self.sandbox.end_turn() == same

    @rule(number=EARLIER)
    def restore_live(self, number: int) -> None:
        saved = self.saved[number % len(self.saved)]
        self.sandbox.restore_live(saved)
        self.compare(saved)

    @rule(number=EARLIER)
    def restore_cold(self, number: int) -> None:
        saved = self.saved[number % len(self.saved)]
        self.sandbox.restore_cold(saved)
        self.compare(saved)

    def compare(self, saved: Saved) -> None:
        assert listing(self.sandbox.root) == saved.listing
        self.compare_with_full(saved)

    def compare_with_full(self, saved: Saved) -> None:
        """What was found incrementally has to be what a look at everything finds."""
        assert self.sandbox.full_state().digest == saved.digest


def test_every_checkpoint_comes_back(repository: Repository, tmp_path: Path) -> None:
    SandboxMachine.repository = repository
    SandboxMachine.layers = build_image(tmp_path / "image", [image_base, image_top])
    run_state_machine_as_test(
        SandboxMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
