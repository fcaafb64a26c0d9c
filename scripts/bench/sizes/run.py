"""The order of things: small files in sandboxes of every size, then large files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import turnkeep
from demo import stage
from turnkeep.client import Client

from bench import report
from bench.cpu import DaemonClock
from bench.figures import Part, figures
from bench.samples import Samples
from bench.scene import Scene
from bench.sizes import rows
from bench.sizes.cells import Cells
from bench.sizes.large import Large
from bench.sizes.rows import MIB
from bench.upper import FILE_BYTES, Upper


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured, and at most how often."""

    files: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    changed: tuple[int, ...] = (1, 5, 100, 10_000)
    runs: int = 20
    large: tuple[int, ...] = (1 * MIB, 16 * MIB, 128 * MIB, 1024 * MIB)
    large_runs: int = 5

    def cells(self) -> list[tuple[int, int]]:
        """Return all (files, changed files) that there can be."""
        return [(files, count) for files in self.files for count in self.changed if count <= files]


class _Run:
    def __init__(self, scene: Scene, plan: Plan) -> None:
        self.samples = Samples()
        self.notes: list[str] = []
        self._scene = scene
        self._plan = plan

    def small(self, tk: Client, clock: DaemonClock) -> list[int]:
        """Measure all cells; return the numbers of files that there was time for."""
        scene, plan = self._scene, self._plan
        with contextlib.ExitStack() as stack:
            sandboxes: list[Cells] = []
            for files in sorted(plan.files):
                if scene.budget.left_s() < 0:
                    self.notes.append(f"{files:,} files: not measured. There was no time to make them")
                    continue
                sandboxes.append(self._sandbox(stack, tk, clock, files))
            for number in scene.budget.share(0.8).rounds(plan.runs):
                report.progress(f"sizes, round {number} of {plan.runs}")
                for cells in reversed(sandboxes) if number % 2 else sandboxes:
                    cells.run()
            return [cells.files for cells in sandboxes]

    def _sandbox(self, stack: contextlib.ExitStack, tk: Client, clock: DaemonClock, files: int) -> Cells:
        report.progress(f"sizes, a sandbox with {files:,} files")
        container = stack.enter_context(stage.container(self._scene.engine, f"{self._scene.name}-{files}"))
        upper = Upper(container, files)
        upper.fill()
        counts = [count for of, count in self._plan.cells() if of == files]
        cells = Cells(self.samples, tk, upper, counts, clock, self._scene.folder / "floor")
        cells.start()
        with self.samples.forgotten():
            cells.run()
        return cells

    def large(self, tk: Client, sizes: Sequence[int]) -> None:
        """Measure one file of each size."""
        scene, plan = self._scene, self._plan
        with stage.container(scene.engine, f"{scene.name}-large") as container:
            measured = Large(self.samples, tk, Upper(container, 0), sizes)
            measured.start()
            for number in scene.budget.rounds(plan.large_runs):
                report.progress(f"large files, round {number} of {plan.large_runs}")
                measured.run()


def measure(scene: Scene, plan: Plan) -> Part:
    """Measure everything on a daemon of its own, which is gone afterwards."""
    started = time.monotonic()
    run = _Run(scene, plan)
    environment = stage.private_environment(scene.folder)
    with (
        stage.daemon(scene.folder, environment) as pid,
        turnkeep.connect(environment["TURNKEEP_ADDRESS"]) as tk,
    ):
        files = run.small(tk, DaemonClock(pid))
        if plan.large:
            run.large(tk, plan.large)
    took_s = time.monotonic() - started
    cells = replace(plan, files=tuple(files)).cells()
    return Part(
        name="sizes",
        summary=f"in {took_s:.0f} s; small files have {FILE_BYTES} bytes, all rounds go through all sizes",
        settings={
            "files": files,
            "changed": list(plan.changed),
            "file_bytes": FILE_BYTES,
            "large": list(plan.large),
        },
        sections=rows.sections(cells),
        found=figures(run.samples.values),
        grids=[*rows.grids(cells), *rows.large_grids(plan.large)],
        in_grids=rows.in_grids(cells) | rows.in_large_grids(plan.large),
        notes=run.notes,
    )
