"""Restores that stop a container, and start it or another in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnkeep_store.points import reached

from turnkeep.checkpointer.view import Baseline
from turnkeep.coordinator.creation import Replacement
from turnkeep.coordinator.deps import Deps, run
from turnkeep.coordinator.filling import fill_and_start
from turnkeep.coordinator.loading import leave_whole, let_go, load
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.model import Checkpoint
from turnkeep.points import Point
from turnkeep.restorer.cold import wait_until_unmounted
from turnkeep.restorer.plan import Progress, Restored, no_progress
from turnkeep.restorer.processes import Ready, bring_back, compare_whole
from turnkeep.runtime.container import Container
from turnkeep.runtime.places import Places, places_on_disk


async def cold(
    sandbox: SandboxCoordinator,
    container: Container,
    checkpoint: Checkpoint,
    progress: Progress,
    ready: Ready,
    replacement: Replacement | None = None,
) -> Restored:
    """Stop the container, put its files right, start it; the caller holds the sandbox.

    With a replacement, another container takes its place.
    """
    places = sandbox.places or container.places
    return await _cold(sandbox, places, checkpoint, progress, ready, replacement)


async def cold_again(
    sandbox: SandboxCoordinator,
    checkpoint: Checkpoint,
    inspected: Mapping[str, Any],
    replacement: Replacement | None = None,
) -> Restored:
    """Repeat a cold restore that was cut off anywhere, from what the engine knows of the container."""
    if sandbox.places is None and inspected["State"].get("Running"):
        await sandbox.open()
    places = sandbox.places or places_on_disk(inspected, checkpoint.mounts)
    ready = await load(sandbox, checkpoint)
    leave_whole(ready, inspected, replace=replacement is not None)
    try:
        return await _cold(sandbox, places, checkpoint, no_progress, ready, replacement)
    finally:
        let_go(sandbox.deps, ready)


async def _cold(
    sandbox: SandboxCoordinator,
    places: Places,
    checkpoint: Checkpoint,
    progress: Progress,
    ready: Ready,
    replacement: Replacement | None = None,
) -> Restored:
    deps = sandbox.deps
    restored, baseline, started = await run(
        deps.pools.long,
        _restart,
        deps,
        sandbox.record.container_id,
        places,
        checkpoint,
        progress,
        ready,
        replacement,
    )
    if replacement is not None:
        await _record_replacement(sandbox, replacement, started)
    sandbox.use(started)
    sandbox.baseline = baseline
    if replacement is not None:
        reached(Point.REPLACE_RECORDED)
        if note := await run(deps.pools.engine, replacement.keep):
            restored.notes += (note,)
    return restored


async def _record_replacement(
    sandbox: SandboxCoordinator, replacement: Replacement, started: Container
) -> None:
    """Take a new container that works for the sandbox's. The next start goes by what was recorded."""
    try:
        await sandbox.update(
            "replaced",
            "by a container of the same name and configuration",
            record={"container_id": started.id},
            details={"old": sandbox.record.container_id, "new": started.id},
        )
    except BaseException:
        started.close()
        await run(sandbox.deps.pools.engine, replacement.undo)
        raise


def _restart(
    deps: Deps,
    container_id: str,
    places: Places,
    checkpoint: Checkpoint,
    progress: Progress,
    ready: Ready,
    replacement: Replacement | None,
) -> tuple[Restored, Baseline, Container]:
    """Stop the container, put what is on the disk right, start it, and put the rest right. Blocking."""
    progress("stop", 0, 0)
    deps.engine.stop(container_id)
    wait_until_unmounted(places.rootfs.host_path)
    reached(Point.RESTORE_STOPPED)
    if replacement is not None:
        replacement.make()
        container_id = replacement.new_id
        places = places_on_disk(deps.engine.inspect(container_id), checkpoint.mounts)
    try:

        def and_then(container: Container) -> list[str]:
            if ready.whole is not None:
                compare_whole(ready, container)
            return bring_back(ready, container, deps.processes)

        return fill_and_start(
            deps,
            container_id,
            places,
            checkpoint,
            ready,
            progress,
            filled=lambda: reached(Point.RESTORE_FILLED),
            started=lambda: reached(Point.RESTORE_STARTED),
            and_then=and_then,
        )
    except BaseException:
        if replacement is not None:
            replacement.undo()
        raise
