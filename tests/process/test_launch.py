"""Which pids CRIU is kept from."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from turnkeep.process.launch import ranges


@given(st.sets(st.integers(1, 4_000_000), max_size=60), st.integers(1, 8))
def test_ranges_hold_all_pids_and_are_few(pids: set[int], most: int) -> None:
    found = ranges(pids, most)
    assert len(found) <= most
    assert all(any(first <= pid <= last for first, last in found) for pid in pids)
    assert all(first in pids and last in pids for first, last in found)
    assert all(before[1] < after[0] for before, after in pairwise(found))


def test_ranges_are_narrow_where_there_is_room() -> None:
    assert ranges([9, 7, 8, 20]) == [(7, 9), (20, 20)]
    assert ranges([]) == []
