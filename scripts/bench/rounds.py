"""One round: a turn, its peer, a restore, its peer. Every figure of a table row is from here."""

from __future__ import annotations

import os
import time
from pathlib import Path

import docker
from demo.stage import Failed
from docker.models.containers import Container
from turnkeep.client import Sandbox, TurnInfo
from turnkeep.client.values import RestoreResult
from turnkeep.model import TurnState

from bench.interrupt import Interrupts
from bench.peer import Peer, layer_bytes
from bench.samples import Samples
from bench.upper import Upper

CHANGED = 5


class Rounds:
    """Measures one sandbox, round by round."""

    def __init__(
        self,
        engine: docker.DockerClient,
        container: Container,
        peer: Peer,
        state: Path,
        files: int,
        interrupts: Interrupts,
    ) -> None:
        self.samples = Samples()
        self._engine = engine
        self._container = container
        self._upper = Upper(container, files)
        self._peer = peer
        self._interrupts = interrupts
        self._pause_first = False
        self._floor_file = state / "bench-floor"
        self._upper.fill()

    def start(self, box: Sandbox) -> None:
        """Take the turn that every restore goes back to, and start the peer's sandbox in that state."""
        self._box = box
        self._base = self._changing_turn("base").number
        self._base_content = self._upper.content(CHANGED)
        with self._interrupts.held():
            image = self._peer.commit(self._container, "base", pause=True)
        self._replaced = self._peer.run(image.id or "")

    def run(self, tag: str) -> None:
        """Measure everything once. Turnkeep and its peer take turns.

        Raises:
            Failed: something else happened than what was to be measured.
            TurnkeepError, DockerException: something failed.
        """
        # Every restore goes back to the first turn, so that only this round's
        # changes, in the same files, lie between.
        os.sync()
        self._floor()
        self._settle()
        self._turn()
        self._stateless_turn()
        self._pause_first = not self._pause_first
        self._commit(tag, pause=self._pause_first)
        self._settle()
        self._restores()
        self._replace(tag)
        # The engine keeps equal layers once, so that one state committed twice is
        # not the same work twice: each way of committing gets a state of its own.
        self._upper.edit(CHANGED)
        self._commit(f"{tag}-second", pause=not self._pause_first)

    def forget(self, tag: str) -> None:
        """Remove the images of a round that no container is made of any more."""
        for name in (tag, f"{tag}-second"):
            self._peer.forget(name)

    # -- Turnkeep ----------------------------------------------------------

    def _turn(self) -> None:
        timed = self.samples.timed
        turn = self._box.turn(label="bench")
        with timed("begin"):
            turn.begin()
        self._upper.edit(CHANGED)
        with timed("durable_seen"):
            with timed("end"):
                turn.end()
            info = turn.wait()
        _expect(info, TurnState.DURABLE, CHANGED)
        self.samples.add("freeze", info.timings.freeze_ns)
        self.samples.add("captured", info.timings.captured_ns)
        self.samples.add("durable", info.timings.durable_ns)
        self.samples.add("stored", info.stored_bytes)

    def _stateless_turn(self) -> None:
        info = self._idle_turn()
        _expect(info, TurnState.SKIPPED, 0)
        self.samples.add("inspect", info.timings.inspect_ns)

    def _restores(self) -> None:
        self._restore("restore")
        self._upper.edit(CHANGED)
        self._restore("restore_saving")
        self._upper.edit(CHANGED)
        self._restore("restore_only", skip_safety_checkpoint=True)

    def _restore(self, measure: str, *, skip_safety_checkpoint: bool = False) -> None:
        with self.samples.timed(measure):
            result = self._box.restore(
                turn=self._base, mode="live", skip_safety_checkpoint=skip_safety_checkpoint
            )
        self.samples.add(f"{measure}_freeze", result.freeze_ns)
        self._expect_base(result)

    def _expect_base(self, result: RestoreResult) -> None:
        if result.changed_paths != CHANGED:
            raise Failed(f"the restore was to bring {CHANGED} files back and wrote {result.changed_paths}")
        if self._upper.content(CHANGED) != self._base_content:
            raise Failed(f"after the restore to turn {self._base} the files have other content than then")

    def _settle(self) -> None:
        """Let the daemon see that the peer's pause is over, and the disk what the peer left to write.

        Neither side then pays for the other.
        """
        os.sync()
        self._idle_turn()

    def _changing_turn(self, label: str) -> TurnInfo:
        with self._box.turn(label=label) as turn:
            self._upper.edit(CHANGED)
        return turn.wait()

    def _idle_turn(self) -> TurnInfo:
        with self._box.turn(label="idle") as turn:
            self._upper.idle()
        return turn.wait()

    # -- the peer ----------------------------------------------------------

    def _commit(self, tag: str, *, pause: bool) -> None:
        os.sync()
        since_ns = time.time_ns()
        with self._interrupts.held(), self.samples.timed("commit" if pause else "commit_running"):
            image = self._peer.commit(self._container, tag, pause=pause)
        if pause:
            self.samples.add("commit_pause", self._peer.paused_ns(self._container, since_ns))
            self.samples.add("commit_layer", layer_bytes(image))

    def _replace(self, tag: str) -> None:
        Upper(self._replaced, self._upper.files).edit(CHANGED)
        os.sync()
        with self._interrupts.held(), self.samples.timed("replace"):
            self._replaced.remove(force=True)
            self._replaced = self._peer.run(f"{self._peer.name}:{tag}")

    # -- the floor ---------------------------------------------------------

    def _floor(self) -> None:
        """Measure what nobody can do without: reading the files, one write that is durable."""
        with self.samples.timed("floor_read"):
            self._upper.read(CHANGED)
        with self._floor_file.open("ab", buffering=0) as file, self.samples.timed("floor_fsync"):
            file.write(os.urandom(4096))
            os.fsync(file.fileno())  # noqa: TID251 - measured, nothing depends on it


def _expect(info: TurnInfo, state: TurnState, changed: int) -> None:
    if (info.state, info.changed_files) != (state, changed):
        raise Failed(
            f"turn {info.number} was to be {state} with {changed} changed files,"
            f" and is {info.state} with {info.changed_files}"
        )
