"""Named points between two steps, at each of which a crash is tried.

The name of a point says what has just been done. `TURNKEEP_CRASH_AT=NAME` in the
environment ends the process there as `kill -9` does, the first time it comes by,
`NAME:3` the third time. tests/e2e/test_crash_points.py has a case for every
point, and `make check` fails for one that has none.
"""

from __future__ import annotations

import enum
import os
import signal
import threading

VARIABLE = "TURNKEEP_CRASH_AT"

_name, _, _times = os.environ.get(VARIABLE, "").partition(":")
_left = int(_times or 1)
_lock = threading.Lock()


class StorePoint(enum.StrEnum):
    """Points of the store."""

    PACK_PUBLISHED = "store.pack-published"
    """A pack is on the disk, and not in the index yet."""
    PACK_INDEXED = "store.pack-indexed"
    """A pack and its rows in the index are on the disk; no snapshot refers to it."""
    RECORD_SAVED = "store.record-saved"
    """A snapshot's record is on the disk; nobody was told."""
    PACKS_DROPPED = "store.packs-dropped"
    """Packs that nobody needs are out of the index, and still on the disk."""
    BLOBS_SAVED = "store.blobs-saved"
    """The sound blobs of a damaged pack lie in a new one; it is still there."""
    PACKS_DELETED = "store.packs-deleted"
    """Packs that nobody needs are gone."""


def reached(point: enum.StrEnum) -> None:
    """End the process if it is to crash here; else do nothing."""
    if point != _name:
        return
    global _left
    with _lock:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
