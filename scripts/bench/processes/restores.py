"""Live restores of what lives in a sandbox, beside a stop and start of the same container."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence

from demo.stage import Failed
from turnkeep.client import Sandbox
from turnkeep.model import TurnState

from bench.interrupt import Interrupts
from bench.processes.boxes import Box, Living
from bench.processes.daemons import Daemon
from bench.processes.engines import Engine
from bench.processes.peers import PlainContainer
from bench.samples import Samples


class Restores:
    """Measures the ways back to one state of one program, round by round.

    `twin` is a container like the sandbox that Turnkeep does not know, `plain` one
    of runc's own. `others` are engines with a container of their own, in which a server
    that counts can be started. Every measure's name begins with `prefix`.
    """

    def __init__(
        self,
        prefix: str,
        samples: Samples,
        daemon: Daemon,
        living: Living,
        box: Box,
        twin: Box,
        plain: PlainContainer,
        others: Sequence[Engine],
        interrupts: Interrupts,
    ) -> None:
        self._prefix = prefix
        self._samples = samples
        self._daemon = daemon
        self._living = living
        self._box = box
        self._twin = twin
        self._plain = plain
        self._others = others
        self._interrupts = interrupts
        self._reversed = False

    def start(self) -> None:
        """Start the program everywhere, and take the turn that every restore goes back to."""
        sandbox = self._daemon.tk.attach(self._box.name)
        with sandbox.turn(label="base") as turn:
            self._living.start(self._box)
        info = turn.wait()
        if info.state is not TurnState.DURABLE:
            raise Failed(f"turn {info.number} was to be kept, and is {info.state}")
        self._kept = info.number
        self._wanted = self._living.ask(self._box)
        self._living.start(self._twin)
        self._plain.start()
        self._living.start(self._plain)
        self._plain.dump()
        for engine in self._others:
            self._living.start(engine)

    def run(self) -> None:
        """Measure each way once; they take turns.

        Raises:
            Failed: what came back is not what was there.
        """
        self._reversed = not self._reversed
        steps: list[Callable[[], None]] = [self._saving, self._restart, self._not_saving, self._runc]
        steps += [functools.partial(self._other, engine) for engine in self._others]
        for step in reversed(steps) if self._reversed else steps:
            os.sync()
            step()

    def run_cold(self) -> None:
        """Measure both restores, each after a start of the daemon."""
        for measure, skip in (("cold_saving", False), ("cold", True)):
            self._daemon.restart_cold()
            self._restore(measure, skip_safety_checkpoint=skip)

    def _saving(self) -> None:
        self._restore("restore_saving", skip_safety_checkpoint=False)

    def _not_saving(self) -> None:
        clocks = self._restore("restore", skip_safety_checkpoint=True)
        if not self._daemon.clocks.complete:
            return
        self._add("restore_read", clocks["read"])
        self._add("restore_vet", clocks["load"] - clocks["read"])
        self._add("restore_kill", clocks["kill"] + clocks["gone"])
        self._add("restore_criu", clocks["criu_restore"] - clocks["criu_check"])
        self._add("restore_back", clocks["back"] - clocks["criu_restore"] + clocks["criu_check"])
        parts = clocks["load"] + clocks["kill"] + clocks["gone"] + clocks["back"]
        self._add("restore_rest", self._samples.values[f"{self._prefix}restore"][-1] - parts)

    def _restore(self, measure: str, *, skip_safety_checkpoint: bool) -> Mapping[str, int]:
        self._living.change(self._box)
        sandbox: Sandbox = self._daemon.tk.sandbox(self._box.name)
        self._daemon.clocks.read()
        started = time.perf_counter_ns()
        sandbox.restore(turn=self._kept, mode="live", skip_safety_checkpoint=skip_safety_checkpoint)
        answered = time.perf_counter_ns()
        said = self._living.ask(self._box)
        asked = time.perf_counter_ns()
        self._add(measure, answered - started)
        self._add(f"{measure}_asked", asked - started)
        self._expect(said, f"the restore to turn {self._kept}")
        return self._daemon.clocks.read()

    def _restart(self) -> None:
        self._living.change(self._twin)
        started = time.perf_counter_ns()
        with self._interrupts.held():
            self._twin.container.stop(timeout=0)
            self._twin.container.start()
        taken = time.perf_counter_ns() - started
        self._add("restart", taken)
        self._twin.look()
        started = time.perf_counter_ns()
        self._living.start(self._twin)
        self._living.ask(self._twin)
        self._add("restart_asked", taken + time.perf_counter_ns() - started)

    def _runc(self) -> None:
        self._plain.remove()
        with self._samples.timed(f"{self._prefix}runc"):
            self._plain.restore()
        self._plain.look()
        self._expect(self._living.ask(self._plain), "runc restore")

    def _other(self, engine: Engine) -> None:
        said = self._living.ask(engine)
        engine.checkpoint(leave_running=False)
        with self._samples.timed(f"{self._prefix}{engine.key}"):
            engine.restore()
        engine.look()
        now = self._living.ask(engine)
        # A server counts: one that was started anew would begin again.
        if int(now) != int(said) + 1:
            raise Failed(f"after {engine.title} restore the {self._living.name} answers {now} after {said}")

    def _expect(self, said: str, what: str) -> None:
        if said != self._wanted:
            raise Failed(f"after {what} the {self._living.name} answers {said}, and should {self._wanted}")

    def _add(self, measure: str, value: int) -> None:
        self._samples.add(self._prefix + measure, value)
