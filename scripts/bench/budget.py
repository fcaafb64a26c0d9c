"""How long a part may take, so that the whole keeps its promise on a slow machine, too."""

from __future__ import annotations

import time
from collections.abc import Iterator

_FOR_EVER_S = 1e9


class Budget:
    """A point in time after which no further run is begun beyond the fewest."""

    def __init__(self, seconds: float = _FOR_EVER_S) -> None:
        self._end = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return how much is left; negative when it is overdrawn."""
        return self._end - time.monotonic()

    def share(self, fraction: float) -> Budget:
        """Return a budget of so much of what is left."""
        return Budget(max(0.0, self.left_s() * fraction))

    def rounds(self, most: int, least: int = 2) -> Iterator[int]:
        """Yield 1, 2, … `most`; ends earlier, but not before `least`, when the time is over.

        A round that would probably not end in time is not begun.
        """
        longest = 0.0
        for number in range(1, most + 1):
            if number > least and self.left_s() < longest:
                return
            began = time.monotonic()
            yield number
            longest = max(longest, time.monotonic() - began)
