"""One sandbox, whose turns are kept in every way there is, in turns."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from demo.stage import Failed
from turnkeep.client import Client, Sandbox
from turnkeep.model import TurnState

from bench import disk
from bench.peers import rows
from bench.peers.ways import Way
from bench.samples import Samples
from bench.upper import Upper

CHANGED = 5
_FIRST_S = 600.0


class Rounds:
    """Measures Turnkeep and the other ways on one sandbox, round by round."""

    def __init__(self, samples: Samples, tk: Client, upper: Upper, ways: Sequence[Way], state: Path) -> None:
        self._samples = samples
        self._upper = upper
        self._ways = list(ways)
        self._state = state
        self._box: Sandbox = tk.attach(upper.container.name or "")
        self._turnkeep_first = False

    def start(self) -> None:
        """Have every way keep the state that is gone back to."""
        with self._box.turn(label="base", gate_timeout_s=_FIRST_S) as turn:
            self._upper.edit(CHANGED)
        self._base = turn.wait(timeout_s=_FIRST_S).number
        self._content = self._upper.content(CHANGED)
        for way in self._ways:
            way.start()

    def run(self, name: str) -> None:
        """Measure every way once. All keep the same state; they take turns in beginning.

        Raises:
            Failed: a way did not bring back what was there.
        """
        self._turnkeep_first = not self._turnkeep_first
        if self._turnkeep_first:
            self._turnkeep()
        self._upper.edit(CHANGED)
        changed = self._upper.paths(CHANGED)
        for way in self._ways:
            way.take_over(changed)
        for way in self._ways:
            self._way(way, name)
        if not self._turnkeep_first:
            self._turnkeep()
        # The next round begins with another one.
        self._ways.append(self._ways.pop(0))

    def _turnkeep(self) -> None:
        key, samples = self._key, self._samples
        self._settle()
        os.sync()
        before = disk.allocated_bytes(self._state)
        turn = self._box.turn(label="bench")
        turn.begin()
        self._upper.edit(CHANGED)
        with samples.timed(key("keep", "turnkeep")):
            turn.end()
            info = turn.wait(timeout_s=_FIRST_S)
        if info.state is not TurnState.DURABLE:
            raise Failed(f"turn {info.number} was to be kept, and is {info.state}: {info.state_reason}")
        samples.add(key("stored", "turnkeep"), info.stored_bytes)
        samples.add(key("grown", "turnkeep"), max(0, disk.allocated_bytes(self._state) - before))
        os.sync()
        with samples.timed(key("back", "turnkeep")):
            self._box.restore(turn=self._base, mode="live")
        self._expect(self._upper.root, "Turnkeep")

    def _way(self, way: Way, name: str) -> None:
        key, samples = self._key, self._samples
        os.sync()
        with samples.timed(key("keep", way.key)):
            way.keep(name)
        samples.add(key("stored", way.key), way.stored_bytes())
        way.before_back()
        os.sync()
        with samples.timed(key("back", way.key)):
            way.back(name)
        self._expect(way.place(), way.title)

    def _settle(self) -> None:
        """Let the daemon see what was done outside of a turn, and that a peer's pause is over."""
        with self._box.turn(label="settle", gate_timeout_s=_FIRST_S) as turn:
            pass
        turn.wait(timeout_s=_FIRST_S)

    def _expect(self, place: Path, title: str) -> None:
        paths = (place / path.relative_to(self._upper.root) for path in self._upper.paths(CHANGED))
        found = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        if found != self._content:
            raise Failed(f"{title} did not bring the first state back")

    def _key(self, what: str, way: str) -> str:
        return rows.key(what, way, self._upper.files)
