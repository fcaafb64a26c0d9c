"""Looking at one sandbox: what a checkpoint taken now could not hold, and why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from turnkeep.coordinator.deps import Deps, run
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import CriuFailed, SandboxGone, TurnkeepError
from turnkeep.model import Finding, Mount, Verdict
from turnkeep.process.engine import require_own_proc
from turnkeep.process.prospects import Prospect, prospects
from turnkeep.process.sharing import examine
from turnkeep.process.trees import partition
from turnkeep.runtime.container import Container
from turnkeep.runtime.registration import NAME
from turnkeep.watch.processes import sample, stateful_test

_WAIT_S = 30.0
"""How long to wait for a capture or a restore that is under way."""


async def examine_sandbox(sandbox: SandboxCoordinator) -> list[Finding]:
    """Look at a sandbox. It is frozen for a moment, between captures; the gate waits meanwhile.

    A freeze wakes what sleeps, so that its processes count as having run in the next turn.
    """
    name = sandbox.record.name
    try:
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(_WAIT_S):
                await stack.enter_async_context(sandbox.holding())
            container = await sandbox.open()
            findings = [_container(container, name), *_mounts(container.mounts)]
            if container.running:
                findings += await run(sandbox.deps.pools.capture, _processes, container, sandbox.deps)
    except TimeoutError:
        detail = "not looked at: a capture or a restore is under way"
        return [Finding(what="container", verdict=Verdict.DEGRADED, detail=detail, fix="try again later")]
    except TurnkeepError as error:
        return [Finding(what="container", verdict=Verdict.DEGRADED, detail=error.message, fix=error.hint)]
    return findings


def _container(container: Container, name: str) -> Finding:
    if not container.running:
        detail, fix = "it does not run: there are only its files", f"docker start {name}"
        return Finding(what="container", verdict=Verdict.DEGRADED, detail=detail, fix=fix)
    if container.is_frozen():
        detail, fix = f"{name} is paused: restores are refused", f"docker unpause {name}"
        return Finding(what="container", verdict=Verdict.DEGRADED, detail=detail, fix=fix)
    detail = f"{name} runs, its init is process {container.init_pid}"
    return Finding(what="container", verdict=Verdict.OK, detail=detail)


def _mounts(mounts: tuple[Mount, ...]) -> Iterator[Finding]:
    covered = [each.target for each in mounts if each.covered]
    yield Finding(what="mounts", verdict=Verdict.OK, detail=f"covered: {', '.join(covered)}")
    for each in mounts:
        if not each.covered:
            reason, _, fix = each.reason.partition("; ")
            detail = f"{each.target} ({each.kind.value}) is not covered: {reason}"
            yield Finding(what="mounts", verdict=Verdict.DEGRADED, detail=detail, fix=fix)


def _processes(container: Container, deps: Deps) -> list[Finding]:
    """Look at the processes inside a freeze of their own."""
    config = deps.config
    is_stateful = stateful_test(
        container.init_pid, container.command, config.classify.reproducible, container.health_check
    )
    try:
        with container.frozen(config.limits.freeze_budget_s) as frozen:
            if frozen is None:
                raise SandboxGone("its container has stopped")
            now = sample(container.pids(), container.usage_ns)
            stateful = {each.pid for each in now.processes.values() if is_stateful(each)}
            forest = partition(container.pids(), container.init_pid, lambda pid: pid not in stateful)
            found = prospects(forest, examine(forest.trees, container.init_pid), config.process)
            if found:
                require_own_proc(container.init_pid)
            frozen.check()
    except OverflowError as error:
        return [_finding(Verdict.DEGRADED, str(error))]
    except CriuFailed as error:
        names = "; ".join(each.processes for each in found)
        return [_finding(Verdict.DEGRADED, f"{names}: not captured: {error.message}", error.hint)]
    if not found:
        return [_finding(Verdict.OK, "none holds state")]
    if not deps.processes.available:
        names = "; ".join(each.processes for each in found)
        return [_finding(Verdict.DEGRADED, f"{names}: {deps.processes.degraded}")]
    own_runtime = container.inspected["HostConfig"].get("Runtime") == NAME
    return [_prospect(each, own_runtime=own_runtime) for each in found]


def _prospect(prospect: Prospect, *, own_runtime: bool) -> Finding:
    why, notes = "; ".join(prospect.why), "".join(f"; {note}" for note in prospect.notes)
    if not prospect.engine:
        return _finding(
            Verdict.DEGRADED, f"{prospect.processes}: not captured: {why}", "; ".join(prospect.hints)
        )
    detail = f"{prospect.processes}: captured {prospect.engine}{notes}"
    if not prospect.whole:
        return _finding(Verdict.OK, detail)
    detail = f"{prospect.processes}: captured with {prospect.engine}, for {why}{notes}"
    if own_runtime:
        return _finding(Verdict.OK, detail)
    fix = f"restore with --replace, or start the container with --runtime {NAME} in the first place"
    return _finding(Verdict.DEGRADED, detail, fix)


def _finding(verdict: Verdict, detail: str, fix: str = "") -> Finding:
    return Finding(what="processes", verdict=verdict, detail=detail, fix=fix)
