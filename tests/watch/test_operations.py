"""Every kind of operation is found, however the reading of its events falls between its steps."""

from __future__ import annotations

import os

import pytest

from . import operations
from .followed import Followed
from .operations import Operation

by_name = pytest.mark.parametrize("operation", operations.ALL, ids=lambda each: each.__name__)


@by_name
def test_looked_for_after_each_step(box: Followed, operation: Operation) -> None:
    for _ in operation(box.root):
        box.look()
    box.look()


@by_name
def test_events_read_after_each_step(box: Followed, operation: Operation) -> None:
    for _ in operation(box.root):
        box.drain()
    box.look()


@by_name
def test_events_read_at_the_end(box: Followed, operation: Operation) -> None:
    with box.undrained():
        for _ in operation(box.root):
            pass
        box.look()


@by_name
def test_events_read_by_the_thread(box: Followed, operation: Operation) -> None:
    for _ in operation(box.root):
        # Anybody else may run, the thread among them.
        os.sched_yield()
    box.look()


@by_name
def test_known_of_no_one_moment(box: Followed, operation: Operation) -> None:
    for number, _ in enumerate(operation(box.root)):
        if number % 2:
            box.glance()
    box.look()


def test_nothing_happened(box: Followed) -> None:
    for _ in range(3):
        assert not box.look().paths
