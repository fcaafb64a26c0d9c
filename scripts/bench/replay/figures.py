"""What the replay comes to: figures of one run, and of many together. Nothing is measured here."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from turnkeep.model import Origin, TurnState

from bench.replay.arms import Arm, Daemon
from bench.replay.traces import Trace

MISSING = "none"
"""The class of a turn that has none: it could not be begun, or failed before it was decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One run, played without Turnkeep and with it."""

    trace: Trace
    off: Arm
    on: Arm
    committed: int
    """The layer of one real `docker commit` after the last turn without Turnkeep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Many values in short, interpolated between neighbours."""

    p50: float
    p95: float
    p99: float
    most: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run, or several in sum. Times in nanoseconds, sizes in bytes."""

    name: str
    classes: Mapping[str, int]
    turns: int
    failed: int
    errors: int
    cut_off: int
    exit_known: int
    exit_agrees: int
    exit_same: int
    """Turns with the same exit code with Turnkeep and without."""
    stored: int
    stored_first: int
    """The checkpoint at the attach, which holds the whole checkout."""
    stored_processes: int
    """Images of processes, which the others do not keep at all."""
    stored_other: int
    """Journal and index."""
    snapshots: int
    layers: int
    layer_last: int
    committed: int
    exposed: Sequence[int]
    attach: int
    on: int
    off: int
    waits: int
    cpu_s: float
    memory: int
    inside: Mapping[str, Sequence[int]]
    """What the daemon says of its turns: gate, inspect, freeze, captured, durable."""

    @property
    def share(self) -> float:
        """How much of the run the agent waited for Turnkeep, the attach included."""
        return (sum(self.exposed) + self.attach) / self.on

    @property
    def slower(self) -> float:
        """How many times as long the run took with Turnkeep."""
        return self.on / self.off

    @property
    def of_snapshots(self) -> float:
        """What was stored, of what a full snapshot after each turn would have been."""
        return self.stored / self.snapshots

    @property
    def of_layers(self) -> float:
        """The same of `docker commit` after each turn."""
        return self.stored / self.layers


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of one value or more."""
    if len(values) == 1:
        only = float(values[0])
        return Spread(p50=only, p95=only, p99=only, most=only, count=1)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return Spread(p50=cuts[49], p95=cuts[94], p99=cuts[98], most=float(max(values)), count=len(values))


def result(pair: Pair) -> Result:
    """Return the figures of one run."""
    daemon = _daemon(pair)
    sizes = [turn.sizes for turn in pair.off.turns if turn.sizes is not None]
    played = list(zip(pair.off.turns, pair.on.turns, strict=True))
    known = [on for _, on in played if on.step.exit is not None and on.outcome.exit is not None]
    return Result(
        name=pair.trace.name,
        classes=_classes(daemon, len(played)),
        turns=len(played),
        failed=sum(turn.state is TurnState.FAILED for turn in daemon.turns),
        errors=len(daemon.errors),
        cut_off=sum(on.outcome.exit is None for _, on in played),
        exit_known=len(known),
        exit_agrees=sum(on.outcome.exit == on.step.exit for on in known),
        exit_same=sum(off.outcome.exit == on.outcome.exit for off, on in played),
        stored=daemon.stored_bytes,
        stored_first=sum(each.stored_bytes for each in daemon.checkpoints if each.origin == Origin.ATTACH),
        stored_processes=_process_bytes(daemon),
        stored_other=daemon.other_bytes,
        snapshots=sum(each.snapshot for each in sizes),
        layers=sum(each.layer for each in sizes),
        layer_last=sizes[-1].layer if sizes else 0,
        committed=pair.committed,
        exposed=[on.exposed_ns for _, on in played],
        attach=pair.on.attach_ns,
        on=pair.on.total_ns,
        off=pair.off.total_ns,
        waits=sum(on.wait_ns for _, on in played),
        cpu_s=daemon.cpu_s,
        memory=daemon.memory_bytes,
        inside=_inside(daemon),
    )


def together(name: str, results: Sequence[Result]) -> Result:
    """Return the figures of several runs: sums, and the turns of all; of the memory the most."""

    def total(field: str) -> int:
        return sum(getattr(each, field) for each in results)

    keys = {key: None for each in results for key in each.inside}
    return Result(
        name=name,
        classes=dict(sum((Counter(each.classes) for each in results), Counter[str]())),
        exposed=[value for each in results for value in each.exposed],
        cpu_s=sum(each.cpu_s for each in results),
        memory=max(each.memory for each in results),
        inside={key: [value for each in results for value in each.inside.get(key, ())] for key in keys},
        **{field: total(field) for field in _SUMS},
    )


_SUMS = (
    *("turns", "failed", "errors", "cut_off", "exit_known", "exit_agrees", "exit_same"),
    *("stored", "stored_first", "stored_processes", "stored_other"),
    *("snapshots", "layers", "layer_last", "committed", "attach"),
    *("on", "off", "waits"),
)


def _daemon(pair: Pair) -> Daemon:
    if pair.on.daemon is None:
        raise ValueError(f"{pair.trace.name} was played without Turnkeep twice")
    return pair.on.daemon


def _classes(daemon: Daemon, turns: int) -> Mapping[str, int]:
    found = Counter(str(turn.decision.turn_class) for turn in daemon.turns if turn.decision is not None)
    if turns > found.total():
        found[MISSING] = turns - found.total()
    return dict(found)


def _process_bytes(daemon: Daemon) -> int:
    """Return what the dumps stored, each once: later checkpoints refer to the same images."""
    dumps = {each.processes.turn: each.processes for each in daemon.checkpoints if each.processes is not None}
    return sum(each.stored_bytes for each in dumps.values())


def _inside(daemon: Daemon) -> Mapping[str, Sequence[int]]:
    """Return what the turns' own clocks say; a turn in which something did not happen does not count."""
    timings = [turn.timings for turn in daemon.turns]
    return {
        "gate": [each.gate_ns for each in timings],
        "inspect": [each.inspect_ns for each in timings if each.inspect_ns],
        "freeze": [each.freeze_ns for each in timings if each.freeze_ns],
        "captured": [each.captured_ns for each in timings if each.captured_ns],
        "durable": [each.durable_ns for each in timings if each.durable_ns],
    }
