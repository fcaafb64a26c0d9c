"""What the replay and the recovery have in common on their command lines, and around their runs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import stage
from demo.stage import Failed
from docker.errors import DockerException, ImageNotFound
from turnkeep.errors import TurnkeepError

from bench.interrupt import Interrupts
from bench.replay import traces, waits
from bench.replay.traces import Trace
from bench.replay.waits import Waits

WIDTH = 130
Progress = Callable[[int], None]
Run = Callable[[contextlib.ExitStack, argparse.Namespace, Interrupts], None]

_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is played. `synthetic` names the runs that were written for this."""

    traces: tuple[Trace, ...]
    synthetic: frozenset[str]
    waits: Waits
    settings: Mapping[str, Any]

    @property
    def waits_said(self) -> str:
        """Return in words what the waits are."""
        return f"{self.waits.source}, scaled by {self.waits.scale:g}, seed {self.waits.seed}"


def add(parser: argparse.ArgumentParser, *, output: Path, scale: float) -> None:
    """Add the options that both have."""
    add = parser.add_argument
    add("--traces", type=Path, help=f"folder or file of recorded runs ({traces.VARIABLE}, ../shared/traces)")
    add("--waits", type=Path, help=f"file of waits for the LLM ({waits.FILE} beside the traces)")
    add("--wait-source", default="", help="which set in that file, by a part of its name (the first)")
    add("--runs", type=int, help="play that many of the recorded runs (all)")
    add("--turns", type=int, help="play that many turns of each run (all)")
    add("--only", default="", help="play the runs with this in their names")
    add("--synthetic", choices=("yes", "no", "only"), default="yes", help="the runs written for this (yes)")
    add("--scale", type=float, default=scale, help=f"what the waits are multiplied by ({scale})")
    add("--seed", type=int, default=1, help="of all that is drawn (1)")
    add("--limit", type=float, default=60.0, help="seconds after which a command is cut off (60)")
    add("--quick", action="store_true", help="a few turns of few runs, to see that it works")
    add("--output", type=Path, default=output, help=f"where the JSON goes (build/{output.name})")


def settle(
    parser: argparse.ArgumentParser, found: argparse.Namespace, *, runs: int, turns: int, scale: float
) -> None:
    """Fill in what was not given, for a quick run or a whole one."""
    if found.quick:
        found.scale = min(found.scale, scale)
        found.runs, found.turns = found.runs or runs, found.turns or turns
    if any(value is not None and value < 1 for value in (found.runs, found.turns)) or found.limit <= 0:
        parser.error("--runs and --turns have to be 1 or more, --limit more than 0")
    if found.scale < 0:
        parser.error("--scale must not be negative")


def plan(found: argparse.Namespace) -> Plan:
    """Return what the options ask for.

    Raises:
        Failed: the traces or the waits are not there.
    """
    place = None
    if found.synthetic != "only" or found.waits is None:
        place = traces.folder(found.traces)
    known = [] if place is None or found.synthetic == "only" else traces.load(place)
    written = [] if found.synthetic == "no" else traces.load(traces.SYNTHETIC)
    chosen = traces.selected(known, written, only=found.only, runs=found.runs)
    drawn = waits.load(
        found.waits or _beside(place), source=found.wait_source, scale=found.scale, seed=found.seed
    )
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(found).items()}
    return Plan(
        traces=tuple(dataclasses.replace(each, steps=each.steps[: found.turns]) for each in chosen),
        synthetic=frozenset(each.name for each in chosen if each in written),
        waits=drawn,
        settings=settings,
    )


def _beside(place: Path | None) -> Path:
    if place is None:
        raise Failed("the waits for the LLM are to be named: --waits FILE")
    return (place if place.is_dir() else place.parent) / waits.FILE


def guarded(name: str, run: Run, found: argparse.Namespace) -> int:
    """Run it, put away what it started, and return the exit code."""

    def complain(message: str) -> int:
        print(f"{name}: {message}", file=sys.stderr)
        return 1

    if os.geteuid() != 0:
        return complain(
            f"needs root: the daemon reads containers' files and freezes them. Try: sudo make {name}"
        )
    interrupts = Interrupts()
    try:
        with contextlib.ExitStack() as stack:
            run(stack, found, interrupts)
    except KeyboardInterrupt:
        complain("interrupted; what it had started is gone again")
        return _INTERRUPTED
    except ImageNotFound:
        return complain(f"the engine has no image {stage.IMAGE}. Try: make image")
    except DockerException as error:
        return complain(f"the Docker Engine failed: {error}. Try: make host")
    except (Failed, TurnkeepError, OSError, subprocess.SubprocessError) as error:
        return complain(str(error))
    return 0


@contextlib.contextmanager
def private_folder(name: str) -> Iterator[Path]:
    """Yield a folder on a disk: /tmp may be memory, where a sync costs nothing."""
    folder = Path(tempfile.mkdtemp(prefix=f"turnkeep-{name}-", dir="/var/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
