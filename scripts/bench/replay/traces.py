"""Recorded agent runs: what the files in a folder of traces hold.

A file has one JSON object a line: `run`, `turn`, `command`, `cwd`, `shell`, `exit`,
`sdist`. Other keys are passed over. Two are ours, and need not be there: `limit_s` is
the command's own limit, and `probe` says that its output tells of a living process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.stage import Failed

ROOT = Path(__file__).parents[3]
SYNTHETIC = Path(__file__).with_name("synthetic.jsonl")
VARIABLE = "TRACES"

_DEFAULT = ROOT.parent / "shared" / "traces"
_HOW = f"name the folder that holds them: --traces FOLDER, or {VARIABLE}=FOLDER"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What an agent ran in one turn, and the exit code that was recorded (None: unknown)."""

    turn: int
    command: str
    cwd: str
    shell: tuple[str, ...]
    exit: int | None
    limit_s: float | None = None
    probe: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One run of an agent. `sdist` names the release that it worked on; "" for none."""

    name: str
    sdist: str
    steps: tuple[Step, ...]

    @property
    def has_probes(self) -> bool:
        """Whether any of its commands tells of a living process."""
        return any(step.probe for step in self.steps)


def folder(option: Path | None) -> Path:
    """Return the folder of the traces: the option, TRACES, or the default if it is there.

    Raises:
        Failed: there is none.
    """
    named = option or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    found = named or _DEFAULT
    if not found.exists():
        raise Failed(f"there are no traces at {found}; {_HOW}")
    return found


def load(path: Path) -> list[Trace]:
    """Return the runs of a file, or of all `*.jsonl` in a folder, in their order.

    Raises:
        Failed: there are none, or a line is not of the format.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    traces = [trace for file in files for trace in _read(file)]
    if not traces:
        raise Failed(f"{path} holds no runs; {_HOW}")
    return traces


def selected(
    recorded: Sequence[Trace], written: Sequence[Trace], *, only: str = "", runs: int | None = None
) -> list[Trace]:
    """Return the traces whose name contains `only`: at most `runs` of the recorded ones, and the written.

    Raises:
        Failed: none is left.
    """
    found = [trace for trace in recorded if only in trace.name][:runs]
    found += [trace for trace in written if only in trace.name]
    if not found:
        names = ", ".join(each.name for each in (*recorded, *written))
        raise Failed(f"no run's name contains {only!r}; there are {names}")
    return found


def _read(path: Path) -> list[Trace]:
    steps: dict[str, list[Step]] = {}
    sdists: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            steps.setdefault(value["run"], []).append(_step(value))
            sdists.setdefault(value["run"], value.get("sdist") or "")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Failed(f"{path}, line {number}, is not a turn: {type(error).__name__}: {error}") from None
    return [Trace(name=name, sdist=sdists[name], steps=tuple(found)) for name, found in steps.items()]


def _step(value: Mapping[str, Any]) -> Step:
    code, limit = value.get("exit"), value.get("limit_s")
    return Step(
        turn=int(value["turn"]),
        command=str(value["command"]),
        cwd=str(value.get("cwd") or "/testbed"),
        shell=tuple(str(value.get("shell") or "bash -lc").split()),
        exit=None if code is None else int(code),
        limit_s=None if limit is None else float(limit),
        probe=bool(value.get("probe", False)),
    )
