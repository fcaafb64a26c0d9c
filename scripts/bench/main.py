"""The run: start what is needed, measure, print, draw, remove what was started."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import docker
from demo import stage
from docker.errors import DockerException, ImageNotFound
from rich.console import Console
from turnkeep.errors import TurnkeepError

from bench import document, machine, options, report
from bench.budget import Budget
from bench.figures import Part
from bench.interrupt import Interrupts
from bench.options import Options
from bench.plans import MEASURED, SHARES
from bench.scene import Scene

_INTERRUPTED = 130


def main() -> int:
    """Run the benchmark; return the exit code."""
    wanted = options.parse()
    if wanted.draw:
        return _draw_only(wanted)
    if os.geteuid() != 0:
        return _complain(
            "needs root: the daemon reads containers' files and freezes them. Try: sudo make bench"
        )
    interrupts = Interrupts()
    try:
        with contextlib.ExitStack() as stack:
            _run(stack, wanted, interrupts)
    except KeyboardInterrupt:
        _complain("interrupted; what it had started is gone again")
        return _INTERRUPTED
    except ImageNotFound:
        return _complain(f"the engine has no image {stage.IMAGE}. Try: make image")
    except DockerException as error:
        return _complain(f"the Docker Engine failed: {error}. Try: make host")
    except (stage.Failed, TurnkeepError, OSError, subprocess.SubprocessError) as error:
        return _complain(str(error))
    return 0


def _run(stack: contextlib.ExitStack, wanted: Options, interrupts: Interrupts) -> None:
    budget = Budget(wanted.plan.seconds)
    name = f"turnkeep-bench-{secrets.token_hex(4)}"
    engine = stack.enter_context(contextlib.closing(docker.from_env()))
    stack.enter_context(stage.pin_removed(engine))
    folder = stack.enter_context(_private_folder())
    stack.callback(interrupts.ignore)
    about = machine.describe(engine.info(), version("turnkeep"), folder)
    console = Console(width=report.WIDTH, highlight=False, markup=False)
    parts: list[Part] = []
    for position, part in enumerate(wanted.parts):
        if budget.left_s() < 0:
            _complain(f"no time is left for the part {part}. Try: --only {part}")
            about["left out"] = f"{part}: no time was left"
            continue
        left = [SHARES[each] for each in wanted.parts[position:]]
        own = Scene(
            engine=engine,
            name=name,
            folder=folder,
            interrupts=interrupts,
            budget=budget.share(left[0] / sum(left)),
        )
        with own.below(part) as scene:
            parts.append(MEASURED[part](scene, getattr(wanted.plan, part)))
        report.progress("")
        report.show(console, parts[-1])
    about["load"] += f", {machine.load()} after"
    report.show_machine(console, about)
    content = document.document(about, parts)
    document.write(wanted.output, content)
    print(f"written to {wanted.output}")
    _draw(content, wanted.plots)


def _draw_only(wanted: Options) -> int:
    try:
        content = document.read(wanted.draw)
    except (OSError, ValueError) as error:
        return _complain(str(error))
    return 0 if _draw(content, wanted.plots) else 1


def _draw(content: Mapping[str, Any], folder: Path) -> bool:
    """Draw the plots, or say why not: the figures do not depend on it."""
    try:
        from bench import plots
    except ImportError as error:
        _complain(f"no plots: {error}. Try: make bench, which installs what they need")
        return False
    for path in plots.draw(content, folder):
        print(f"drawn to {path}")
    return True


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
