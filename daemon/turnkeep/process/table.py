"""The processes of a sandbox as they see each other, and the trees they form."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

INIT, EXEC = "init", "exec"
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
    capabilities: int
    nested: bool
    confinement: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tree:
    """What one dump holds: `rows` are the root and all that descends from it.

    `skipped` (pids inside) are those that a start of the container brings back.
    """

    kind: str
    root: Row
    rows: tuple[Row, ...]
    skipped: frozenset[int]
    root_is_stateful: bool = True

    @property
    def stateful(self) -> tuple[Row, ...]:
        """The processes that hold state."""
        return tuple(
            row
            for row in self.rows
            if row.pid not in self.skipped and (row is not self.root or self.root_is_stateful)
        )


@dataclass(frozen=True, slots=True)
class Table:
    """All processes of a sandbox at one time."""

    rows: tuple[Row, ...]
    init: int

    @property
    def may_trace(self) -> bool:
        """Whether a process of the sandbox may trace those of root: it could read what CRIU holds."""
        return any(row.capabilities >> _SYS_PTRACE & 1 for row in self.rows)

    @property
    def reasons(self) -> list[str]:
        """Why these processes cannot be dumped."""
        return [
            f"process {row.pid} {row.name} is in a pid namespace of its own"
            for row in self.rows
            if row.nested
        ]

    def trees(self, is_stateful: Callable[[int], bool]) -> list[Tree]:
        """Return the trees that hold a stateful process, the init's first.

        `is_stateful` is asked with pids of the host.
        """
        children: dict[int, list[Row]] = {}
        for row in self.rows:
            children.setdefault(row.parent, []).append(row)
        found: list[Tree] = []
        for root in children.get(0, []):
            rows = _descent(root, children)
            skipped = frozenset(
                row.pid
                for row in rows
                if not row.zombie
                and not is_stateful(row.host)
                and row is not root
                and not children.get(row.pid)
            )
            if not any(is_stateful(row.host) for row in rows):
                continue
            kind = INIT if root.host == self.init else EXEC
            found.append(Tree(kind, root, rows, skipped, is_stateful(root.host)))
        return sorted(found, key=lambda tree: tree.kind != INIT)


def _descent(root: Row, children: Mapping[int, list[Row]]) -> tuple[Row, ...]:
    found, pending = [], [root]
    while pending:
        row = pending.pop()
        found.append(row)
        pending.extend(children.get(row.pid, []))
    return tuple(sorted(found, key=lambda row: row.pid))


def read_table(pids: Iterable[int], init: int) -> Table:
    """Look at the processes with these pids on the host; those that end meanwhile are left out."""
    statuses = {pid: status for pid in pids if (status := _status(pid)) is not None}
    inside = {pid: int(status["NSpid"].split()[-1]) for pid, status in statuses.items()}
    depth = len(statuses[init]["NSpid"].split()) if init in statuses else 0
    rows = []
    for pid, status in statuses.items():
        with contextlib.suppress(OSError, ValueError, IndexError):
            rows.append(_row(pid, status, inside, depth))
    return Table(tuple(sorted(rows, key=lambda row: row.pid)), init)


def _row(pid: int, status: Mapping[str, str], inside: Mapping[int, int], depth: int) -> Row:
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
        capabilities=int(status["CapEff"], 16),
        nested=len(status["NSpid"].split()) != depth,
    )


def _status(pid: int) -> dict[str, str] | None:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            text = file.read().decode("utf-8", "backslashreplace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, _, value in pairs}
