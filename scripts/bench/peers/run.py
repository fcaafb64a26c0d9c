"""The order of things: a sandbox for each number of files, and every way on each."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import turnkeep
from demo import stage
from turnkeep.client import Client

from bench import loop, report
from bench.budget import Budget
from bench.figures import Part, figures
from bench.peer import Peer
from bench.peers import rows, ways
from bench.peers.rounds import CHANGED, Rounds
from bench.peers.ways import Btrfs, Commit, ToolWay, Way
from bench.samples import Samples
from bench.scene import Scene
from bench.tools import Borg, Restic, Rsync, TarZstd, Tool, why_missing
from bench.upper import FILE_BYTES, Upper


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many files there are, and at most how often everything is measured."""

    files: tuple[int, ...] = (1_000, 10_000, 100_000)
    runs: int = 8


_GROWTH = 3


class _Run:
    def __init__(self, scene: Scene, plan: Plan) -> None:
        self.samples = Samples()
        self.titles: dict[str, str] = {}
        self.notes: list[str] = []
        self._scene = scene
        self._plan = plan
        tools: list[Tool] = [Restic(), Borg(), Rsync(), TarZstd()]
        self._missing = {tool.title: why_missing(tool.program) for tool in tools}
        self._missing[Btrfs.title] = loop.why_not("btrfs")
        self._tools = [tool for tool in tools if not self._missing[tool.title]]
        self.notes += [f"{name}: not measured. {why}" for name, why in self._missing.items() if why]

    def measure(self, tk: Client) -> None:
        """Measure the numbers of files for which there is time."""
        fewest = 0.0
        for position, files in enumerate(self._plan.files):
            budget = self._scene.budget.share(1 / (len(self._plan.files) - position))
            if fewest > self._scene.budget.left_s():
                self.notes.append(f"{files:,} files: not measured. There was no time for them")
                continue
            began = time.monotonic()
            self._measure(tk, files, budget)
            # Most of it grows with the files; not all of it.
            fewest = (time.monotonic() - began) * _GROWTH

    def _measure(self, tk: Client, files: int, budget: Budget) -> None:
        """Measure all ways with so many files."""
        with contextlib.ExitStack() as stack:
            scene = stack.enter_context(self._scene.below(str(files)))
            report.progress(f"peers, a sandbox with {files:,} files")
            container = stack.enter_context(stage.container(scene.engine, scene.name))
            upper = Upper(container, files)
            upper.fill()
            peer = Peer(scene.engine, f"{scene.name}-peer")
            stack.enter_context(peer.removed())
            found = self._ways(stack, scene, upper, peer)
            self.titles |= {way.key: way.title for way in found}
            state = self._scene.folder / "state"
            rounds = Rounds(self.samples, tk, upper, found, state)
            rounds.start()
            for number in budget.rounds(self._plan.runs):
                report.progress(f"peers, {files:,} files, round {number} of {self._plan.runs}")
                rounds.run(f"round-{number}")

    def _ways(self, stack: contextlib.ExitStack, scene: Scene, upper: Upper, peer: Peer) -> list[Way]:
        found: list[Way] = [Commit(peer, upper, scene.interrupts)]
        found += [ToolWay(tool, upper, scene.folder) for tool in self._tools]
        if not self._missing[Btrfs.title]:
            found.append(stack.enter_context(ways.btrfs(upper, scene.folder)))
        return found


def measure(scene: Scene, plan: Plan) -> Part:
    """Measure everything on a daemon of its own, which is gone afterwards."""
    started = time.monotonic()
    run = _Run(scene, plan)
    environment = stage.private_environment(scene.folder)
    with (
        stage.daemon(scene.folder, environment),
        turnkeep.connect(environment["TURNKEEP_ADDRESS"]) as tk,
    ):
        run.measure(tk)
    took_s = time.monotonic() - started
    return Part(
        name="peers",
        summary=f"in {took_s:.0f} s; a turn changes {CHANGED} files of {FILE_BYTES} bytes",
        settings={"files": list(plan.files), "changed": CHANGED, "file_bytes": FILE_BYTES},
        sections=rows.sections(plan.files, run.titles),
        found=figures(run.samples.values),
        notes=run.notes,
        compared=rows.TURNKEEP,
    )
