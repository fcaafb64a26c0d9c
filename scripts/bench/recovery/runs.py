"""Runs that are played to their end: with nothing wrong, or broken once and restored."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.stage import Failed
from docker.errors import DockerException
from turnkeep.client import Sandbox, Turn
from turnkeep.client.values import RestoreResult, TurnInfo
from turnkeep.errors import TurnkeepError
from turnkeep.model import Origin, TurnState

from bench.recovery.daemons import Daemon, daemon
from bench.recovery.engines import Engine, OwnEngine
from bench.recovery.living import living
from bench.recovery.looks import Look, look
from bench.recovery.plans import Case, Fault, Moment
from bench.replay import checkouts, commands
from bench.replay.commands import Outcome
from bench.replay.traces import Step, Trace

_SETTLED_S = 120.0
_LOOKED_AT = 3
"""So many turns before the fault are looked at: one of them is the last that is durable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A run to which nothing happened."""

    start: Look
    outcomes: Sequence[Outcome]
    end: Look


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A run that was broken and restored. `error` says what could not be done, if anything."""

    case: Case
    turn: int = 0
    """The last durable one."""
    before: Look | None = None
    """Taken at the end of that turn, before the fault."""
    after: Look | None = None
    """Taken when the restore had answered."""
    outcomes: Sequence[Outcome] = ()
    """Of the turns after that one."""
    end: Look | None = None
    restored: RestoreResult | None = None
    restore_ns: int = 0
    error: str = ""
    log: Sequence[str] = ()


@dataclass(slots=True, kw_only=True)
class _Scene:
    """What a case is played on."""

    case: Case
    engine: Engine
    name: str
    limit_s: float
    waits: Sequence[float]
    serving: Daemon
    box: Sandbox
    looks: dict[int, Look] = field(default_factory=dict)

    def step(self, number: int) -> Step:
        return self.case.trace.steps[number - 1]

    def run(self, step: Step) -> Outcome:
        return commands.run(self.name, step, self.limit_s, self.engine.environment)

    def look(self) -> Look:
        return look(self.engine.client, self.name)


def whole(engine: Engine, name: str, checkout: Path, trace: Trace, limit_s: float) -> Whole:
    """Play a run without Turnkeep and without waits."""
    with checkouts.sandbox(engine.client, name, checkout):
        start = look(engine.client, name)
        outcomes = [commands.run(name, step, limit_s, engine.environment) for step in trace.steps]
        return Whole(start=start, outcomes=outcomes, end=look(engine.client, name))


def broken(
    case: Case,
    engine: Engine,
    name: str,
    checkout: Path,
    folder: Path,
    *,
    limit_s: float,
    waits: Sequence[float],
) -> Broken:
    """Play a run with Turnkeep, break it, restore it, and play the rest.

    Whatever goes wrong from the fault on is in the answer, not raised.
    """
    with (
        checkouts.sandbox(engine.client, name, checkout),
        daemon(folder, engine.environment) as serving,
    ):
        scene = _Scene(
            case=case,
            engine=engine,
            name=name,
            limit_s=limit_s,
            waits=waits,
            serving=serving,
            box=serving.tk.attach(name),
        )
        try:
            return _play(scene)
        except (TurnkeepError, DockerException, Failed, OSError) as error:
            said = f"{type(error).__name__}: {error}"
            return Broken(case=case, error=said, log=[*serving.said(), *_alive(scene)])


def _alive(scene: _Scene) -> list[str]:
    """Return what is in the sandbox after a recovery that failed, dead processes as well."""
    try:
        pid = scene.engine.client.containers.get(scene.name).attrs["State"]["Pid"]
        return [str(each) for each in sorted(living(pid, and_dead=True))]
    except (DockerException, OSError) as error:
        return [f"nothing is to be seen of the sandbox: {error}"]


def _play(scene: _Scene) -> Broken:
    case = scene.case
    scene.looks[0] = scene.look()
    for number in range(1, case.at):
        _turn(scene, number)
    tool = _until_the_fault(scene)
    _break(scene)
    turn = _last_durable(scene)
    started = time.monotonic_ns()
    restored = _restore(scene, turn)
    restore_ns = time.monotonic_ns() - started
    after = scene.look()
    # The client of a command that was cut off by the fault, or ended by the restore.
    tool.join()
    outcomes = []
    for number in range(turn + 1, len(case.trace.steps) + 1):
        outcomes.append(_turn(scene, number, looking=False))
    with contextlib.suppress(TurnkeepError):
        scene.box.wait(timeout_s=_SETTLED_S)
    return Broken(
        case=case,
        turn=turn,
        before=scene.looks.get(turn),
        after=after,
        outcomes=outcomes,
        end=scene.look(),
        restored=restored,
        restore_ns=restore_ns,
    )


def _turn(scene: _Scene, number: int, *, looking: bool = True) -> Outcome:
    time.sleep(scene.waits[number - 1])
    with scene.box.turn(label=str(number)):
        outcome = scene.run(scene.step(number))
        if looking and number > scene.case.at - _LOOKED_AT:
            scene.looks[number] = scene.look()
    return outcome


def _until_the_fault(scene: _Scene) -> threading.Thread:
    """Play the turn that is broken up to that moment; return the thread of a command that still runs."""
    number = scene.case.at
    time.sleep(scene.waits[number - 1])
    turn: Turn = scene.box.turn(label=str(number))
    turn.begin()
    tool = threading.Thread(target=scene.run, args=(scene.step(number),))
    tool.start()
    if scene.case.moment is Moment.END:
        tool.join()
        scene.looks[number] = scene.look()
        turn.end()
    time.sleep(scene.case.delay_s)
    return tool


def _break(scene: _Scene) -> None:
    breakers: dict[Fault, Callable[[_Scene], None]] = {
        Fault.KILL: lambda it: it.engine.client.containers.get(it.name).kill(),
        Fault.REMOVE: lambda it: it.engine.client.containers.get(it.name).remove(force=True, v=True),
        Fault.DAEMON: _break_daemon,
        Fault.ENGINE: _break_engine,
    }
    breakers[scene.case.fault](scene)


def _break_daemon(scene: _Scene) -> None:
    scene.serving.kill()
    scene.serving.start()


def _break_engine(scene: _Scene) -> None:
    if not isinstance(scene.engine, OwnEngine):
        raise Failed("only an engine of the benchmark's own may be killed")
    scene.engine.kill()
    scene.engine.start()


def _last_durable(scene: _Scene) -> int:
    """Return the last turn that Turnkeep says is durable, after those on their way have settled."""
    for number in sorted(scene.looks):
        if number:
            # It may have failed, or is still open.
            with contextlib.suppress(TurnkeepError):
                scene.box.wait(number, timeout_s=_SETTLED_S if number < scene.case.at else _settled_s(scene))
    return max((turn.number for turn in scene.box.turns() if _is_kept(turn)), default=0)


def _settled_s(scene: _Scene) -> float:
    """Return how long to wait for the turn of the fault: not at all if it cannot end any more."""
    return _SETTLED_S if scene.case.moment is Moment.END else 0.1


def _is_kept(turn: TurnInfo) -> bool:
    return turn.state in (TurnState.DURABLE, TurnState.SKIPPED)


def _restore(scene: _Scene, turn: int) -> RestoreResult:
    new_name = scene.name if scene.case.fault is Fault.REMOVE else None
    if turn:
        return scene.box.restore(turn=turn, new_name=new_name)
    first = next(each for each in scene.box.checkpoints() if each.origin == Origin.ATTACH)
    return scene.box.restore(checkpoint=first.id, new_name=new_name)
