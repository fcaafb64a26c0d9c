"""What was measured, as it comes in."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator


class Samples:
    """What was measured, by the name of the measure: nanoseconds or bytes."""

    def __init__(self) -> None:
        self.values: dict[str, list[int]] = defaultdict(list)

    def add(self, measure: str, value: int) -> None:
        """Keep one more value."""
        self.values[measure].append(value)

    @contextlib.contextmanager
    def timed(self, measure: str) -> Iterator[None]:
        """Keep how long the block takes."""
        started = time.perf_counter_ns()
        yield
        self.add(measure, time.perf_counter_ns() - started)

    @contextlib.contextmanager
    def forgotten(self) -> Iterator[None]:
        """Keep nothing of what the block measures: it warms caches up."""
        before = {measure: len(values) for measure, values in self.values.items()}
        yield
        for measure, values in self.values.items():
            del values[before.get(measure, 0) :]
