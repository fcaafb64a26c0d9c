"""The part about files: a turn and a restore, beside `docker commit`."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import turnkeep
from demo import stage

from bench import report
from bench.figures import Measure, Part, figures
from bench.peer import Peer
from bench.rounds import CHANGED, Rounds
from bench.scene import Scene
from bench.upper import FILE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many files there are, and at most how often everything is measured."""

    files: int = 5_000
    runs: int = 20


TURNKEEP = {
    "freeze": Measure("freeze window", "commit_pause", "floor_read"),
    "captured": Measure("EndTurn to captured", "commit", "floor_read"),
    "durable": Measure("EndTurn to durable", "commit", "floor_fsync"),
    "durable_seen": Measure("  by the harness's clock", "commit", "floor_fsync"),
    "end": Measure("EndTurn round trip", floor="floor_fsync"),
    "begin": Measure("BeginTurn round trip, gate open", floor="floor_fsync"),
    "inspect": Measure("EndTurn to the stateless decision"),
    "stored": Measure("stored for the turn", "commit_layer", unit="bytes"),
    "restore": Measure("restore of a kept turn", "replace"),
    "restore_freeze": Measure("  freeze while writing", floor="floor_read"),
    "restore_saving": Measure("restore, new changes saved first", "replace"),
    "restore_saving_freeze": Measure("  freeze while writing", floor="floor_read"),
    "restore_only": Measure("restore, new changes not saved", "replace"),
    "restore_only_freeze": Measure("  freeze while writing", floor="floor_read"),
}
PEER = {
    "commit": Measure("docker commit", short="commit"),
    "commit_pause": Measure("  pause inside it, by its events", short="pause"),
    "commit_running": Measure("docker commit --pause=false"),
    "commit_layer": Measure("layer of docker commit", unit="bytes", short="layer"),
    "replace": Measure("docker rm -f, docker run", short="rm, run"),
}
FLOOR = {
    "floor_read": Measure("read the changed files", short="read"),
    "floor_fsync": Measure("append 4 KiB and fsync", short="fsync"),
}


def measure(scene: Scene, plan: Plan) -> Part:
    """Run the rounds on a daemon and a sandbox of their own, which are gone afterwards."""
    started = time.monotonic()
    environment = stage.private_environment(scene.folder)
    with contextlib.ExitStack() as stack:
        peer = Peer(scene.engine, scene.name)
        stack.enter_context(peer.removed())
        sandbox = stack.enter_context(stage.container(scene.engine, scene.name))
        stack.enter_context(stage.daemon(scene.folder, environment))
        tk = stack.enter_context(turnkeep.connect(environment["TURNKEEP_ADDRESS"]))
        state = scene.folder / "state"
        rounds = Rounds(scene.engine, sandbox, peer, state, plan.files, scene.interrupts)
        rounds.start(tk.attach(scene.name))
        with rounds.samples.forgotten():
            rounds.run("round-0")
        for number in scene.budget.rounds(plan.runs):
            report.progress(f"files, round {number} of {plan.runs}")
            rounds.run(f"round-{number}")
            rounds.forget(f"round-{number - 1}")
    took_s = time.monotonic() - started
    changing = f"a turn changes {CHANGED} of {plan.files:,} files of {FILE_BYTES} bytes"
    return Part(
        name="files",
        summary=f"in {took_s:.0f} s; {changing}",
        settings={"files": plan.files, "changed": CHANGED, "file_bytes": FILE_BYTES},
        sections={"Turnkeep": TURNKEEP, "Docker alone": PEER, "the machine": FLOOR},
        found=figures(rounds.samples.values),
    )
