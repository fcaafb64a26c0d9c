"""Ctrl-C between two steps, never inside one that the engine would finish without us."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns the first of the stopping signals into a KeyboardInterrupt, when that is safe."""

    def __init__(self) -> None:
        self._held = False
        self._pending = False
        for number in _SIGNALS:
            signal.signal(number, self._arrived)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put a signal off to the end of the block.

        The engine goes on with a commit whose caller has hung up: its image
        would appear after the cleaning up.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """From now on nothing interrupts: this is the cleaning up."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.ignore()
        if self._held:
            self._pending = True
        else:
            raise KeyboardInterrupt
