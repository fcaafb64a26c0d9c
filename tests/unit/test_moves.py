"""Moves between cgroups: who keeps them quick stays where it is, and ends."""

from __future__ import annotations

import threading
from pathlib import Path

from turnkeep.runtime.moves import quick_moves

_LIMIT_S = 30.0


def movers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "quick-moves"]


def test_nothing_is_moved_and_nothing_is_left() -> None:
    before = Path("/proc/self/cgroup").read_text()
    with quick_moves():
        started = movers()
    for thread in started:
        thread.join(_LIMIT_S)
    assert not movers()
    assert Path("/proc/self/cgroup").read_text() == before


def test_an_error_in_the_block_ends_it_as_well() -> None:
    started: list[threading.Thread] = []
    try:
        with quick_moves():
            started += movers()
            raise ValueError
    except ValueError:
        for thread in started:
            thread.join(_LIMIT_S)
    assert not movers()
