"""Restores of a container that runs on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from turnkeep.checkpointer.view import Baseline
from turnkeep.coordinator.deps import run
from turnkeep.coordinator.loading import let_go, load
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import PidsTaken
from turnkeep.model import Checkpoint
from turnkeep.restorer.live import restore_live, stop_strays, wait_until_gone
from turnkeep.restorer.pids import dead_in_the_way
from turnkeep.restorer.plan import Progress, Restored, no_progress
from turnkeep.restorer.processes import Ready, bring_back, reap_dead
from turnkeep.runtime.container import Container
from turnkeep.watch.processes import Process, stateful_test

_END_LIMIT_S = 10.0
_POLL_S = 0.001
RESTORE_FREEZE_S = 600.0
"""A restore's freeze is held by the daemon alone; this bounds only how long freezing may take to begin."""


async def live(
    sandbox: SandboxCoordinator,
    container: Container,
    checkpoint: Checkpoint,
    ready: Ready,
    *,
    full: bool,
    progress: Progress,
    exact: bool = False,
) -> Restored:
    """Restore a running container; the caller holds the sandbox (see `restore_live`)."""

    def and_then() -> list[str]:
        return bring_back(ready, container, sandbox.deps.processes)

    def work() -> tuple[Restored, Baseline]:
        restored, baseline = restore_live(
            sandbox.deps.repository,
            sandbox.deps.checkpointer,
            container,
            checkpoint,
            sandbox.baseline,
            full=full,
            budget_s=RESTORE_FREEZE_S,
            progress=progress,
            and_then=and_then if ready.trees else None,
            exact=exact,
        )
        baseline.fold()
        return restored, baseline

    restored, sandbox.baseline = await run(sandbox.deps.pools.long, work)
    return restored


async def live_again(sandbox: SandboxCoordinator, container: Container, checkpoint: Checkpoint) -> Restored:
    """Repeat a live restore that was cut off anywhere: what it brought back is killed first."""
    ready = await load(sandbox, checkpoint)
    try:
        stopped = await run(
            sandbox.deps.pools.capture,
            _stop_strays,
            container,
            ready,
            stateful(sandbox, container),
            sandbox.deps.config.limits.freeze_budget_s,
        )
        restored = await live(sandbox, container, checkpoint, ready, full=True, progress=no_progress)
    finally:
        let_go(sandbox.deps, ready)
    return replace(restored, stopped=tuple(map(str, stopped)))


def stateful(sandbox: SandboxCoordinator, container: Container) -> Callable[[Process], bool]:
    return stateful_test(
        container.init_pid,
        container.command,
        sandbox.deps.config.classify.reproducible,
        container.health_check,
    )


def processes_again(sandbox: SandboxCoordinator, container: Container, ready: Ready) -> None:
    """Bring processes back whose files are right already. Does nothing if some still run."""
    with container.frozen(RESTORE_FREEZE_S, hold=True):
        bring_back(ready, container, sandbox.deps.processes)


def see_them_gone(container: Container, killed: tuple[Process, ...], ready: Ready) -> None:
    """Wait for the end of processes that were killed, and until their pids and those of other dead are free.

    Raises:
        PidsTaken: nobody waits for a dead process whose pid is needed.
    """
    wait_until_gone(container, killed)
    if killed:
        reap_dead(container)
    deadline = time.monotonic() + _END_LIMIT_S
    while dead := dead_in_the_way(ready, container):
        if time.monotonic() > deadline:
            raise PidsTaken(
                f"captured processes need process ids of dead ones that nobody waits for: {dead}",
                object=f"container {container.name}",
                hint="restore with --mode cold",
            )
        reap_dead(container)
        time.sleep(_POLL_S)


def _stop_strays(
    container: Container, ready: Ready, is_stateful: Callable[[Process], bool], budget_s: float
) -> tuple[Process, ...]:
    with container.frozen(budget_s):
        killed = stop_strays(container, is_stateful)
    see_them_gone(container, killed, ready)
    return killed
