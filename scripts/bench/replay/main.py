"""The replay: start what is needed, play every run twice, print, remove what was started."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import secrets
import time
from importlib.metadata import version
from pathlib import Path

import docker
from demo import stage
from rich.console import Console

from bench import machine, report
from bench.interrupt import Interrupts
from bench.peer import Peer, layer_bytes
from bench.replay import checkouts, figures, options, tables, traces
from bench.replay.arms import Arm, Player
from bench.replay.figures import Pair, Result
from bench.replay.options import Plan
from bench.replay.traces import Trace
from bench.replay.waits import Waits

_OUTPUT = traces.ROOT / "build" / "bench-replay.json"
_QUICK_RUNS, _QUICK_TURNS = 2, 8
# The waits hide five times less than in life, so that a run ends in reasonable time.
_SCALE, _QUICK_SCALE = 0.2, 0.02


def main() -> int:
    """Run the replay; return the exit code."""
    return options.guarded("bench-replay", _run, _options())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench-replay", description="Replay recorded agent runs with Turnkeep and without."
    )
    options.add(parser, output=_OUTPUT, scale=_SCALE)
    found = parser.parse_args()
    options.settle(parser, found, runs=_QUICK_RUNS, turns=_QUICK_TURNS, scale=_QUICK_SCALE)
    return found


def _run(stack: contextlib.ExitStack, found: argparse.Namespace, interrupts: Interrupts) -> None:
    plan = options.plan(found)
    engine = stack.enter_context(contextlib.closing(docker.from_env()))
    stack.enter_context(stage.pin_removed(engine))
    folder = stack.enter_context(options.private_folder("replay"))
    stack.callback(interrupts.ignore)
    about = machine.describe(engine.info(), version("turnkeep"), folder)
    replay = Replay(engine, folder, plan.waits, Player(limit_s=found.limit), interrupts)
    pairs: list[Pair] = []
    started = time.monotonic()
    try:
        for number, trace in enumerate(plan.traces):
            pairs.append(replay.pair(number, trace, f"{number + 1} of {len(plan.traces)}"))
    finally:
        # However it ended: what was played until then took long enough.
        if pairs:
            about["waits"] = plan.waits_said
            about["played"] = f"in {(time.monotonic() - started) / 60:.0f} minutes, {_said(pairs)}"
            about["load"] += f", {machine.load()} after"
            _tell(found, plan, about, pairs)


def _tell(found: argparse.Namespace, plan: Plan, about: dict[str, str], pairs: list[Pair]) -> None:
    results = [(pair, figures.result(pair)) for pair in pairs]
    totals = _totals([result for _, result in results], plan.synthetic)
    console = Console(width=options.WIDTH, highlight=False, markup=False)
    report.show_machine(console, about)
    tables.show(console, [result for _, result in results], totals)
    tables.write(found.output, about, plan.settings, results, totals)
    print(f"written to {found.output}")


def _said(pairs: list[Pair]) -> str:
    return f"{sum(len(pair.trace.steps) for pair in pairs)} turns of {len(pairs)} runs, each twice"


class Replay:
    """Plays runs one after the other: two at a time would measure each other."""

    def __init__(
        self,
        engine: docker.DockerClient,
        folder: Path,
        waits: Waits,
        player: Player,
        interrupts: Interrupts,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._waits = waits
        self._player = player
        self._interrupts = interrupts
        self._token = secrets.token_hex(4)

    def pair(self, number: int, trace: Trace, said: str) -> Pair:
        """Play a run without Turnkeep and with it; which comes first changes from run to run."""
        name = f"turnkeep-replay-{self._token}-{number}"
        checkout = checkouts.prepare(self._engine, name, trace.sdist)
        drawn = self._waits.drawn(trace.name, len(trace.steps))
        arms: dict[str, Arm] = {}
        committed = 0
        for arm in ("off", "on") if number % 2 == 0 else ("on", "off"):
            player = dataclasses.replace(self._player, progress=_progress(f"run {said}, {arm}, {trace.name}"))
            # What the checkout's unpacking left to write is no part of the run.
            with checkouts.sandbox(self._engine, name, checkout) as container:
                os.sync()
                if arm == "on":
                    own = self._folder / f"{number}"
                    own.mkdir()
                    arms[arm] = player.on(trace, drawn, container, own)
                else:
                    arms[arm] = player.off(trace, drawn, container)
                    committed = self._commit(name)
        report.progress("")
        took = ", ".join(f"{arm} {played.total_ns / 1e9:.1f} s" for arm, played in sorted(arms.items()))
        print(f"run {said}, {trace.name}: {len(trace.steps)} turns, {took}", flush=True)
        return Pair(trace=trace, off=arms["off"], on=arms["on"], committed=committed)

    def _commit(self, name: str) -> int:
        peer = Peer(self._engine, name)
        try:
            with self._interrupts.held():
                return layer_bytes(peer.commit(self._engine.containers.get(name), "last", pause=True))
        finally:
            peer.forget("last")


def _progress(said: str) -> options.Progress:
    return lambda turn: report.progress(f"{said}: {turn}")


def _totals(results: list[Result], synthetic: frozenset[str]) -> list[Result]:
    """Return the recorded runs in all, and those that were written for this."""
    kinds = {
        "recorded, in all": [each for each in results if each.name not in synthetic],
        "synthetic, in all": [each for each in results if each.name in synthetic],
    }
    return [figures.together(name, each) for name, each in kinds.items() if each]
