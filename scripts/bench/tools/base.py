"""What the tools have in common."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

_LIMIT_S = 900.0
_TAIL = 400


class Tool(Protocol):
    """Keeps folders in a store of its own."""

    key: str
    title: str
    program: str
    """What it cannot be used without; "" where nothing is needed."""
    in_place: bool
    """Whether `bring` changes a folder that holds another state; else it needs an empty one."""

    def prepare(self, folder: Path) -> None:
        """Make its store in an empty folder."""
        ...

    def keep(self, tree: Path, name: str) -> None:
        """Keep what is in a folder. It is on the disk when this returns."""
        ...

    def bring(self, name: str, target: Path) -> None:
        """Make `target` what was kept."""
        ...

    def stored_folder(self) -> Path:
        """Return the folder that grows when something is kept."""
        ...


def why_missing(program: str) -> str:
    """Return why a program cannot be used; "" if it can."""
    if not program or shutil.which(program):
        return ""
    return f"{program} is not installed; scripts/bench-peers does that"


def call(
    command: Sequence[str | Path], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        CalledProcessError, TimeoutExpired: it failed; the message ends with what it said.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        said = f"{command[0]}: {done.stderr.strip()[-_TAIL:]}"
        raise subprocess.CalledProcessError(done.returncode, said, done.stdout, done.stderr)
    return done.stdout
