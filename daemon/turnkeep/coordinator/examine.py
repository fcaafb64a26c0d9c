"""Looking whether this host, and a sandbox, can be captured whole: `turnkeep doctor`.

Nothing here is needed for a capture. What is looked at is looked at now, except
the self-test, whose result is kept until the daemon ends: a host changes rarely,
and the test takes as long as some hundred captures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from turnkeep.coordinator.deps import Deps, run
from turnkeep.coordinator.examine_sandbox import examine_sandbox
from turnkeep.coordinator.registry import Registry
from turnkeep.errors import TurnkeepError
from turnkeep.model import Finding, Verdict
from turnkeep.process.criu import find_criu
from turnkeep.process.features import look_for_features, missing_capabilities
from turnkeep.process.selftest import NOBODY, Trial, try_out
from turnkeep.runtime.registration import NAME
from turnkeep.runtime.scratch import scratch_group

_INSTALL = "make host installs one that works; then start the daemon again"


class Examiner:
    """Looks at the host and at sandboxes. Lives on the event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._deps = registry.deps
        self._scratch = asyncio.Lock()
        self._trials: tuple[Trial, ...] = ()

    async def examine(self, sandbox: str, *, self_test: bool) -> list[Finding]:
        """Look at the host, and at a sandbox if one is named.

        The sandbox is frozen for a moment, never during a capture or a restore.

        Raises:
            SandboxNotFound: there is no such sandbox.
        """
        coordinator = self._registry.find(sandbox) if sandbox else None
        findings = await self._host(self_test=self_test)
        if coordinator is not None:
            findings += await examine_sandbox(coordinator)
        return findings

    async def _host(self, *, self_test: bool) -> list[Finding]:
        deps = self._deps
        # One at a time: there is one scratch cgroup for each daemon.
        async with self._scratch:
            findings = await run(deps.pools.long, lambda: [*_kernel(), *_freezer(deps), _criu(deps)])
            if deps.processes.available:
                if self_test or not self._trials:
                    self._trials = await run(deps.pools.long, _self_test, deps)
                findings += map(_trial, self._trials)
        findings.append(await self._runtime())
        return findings

    async def _runtime(self) -> Finding:
        try:
            info = await run(self._deps.pools.engine, self._deps.engine.info)
        except TurnkeepError as error:
            return _finding("runtime", Verdict.DEGRADED, f"not known: {error.message}", error.hint)
        return _runtime(info.get("Runtimes") or {})


def _finding(what: str, verdict: Verdict, detail: str, fix: str = "") -> Finding:
    return Finding(what=what, verdict=verdict, detail=detail, fix=fix)


def _kernel() -> Iterator[Finding]:
    features = look_for_features()
    there = [each.name for each in features if each.present]
    if there:
        yield _finding("features", Verdict.OK, ", ".join(there))
    for each in features:
        if not each.present:
            detail = f"{each.name} does not work here: {each.why}"
            yield _finding("features", Verdict.MISSING, detail, f"it needs {each.needs}")
    if lacking := missing_capabilities():
        detail = f"the daemon lacks {', '.join(lacking)}, without which processes are not captured"
        yield _finding("rights", Verdict.MISSING, detail, "run the daemon as root, with all capabilities")


def _freezer(deps: Deps) -> Iterator[Finding]:
    """Freeze a cgroup that nobody is in."""
    try:
        with scratch_group(deps.freezer, deps.config.limits.freeze_budget_s) as group, group.frozen():
            pass
    except TurnkeepError as error:
        yield _finding("freezer", Verdict.MISSING, error.message, error.hint)
    else:
        folder = Path(group.freezer_folder).parent
        yield _finding("freezer", Verdict.OK, f"cgroup v{group.version}, {folder}")


def _criu(deps: Deps) -> Finding:
    settings, processes = deps.config.process, deps.processes
    if not settings.enabled:
        fix = "set process.enabled = true in the configuration, and start the daemon again"
        return _finding("criu", Verdict.DEGRADED, processes.degraded, fix)
    try:
        found = find_criu(settings.criu)
    except (TurnkeepError, OSError) as error:
        return _finding("criu", Verdict.MISSING, processes.degraded or str(error), _INSTALL)
    if found is None:
        return _finding("criu", Verdict.MISSING, processes.degraded or "it was removed", _INSTALL)
    if not processes.available:
        fix = f"{found.version} is in {found.program}: start the daemon again, or see its log"
        return _finding("criu", Verdict.MISSING, processes.degraded, fix)
    if found.version != processes.criu:
        detail = f"version {processes.criu} is used, but {found.version} is in {found.program}"
        return _finding("criu", Verdict.DEGRADED, detail, "start the daemon again")
    return _finding("criu", Verdict.OK, f"version {found.version}, {found.program}")


def _self_test(deps: Deps) -> tuple[Trial, ...]:
    return tuple(_one_test(deps, uid) for uid in (0, NOBODY))


def _one_test(deps: Deps, uid: int) -> Trial:
    try:
        with scratch_group(deps.freezer, deps.config.limits.freeze_budget_s) as group:
            return try_out(deps.processes.engine, group, uid)
    except TurnkeepError as error:
        return Trial(uid=uid, error=error.message, hint=error.hint)


def _trial(trial: Trial) -> Finding:
    what, whose = ("self-test", "root") if trial.uid == 0 else ("other users", f"user {trial.uid}")
    if trial.passed:
        stopped, total = trial.stopped_ns / 1e6, trial.total_ns / 1e6
        detail = f"a process of {whose} was dumped and restored, and goes on"
        return _finding(
            what, Verdict.OK, f"{detail} ({stopped:.0f} ms stopped, {total:.0f} ms with its start)"
        )
    # Without root's nothing works; without others' those of root still do.
    verdict = Verdict.MISSING if trial.uid == 0 else Verdict.DEGRADED
    return _finding(what, verdict, f"a process of {whose}: {trial.error}", trial.hint)


def _runtime(runtimes: Mapping[str, Mapping[str, Any]]) -> Finding:
    entry = runtimes.get(NAME)
    if entry is None:
        detail = "not registered with the engine; needed only where a container's own process holds state"
        return _finding("runtime", Verdict.DEGRADED, detail, "turnkeep install")
    path = str(entry.get("path", ""))
    if path and not Path(path).exists():
        detail = f"registered, but there is no {path}: containers that use it cannot start"
        return _finding("runtime", Verdict.DEGRADED, detail, "turnkeep install")
    return _finding("runtime", Verdict.OK, f"registered with the engine, {path}".rstrip(", "))
