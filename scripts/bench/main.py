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
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import docker
from demo import stage
from docker.errors import DockerException, ImageNotFound
from rich.console import Console
from turnkeep.errors import TurnkeepError

from bench import files, machine, report
from bench.interrupt import Interrupts
from bench.processes import run
from bench.report import Part
from bench.rounds import CHANGED

_INTERRUPTED = 130
_QUICK_RUNS, _QUICK_FILES = 3, 500
_PARTS = _FILES, _PROCESSES = "files", "processes"
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
    parser = argparse.ArgumentParser(prog="bench", description="Measure Turnkeep beside its peers.")
    parser.add_argument("--runs", type=int, help="how often turns and restores of files are measured (20)")
    parser.add_argument("--files", type=int, help="files in that sandbox's writable layer (5000)")
    parser.add_argument("--only", choices=_PARTS, help="measure one part")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few runs of little, to see that it works")
    size.add_argument("--full", action="store_true", help="longer: up to 1,024 MiB of memory, 32 copies")
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
    name = f"turnkeep-bench-{secrets.token_hex(4)}"
    engine = stack.enter_context(contextlib.closing(docker.from_env()))
    stack.enter_context(stage.pin_removed(engine))
    folder = stack.enter_context(_private_folder())
    stack.callback(interrupts.ignore)
    about = machine.describe(engine.info(), version("turnkeep"), folder)
    parts = []
    if options.only != _PROCESSES:
        parts.append(_files(engine, name, folder, options, interrupts))
    if options.only != _FILES:
        parts.append(_processes(engine, name, folder, options, interrupts))
    report.progress("")
    about["load"] += f", {machine.load()} after"
    console = Console(width=report.WIDTH, highlight=False, markup=False)
    report.show_machine(console, about)
    for part in parts:
        report.show(console, part)
    report.write(options.output, about, parts)
    print(f"written to {options.output}")


def _files(
    engine: docker.DockerClient, name: str, folder: Path, options: argparse.Namespace, interrupts: Interrupts
) -> Part:
    own = folder / _FILES
    own.mkdir()
    return files.measure(engine, name, own, options.runs, options.files, interrupts)


def _processes(
    engine: docker.DockerClient, name: str, folder: Path, options: argparse.Namespace, interrupts: Interrupts
) -> Part:
    own = folder / _PROCESSES
    own.mkdir()
    plan = run.QUICK if options.quick else run.FULL if options.full else run.Plan()
    return run.measure(engine, name, own, plan, interrupts)


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
