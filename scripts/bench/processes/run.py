"""The order of things: dumps at each size, restores, forks."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from demo.stage import Failed

from bench import report
from bench.budget import Budget
from bench.figures import Part, figures
from bench.peer import Peer
from bench.processes import engines, measures, peers
from bench.processes.boxes import MIB, Living, Server, Terminal, box
from bench.processes.daemons import Daemon, daemon
from bench.processes.dumps import Dumps
from bench.processes.engines import Engine
from bench.processes.forks import Forks
from bench.processes.restores import Restores
from bench.samples import Samples
from bench.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured, and at most how often."""

    sizes: tuple[int, ...] = (16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB)
    copies: tuple[int, ...] = (1, 8, 32)
    runs: int = 20
    first_dumps: int = 3
    commits: int = 3
    cold_runs: int = 5
    fork_runs: int = 3
    second_engine: bool = True
    """Whether a second Docker Engine is started for what the first one refuses."""


SHORT = Plan(
    sizes=(64 * MIB,),
    copies=(1,),
    runs=8,
    first_dumps=1,
    commits=1,
    cold_runs=1,
    fork_runs=3,
    second_engine=False,
)
QUICK = Plan(
    sizes=(16 * MIB,),
    copies=(1,),
    runs=2,
    first_dumps=1,
    commits=1,
    cold_runs=1,
    fork_runs=1,
    second_engine=False,
)


# So long it takes at least until another engine has its image and was tried out.
_ENGINE_S = 15.0


