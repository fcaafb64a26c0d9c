"""The processes of a sandbox as they see each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_SYS_PTRACE = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One process. `host` is its pid on the host; all other numbers hold inside the sandbox."""

    host: int
    pid: int
    parent: int
    group: int
    session: int
    name: str
    threads: int
    zombie: bool


@dataclass(frozen=True, slots=True)
class Table:
    """All processes of a sandbox at one time."""

    rows: tuple[Row, ...]
    init: int


def may_trace(pids: Iterable[int]) -> bool:
    """Whether one of these processes may trace those of root: it could read what CRIU holds."""
    capabilities = (int(status["CapEff"], 16) for pid in pids if (status := _status(pid)) is not None)
    return any(each >> _SYS_PTRACE & 1 for each in capabilities)


def read_table(pids: Iterable[int], init: int) -> Table:
    """Look at the processes with these pids on the host; those that end meanwhile are left out."""
    statuses = {pid: status for pid in pids if (status := _status(pid)) is not None}
    inside = {pid: int(status["NSpid"].split()[-1]) for pid, status in statuses.items()}
    rows = []
    for pid, status in statuses.items():
        with contextlib.suppress(OSError, ValueError, IndexError):
            rows.append(_row(pid, status, inside))
    return Table(tuple(sorted(rows, key=lambda row: row.pid)), init)


def _row(pid: int, status: Mapping[str, str], inside: Mapping[int, int]) -> Row:
    def own(key: str) -> int:
        return int(status[key].split()[-1])

    return Row(
        host=pid,
        pid=inside[pid],
        parent=inside.get(int(status["PPid"]), 0),
        group=own("NSpgid"),
        session=own("NSsid"),
        name=status["Name"],
        threads=int(status["Threads"]),
        zombie=status["State"].startswith(("Z", "X")),
    )


def _status(pid: int) -> dict[str, str] | None:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            text = file.read().decode("utf-8", "backslashreplace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}
