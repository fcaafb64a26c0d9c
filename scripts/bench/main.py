"""The run: start what is needed, measure, print, remove what was started."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import turnkeep
from demo import stage
from docker.errors import DockerException, ImageNotFound
from rich.console import Console
from turnkeep.errors import TurnkeepError

from bench import machine, report
from bench.interrupt import Interrupts
from bench.peer import Peer
from bench.rounds import CHANGED, FILE_BYTES, Rounds

_INTERRUPTED = 130
_QUICK_RUNS, _QUICK_FILES = 3, 500
_OUTPUT = Path(__file__).parents[2] / "build" / "bench.json"


def main() -> int:
    """Run the benchmark; return the exit code."""
    options = _options()
    if os.geteuid() != 0:
        return _complain(
            "needs root: the daemon reads containers' files and freezes them. Try: sudo make bench"
        )
    interrupts = Interrupts()
    try:
        with contextlib.ExitStack() as stack:
            _run(stack, options, interrupts)
    except KeyboardInterrupt:
        _complain("interrupted; what it had started is gone again")
        return _INTERRUPTED
    except ImageNotFound:
        return _complain(f"the engine has no image {stage.IMAGE}. Try: make image")
    except DockerException as error:
        return _complain(f"the Docker Engine failed: {error}. Try: make host")
    except (stage.Failed, TurnkeepError, OSError, subprocess.CalledProcessError) as error:
        return _complain(str(error))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure Turnkeep beside docker commit.")
    parser.add_argument("--runs", type=int, help="how often everything is measured (20)")
    parser.add_argument("--files", type=int, help="files in the sandbox's writable layer (5000)")
    parser.add_argument("--quick", action="store_true", help="a few runs on few files, to see that it works")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="where the JSON goes (build/bench.json)")
    options = parser.parse_args()
    if options.runs is None:
        options.runs = _QUICK_RUNS if options.quick else 20
    if options.files is None:
        options.files = _QUICK_FILES if options.quick else 5000
    if options.runs < 1 or options.files < CHANGED:
        parser.error(f"--runs has to be 1 or more, --files {CHANGED} or more")
    return options


def _run(stack: contextlib.ExitStack, options: argparse.Namespace, interrupts: Interrupts) -> None:
    started = time.monotonic()
    name = f"turnkeep-bench-{secrets.token_hex(4)}"
    engine = stack.enter_context(contextlib.closing(docker.from_env()))
    folder = stack.enter_context(_private_folder())
    environment = stage.private_environment(folder)
    stack.enter_context(stage.pin_removed(engine))
    peer = Peer(engine, name)
    stack.enter_context(peer.removed())
    sandbox = stack.enter_context(stage.container(engine, name))
    stack.enter_context(stage.daemon(folder, environment))
    tk = stack.enter_context(turnkeep.connect(environment["TURNKEEP_ADDRESS"]))
    stack.callback(interrupts.ignore)
    about = machine.describe(engine.info(), tk.status().version, folder)
    rounds = Rounds(engine, sandbox, peer, folder / "state", options.files, interrupts)
    rounds.start(tk.attach(name))
    _measure(rounds, options.runs)
    about["load"] += f", {machine.load()} after"
    found = report.figures(rounds.samples.values)
    took_s = time.monotonic() - started
    summary = (
        f"{options.runs} rounds in {took_s:.0f} s, a turn changes {CHANGED} of {options.files:,} files"
        f" of {FILE_BYTES} bytes"
    )
    width = report.WIDTH
    report.show(Console(width=width, highlight=False, markup=False), about, summary, found)
    settings = {"runs": options.runs, "files": options.files, "changed": CHANGED, "file_bytes": FILE_BYTES}
    report.write(options.output, about, settings, found)
    print(f"written to {options.output}")


def _measure(rounds: Rounds, runs: int) -> None:
    """Run the rounds, after one that warms caches up and does not count."""
    for number in range(runs + 1):
        if sys.stderr.isatty():
            print(f"\rround {number} of {runs}", end="", file=sys.stderr, flush=True)
        rounds.run(f"round-{number}")
        if number == 0:
            rounds.samples.values.clear()
        else:
            rounds.forget(f"round-{number - 1}")
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """Yield a folder on a disk: /tmp may be memory, where a sync costs nothing."""
    folder = Path(tempfile.mkdtemp(prefix="turnkeep-bench-", dir="/var/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _complain(message: str) -> int:
    print(f"bench: {message}", file=sys.stderr)
    return 1
