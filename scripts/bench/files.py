"""The part about files: a turn and a restore, beside `docker commit`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import docker
import turnkeep
from demo import stage

from bench import report
from bench.interrupt import Interrupts
from bench.peer import Peer
from bench.report import Measure, Part
from bench.rounds import CHANGED, FILE_BYTES, Rounds

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


def measure(
    engine: docker.DockerClient, name: str, folder: Path, runs: int, files: int, interrupts: Interrupts
) -> Part:
    """Run the rounds on a daemon and a sandbox of their own, which are gone afterwards."""
    started = time.monotonic()
    environment = stage.private_environment(folder)
    with contextlib.ExitStack() as stack:
        peer = Peer(engine, name)
        stack.enter_context(peer.removed())
        sandbox = stack.enter_context(stage.container(engine, name))
        stack.enter_context(stage.daemon(folder, environment))
        tk = stack.enter_context(turnkeep.connect(environment["TURNKEEP_ADDRESS"]))
        rounds = Rounds(engine, sandbox, peer, folder / "state", files, interrupts)
        rounds.start(tk.attach(name))
        with rounds.samples.forgotten():
            rounds.run("round-0")
        for number in range(1, runs + 1):
            report.progress(f"files, round {number} of {runs}")
            rounds.run(f"round-{number}")
            rounds.forget(f"round-{number - 1}")
    took_s = time.monotonic() - started
    changing = f"a turn changes {CHANGED} of {files:,} files of {FILE_BYTES} bytes"
    return Part(
        name="files",
        summary=f"{runs} rounds in {took_s:.0f} s, {changing}",
        settings={"runs": runs, "files": files, "changed": CHANGED, "file_bytes": FILE_BYTES},
        sections={"Turnkeep": TURNKEEP, "Docker alone": PEER, "the machine": FLOOR},
        found=report.figures(rounds.samples.values),
    )
