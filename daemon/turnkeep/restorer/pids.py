"""Whether the pids of captured processes are free where these are to come back.

A process that the container's start brings back (the command under `--init`) has no
fixed pid: the engine's own threads in the sandbox take the first ones, more or
fewer of them from start to start. So it may hold a pid that a captured process needs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from turnkeep.errors import PidsTaken
from turnkeep.process.table import read_table
from turnkeep.process.trees import TreeKind
from turnkeep.restorer.processes import Ready, ReadyTree, children_of_init
from turnkeep.runtime.container import Container


def require_free_pids(ready: Ready, container: Container, staying: Iterable[int]) -> None:
    """Check that processes which stay (their pids on the host) have no pid that is needed.

    Raises:
        PidsTaken: they have; nothing was changed.
    """
    needed = {pid for tree in ready.trees for pid in _needed(tree)}
    if not needed:
        return
    taken = [
        f"{thread} ({row.name})"
        for row in read_table(staying, container.init_pid).rows
        for thread in _threads(row.host)
        if thread in needed
    ]
    if taken:
        raise PidsTaken(
            f"captured processes need process ids that others have there: {', '.join(taken)}",
            object=f"container {container.name}",
            hint="these are given out at each start: restore with --mode cold, or once more",
        )


def dead_in_the_way(ready: Ready, container: Container) -> list[int]:
    """Return the pids that are needed and that dead processes have, or such as are about to be dead.

    They are free when the container's init has waited for them, which it cannot while it is frozen.
    """
    needed = {pid for tree in ready.trees for pid in _needed(tree)}
    if not needed:
        return []
    living = {container.init_pid, *container.pids()}
    rows = read_table(children_of_init(container), container.init_pid).rows
    return [row.pid for row in rows if row.pid in needed and row.host not in living]


def _needed(tree: ReadyTree) -> Iterator[int]:
    """Yield the pids of all its threads, and those of its groups and sessions whose leaders are dead."""
    record = tree.record
    ours = {record.root} if record.kind == TreeKind.INIT else set()
    left_out = {0, *ours, *record.skipped}
    for line in record.processes:
        if line.pid not in left_out:
            yield from {line.pid, line.group, line.session} - left_out
    yield from set(tree.images.threads()) - left_out


def _threads(host: int) -> list[int]:
    """Return the pids of a process's threads as the sandbox sees them."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{host}/task"):
            with open(f"/proc/{host}/task/{name}/status", "rb") as file:
                found += [int(line.split()[-1]) for line in file if line.startswith(b"NSpid:")]
    return found
