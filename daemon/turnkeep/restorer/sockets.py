"""What bringing back processes does to files, and has to be put right."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from turnkeep_store.beneath import parent_beneath
from turnkeep_store.diff import Delta, diff
from turnkeep_store.errors import StoreError
from turnkeep_store.tree import NodeType

from turnkeep.checkpointer.capture import Checkpointer
from turnkeep.checkpointer.states import State
from turnkeep.runtime.container import Container
from turnkeep.runtime.places import Place, open_root


def times_again(checkpointer: Checkpointer, container: Container, state: State) -> None:
    """Give the sockets that CRIU bound anew the times that they had in `state`.

    `state` was there before the processes came back. What they changed since is
    theirs, and left to the next turn.
    """
    now = checkpointer.states.current_state(container, state.baseline, state.source)
    if now.digest == state.digest:
        return
    places = {place.slot: place for place in container.covered()}
    for delta in diff(now.source, state.tree, now.tree):
        slot, _, path = delta.path.partition(b"/")
        if _is_bound_anew(delta) and slot in places and delta.before is not None:
            # It may be gone again: its process runs.
            with contextlib.suppress(OSError, StoreError):
                _set_time(container, places[slot], path, delta.before.mtime_ns)


def _is_bound_anew(delta: Delta) -> bool:
    before, after = delta.before, delta.after
    if before is None or after is None or after.type is not NodeType.SOCKET:
        return False
    return replace(after, mtime_ns=before.mtime_ns) == before


def _set_time(container: Container, place: Place, path: bytes, mtime_ns: int) -> None:
    root = open_root(container.init_pid) if place.is_rootfs else place.open(container.init_pid)
    try:
        with parent_beneath(root, path) as (parent, name):
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(root)
