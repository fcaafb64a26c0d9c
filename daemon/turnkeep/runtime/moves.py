"""Moves between cgroups that do not wait.

To move a process the kernel takes a lock, and to take it for the first time in a
while it waits until every processor has passed a quiet point: 8 to 16 ms on our
machines, out of which a restore used to wait twice. For some ten milliseconds
afterwards it is at hand, and a move takes a tenth of a millisecond. So somebody else
takes it meanwhile, again and again.

See `cgroup_threadgroup_rwsem` in the kernel's kernel/cgroup/cgroup.c, and
kernel/rcu/sync.c.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from turnkeep.runtime.cgroup import cgroup_mounts

_PAUSE_S = 0.005


@contextlib.contextmanager
def quick_moves() -> Iterator[None]:
    """Keep moves quick for a `with` block, from some ten milliseconds after it was entered.

    A thread puts this process into the cgroup that it is in. If that cannot be done,
    moves take their time.
    """
    ended = threading.Event()
    # Not waited for: it ends by itself, and has nothing of anybody's.
    threading.Thread(target=_move_often, args=(ended,), name="quick-moves", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _move_often(ended: threading.Event) -> None:
    with contextlib.suppress(OSError):
        own = _own_group()
        while True:
            own.write_text(str(os.getpid()))
            if ended.wait(_PAUSE_S):
                return


def _own_group() -> Path:
    """Return the `cgroup.procs` of this process's cgroup, in one hierarchy: the lock is one for all.

    Raises:
        FileNotFoundError: no hierarchy of it is mounted here.
    """
    mounts = cgroup_mounts()
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in mounts:
                return Path(mounts[controller] + path, "cgroup.procs")
    raise FileNotFoundError("no cgroup hierarchy")