class _Run:
    def __init__(
        self,
        scene: Scene,
        peer: Peer,
        plan: Plan,
    ) -> None:
        self.samples = Samples()
        self.notes: list[str] = []
        self._engine = scene.engine
        self._name = scene.name
        self._peer = peer
        self._folder = scene.folder
        self._plan = plan
        self._interrupts = scene.interrupts
        self._others: list[Engine] = []
        self._refusal = ""
        self._budget = scene.budget

    def prepare(self, stack: contextlib.ExitStack) -> None:
        """Start the other engines; why one cannot be had becomes a note."""
        wanted = {"podman": engines.podman, "docker checkpoint": engines.experimental_docker}
        refused = {"podman": engines.why_no_podman(), "docker checkpoint": ""}
        if self._budget.left_s() < _ENGINE_S:
            refused["podman"] = "There was no time for it"
        if not self._plan.second_engine:
            refused["docker checkpoint"] = "--full starts a second engine for it"
        for name, enter in wanted.items():
            if not refused[name]:
                report.progress(f"another engine, for {name}")
                folder = self._folder / name.replace(" ", "-")
                try:
                    # An engine that is interrupted while it starts could not be ended.
                    with self._interrupts.held():
                        engine = stack.enter_context(enter(folder))
                    engine.try_out(f"{self._name}-try", Server(MIB))
                    self._others.append(engine)
                except (Failed, OSError, subprocess.SubprocessError) as error:
                    refused[name] = str(error)
        self.notes += [f"{name}: not measured. {why}" for name, why in refused.items() if why]

    def measure(self, serving: Daemon) -> None:
        """Measure one thing after the other, as long as there is time; the first one at any rate."""
        steps = self._steps(serving)
        for position, (name, step) in enumerate(steps.items()):
            if position and self._budget.left_s() < 0:
                self.notes.append(f"{name}: not measured. There was no time for it")
            else:
                step(self._budget.share(1 / (len(steps) - position)))

    def _steps(self, serving: Daemon) -> dict[str, Callable[[Budget], None]]:
        """Return what is measured, each to be called with its share of the time."""
        dumps = {
            f"dump of a {size // MIB:,} MiB server": functools.partial(self._dumps, serving, size)
            for size in self._plan.sizes
        }
        terminal, server = Terminal(), Server(64 * MIB)
        return {
            **dumps,
            "live restore of a server": functools.partial(self._restores, serving, "server_", server),
            "live restore of a terminal": functools.partial(self._restores, serving, "tmux_", terminal),
            "forks": functools.partial(self._forks, serving),
        }

    def _dumps(self, serving: Daemon, size: int, budget: Budget) -> None:
        prefix, plan = measures.dump_prefix(size), self._plan
        with contextlib.ExitStack() as stack:
            memory = stack.enter_context(peers.in_memory())
            sandbox = stack.enter_context(box(self._engine, f"{self._name}-{prefix}"))
            checkpoints = peers.Checkpoints(memory)
            server = Server(size)
            for engine in self._others:
                stack.enter_context(engine.container(f"{self._name}-{prefix}"))
                server.start(engine)
            dumps = Dumps(prefix, self.samples, serving.tk, sandbox, server, checkpoints, self._others)
            for number in range(plan.first_dumps):
                report.progress(f"{size // MIB} MiB, first dump {number + 1} of {plan.first_dumps}")
                dumps.first()
            with self.samples.forgotten():
                dumps.run()
            for number in budget.rounds(plan.runs):
                report.progress(f"{size // MIB} MiB, round {number} of {plan.runs}")
                dumps.run()
            for number in range(plan.commits):
                with self._interrupts.held():
                    dumps.commit(self._peer, f"{number}")
            if not self._refusal:
                self._refusal = peers.docker_checkpoint(sandbox)
                if self._refusal:
                    self.notes.append(f"docker checkpoint, of the engine that is measured: {self._refusal}")

    def _restores(self, serving: Daemon, prefix: str, living: Living, budget: Budget) -> None:
        name, plan = f"{self._name}-{prefix}", self._plan
        with contextlib.ExitStack() as stack:
            sandbox, twin = (
                stack.enter_context(box(self._engine, each)) for each in (f"{name}box", f"{name}twin")
            )
            plain = stack.enter_context(peers.plain_container(self._engine, self._folder, f"{name}runc"))
            others = self._others if isinstance(living, Server) else []
            for engine in others:
                stack.enter_context(engine.container(f"{name}other"))
            ways = Restores(
                prefix, self.samples, serving, living, sandbox, twin, plain, others, self._interrupts
            )
            ways.start()
            with self.samples.forgotten():
                ways.run()
            for number in budget.share(0.7).rounds(plan.runs):
                report.progress(f"{living.name}, restore {number} of {plan.runs}")
                ways.run()
            for number in budget.rounds(plan.cold_runs, 1):
                report.progress(f"{living.name}, cold restore {number} of {plan.cold_runs}")
                ways.run_cold()

    def _forks(self, serving: Daemon, budget: Budget) -> None:
        with contextlib.ExitStack() as stack:
            files, processes = (
                stack.enter_context(box(self._engine, f"{self._name}-fork-{each}"))
                for each in ("files", "processes")
            )
            forks = Forks(self.samples, serving, self._engine, self._name, self._interrupts)
            forks.start(files, processes, Server(64 * MIB))
            for count in self._plan.copies:
                for number in budget.rounds(self._plan.fork_runs):
                    report.progress(f"{count} copies, {number} of {self._plan.fork_runs}")
                    forks.run(count)


def measure(scene: Scene, plan: Plan) -> Part:
    """Measure everything on a daemon of its own, which is gone afterwards."""
    started = time.monotonic()
    peer = Peer(scene.engine, scene.name)
    run = _Run(scene, peer, plan)
    # Copies that an interruption came upon are removed by their names.
    with contextlib.ExitStack() as stack:
        stack.enter_context(peer.removed())
        serving = stack.enter_context(daemon(scene.folder))
        run.prepare(stack)
        run.measure(serving)
        if not serving.clocks.complete:
            run.notes.append(
                "where the time of restores and forks goes: not measured."
                " The clocks do not know this version of the daemon"
            )
    took_s = time.monotonic() - started
    return Part(
        name="processes",
        summary=f"in {took_s:.0f} s; a turn writes to 8 pages of the server's memory, which is random",
        settings={
            "runs": plan.runs,
            "cold_runs": plan.cold_runs,
            "fork_runs": plan.fork_runs,
            "sizes": list(plan.sizes),
            "copies": list(plan.copies),
        },
        sections=measures.sections(list(plan.sizes), list(plan.copies)),
        found=figures(run.samples.values),
        notes=run.notes,
    )
