"""Dumps: how long a sandbox stands still for one, how long it takes, what it adds to the store."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence

from demo.stage import Failed
from turnkeep.client import Client, Sandbox, TurnInfo
from turnkeep.client.values import ProcessImage
from turnkeep.model import TurnState

from bench.peer import Peer
from bench.processes.boxes import Box, Server
from bench.processes.engines import Engine
from bench.processes.peers import Checkpoints
from bench.samples import Samples

_END = "pkill -KILL -x python3; while pgrep -x python3 >/dev/null; do :; done"


class Dumps:
    """Measures one sandbox whose server holds so much memory, round by round.

    Every measure's name begins with `prefix`.
    """

    def __init__(
        self,
        prefix: str,
        samples: Samples,
        tk: Client,
        box: Box,
        server: Server,
        checkpoints: Checkpoints,
        others: Sequence[Engine],
    ) -> None:
        self._prefix = prefix
        self._samples = samples
        self._tk = tk
        self._box = box
        self._server = server
        self._checkpoints = checkpoints
        self._others = others
        self._sandbox: Sandbox = tk.attach(box.name)
        self._reversed = False

    def first(self) -> None:
        """Measure the first dump of a server: nothing of it is in the store yet."""
        os.sync()
        with self._sandbox.turn(label="first") as turn:
            self._box.run(["sh", "-c", _END])
            self._server.start(self._box)
        info = turn.wait()
        self._add("first_durable", info.timings.durable_ns)
        self._add("first_stored", self._dumped(info).stored_bytes)

    def run(self) -> None:
        """Measure once what Turnkeep does and what each of the others does; they take turns.

        Raises:
            Failed: the processes were not dumped.
        """
        self._reversed = not self._reversed
        steps: list[Callable[[], None]] = [self._turn, self._checkpoint]
        steps += [functools.partial(self._other, engine) for engine in self._others]
        for step in reversed(steps) if self._reversed else steps:
            os.sync()
            step()

    def commit(self, peer: Peer, tag: str) -> None:
        """Measure `docker commit`, which keeps the files alone."""
        os.sync()
        since_ns = time.time_ns()
        with self._samples.timed(f"{self._prefix}commit"):
            peer.commit(self._box.container, tag, pause=True)
        self._add("commit_pause", peer.paused_ns(self._box.container, since_ns))

    def _turn(self) -> None:
        with self._sandbox.turn(label="touch") as turn:
            self._server.touch(self._box)
            self._server.gap_ns(self._box)
        info = turn.wait()
        image = self._dumped(info)
        stopped_ns = sum(tree.stopped_ns for tree in image.trees)
        self._add("gap", self._server.gap_ns(self._box))
        self._add("freeze", info.timings.freeze_ns)
        self._add("freeze_criu", stopped_ns)
        self._add("freeze_rest", info.timings.freeze_ns - stopped_ns)
        self._add("captured", info.timings.captured_ns)
        self._add("durable", info.timings.durable_ns)
        self._add("stored", image.stored_bytes)

    def _checkpoint(self) -> None:
        self._checkpoints.prepare()
        self._server.touch(self._box)
        self._server.gap_ns(self._box)
        with self._samples.timed(f"{self._prefix}runc"):
            self._checkpoints.take(self._box)
        self._add("runc_gap", self._server.gap_ns(self._box))
        stats = self._checkpoints.stats()
        self._add("runc_stopped", (stats.freezing_us + stats.frozen_us) * 1000)
        self._add("runc_memory", (stats.memory_us + stats.writing_us) * 1000)
        self._add("runc_bytes", self._checkpoints.image_bytes())

    def _other(self, engine: Engine) -> None:
        self._server.touch(engine)
        self._server.gap_ns(engine)
        with self._samples.timed(f"{self._prefix}{engine.key}"):
            engine.checkpoint(leave_running=True)
        self._add(f"{engine.key}_gap", self._server.gap_ns(engine))

    def _dumped(self, info: TurnInfo) -> ProcessImage:
        """Return what a turn dumped, and make sure that it did."""
        checkpoint = self._tk.checkpoint(info.checkpoint_id or "")
        image = checkpoint.processes
        if info.state is not TurnState.DURABLE or image is None or image.turn != info.number:
            raise Failed(
                f"turn {info.number} was to dump processes, and is {info.state}: {info.state_reason}"
            )
        if checkpoint.not_captured:
            raise Failed(f"turn {info.number} did not capture all: {'; '.join(checkpoint.not_captured)}")
        return image

    def _add(self, measure: str, value: int) -> None:
        self._samples.add(self._prefix + measure, value)
