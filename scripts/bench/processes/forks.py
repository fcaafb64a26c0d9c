"""Forks, beside as many new containers of the same image."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import docker
from demo.stage import Failed
from turnkeep.model import TurnState

from bench.interrupt import Interrupts
from bench.processes.boxes import Box, Server, create, remove
from bench.processes.daemons import Daemon
from bench.samples import Samples

_REMOVING = 8
_FILL = "mkdir /work && for i in $(seq 100); do head -c 2048 /dev/urandom > /work/$i; done"


class Forks:
    """Measures forks of a sandbox with files alone, and of one with a server."""

    def __init__(
        self,
        samples: Samples,
        daemon: Daemon,
        engine: docker.DockerClient,
        name: str,
        interrupts: Interrupts,
    ) -> None:
        self._samples = samples
        self._daemon = daemon
        self._engine = engine
        self._name = name
        self._interrupts = interrupts
        self._reversed = False

    def start(self, files: Box, processes: Box, server: Server) -> None:
        """Take the turns that are forked."""
        self._files, self._processes, self._server = files, processes, server
        self._kept = {}
        server.start(processes)
        for box in (files, processes):
            sandbox = self._daemon.tk.attach(box.name)
            with sandbox.turn(label="base") as turn:
                box.run(["sh", "-c", _FILL])
            info = turn.wait()
            if info.state is not TurnState.DURABLE:
                raise Failed(f"turn {info.number} was to be kept, and is {info.state}")
            self._kept[box.name] = info.number
        self._wanted = server.ask(processes)

    def run(self, count: int) -> None:
        """Measure all ways to so many containers once; they take turns.

        Raises:
            Failed: a copy does not answer as the original would.
        """
        self._reversed = not self._reversed
        steps: list[Callable[[int], None]] = [self._without, self._new, self._with]
        for step in reversed(steps) if self._reversed else steps:
            os.sync()
            step(count)

    def _without(self, count: int) -> None:
        self._fork(self._files, count, f"fork_{count}")

    def _with(self, count: int) -> None:
        made = self._fork(self._processes, count, f"fork_live_{count}", keep=True)
        try:
            for name in made:
                said = self._server.ask(Box(self._engine.containers.get(name)))
                if said != self._wanted:
                    raise Failed(f"{name} answers {said}, and should {self._wanted}")
        finally:
            self._remove(made)

    def _fork(self, box: Box, count: int, measure: str, *, keep: bool = False) -> list[str]:
        names = [f"{self._name}-copy-{number}" for number in range(count)]
        sandbox = self._daemon.tk.sandbox(box.name)
        self._daemon.clocks.read()
        try:
            with self._interrupts.held(), self._samples.timed(measure):
                sandbox.fork(count, ref=self._kept[box.name], names=names)
        except BaseException:
            keep = False
            raise
        finally:
            if not keep:
                self._remove(names)
        self._parts(measure)
        return names

    def _parts(self, measure: str) -> None:
        clocks = self._daemon.clocks.read()
        if not self._daemon.clocks.complete:
            return
        parts = {
            "engine": clocks["create"] + clocks["start"],
            "read": clocks["load"],
            "criu": clocks["criu_restore"] - clocks["criu_check"],
        }
        for name, value in parts.items():
            self._samples.add(f"{measure}_{name}", value)
        whole = self._samples.values[measure][-1]
        self._samples.add(f"{measure}_rest", whole - sum(parts.values()))

    def _new(self, count: int) -> None:
        names = [f"{self._name}-new-{number}" for number in range(count)]
        try:
            with self._interrupts.held(), self._samples.timed(f"new_{count}"):
                for name in names:
                    create(self._engine, name).start()
        finally:
            self._remove(names)

    def _remove(self, names: list[str]) -> None:
        with ThreadPoolExecutor(_REMOVING) as pool:
            list(pool.map(functools.partial(remove, self._engine), names))
