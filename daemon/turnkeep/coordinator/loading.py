"""A checkpoint's processes, loaded before a restore changes anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnkeep.coordinator.deps import Deps, run
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.model import Checkpoint
from turnkeep.restorer.plan import Choice
from turnkeep.restorer.processes import Ready, load_images
from turnkeep.restorer.whole import NOT_OURS, RUNTIME
from turnkeep.runtime.container import Container


async def load(
    sandbox: SandboxCoordinator, checkpoint: Checkpoint, container: Container | None = None
) -> Ready:
    """Load a checkpoint's processes before anything is changed; the caller closes it.

    For a container that runs already they are checked as well.
    """
    deps = sandbox.deps
    if checkpoint.processes is None:
        return Ready()
    return await run(
        deps.pools.long, load_images, deps.repository, deps.processes, checkpoint.processes, container
    )


def let_go(deps: Deps, ready: Ready) -> None:
    """Let go of loaded images. Nobody waits for it: what lies in memory takes the kernel its time."""
    deps.pools.long.submit(ready.close)


def leave_whole(ready: Ready, inspected: Mapping[str, Any], *, replace: bool) -> Choice | None:
    """Return the way to bring back a whole container; leave it out, and say so, where there is none."""
    if ready.whole is None:
        return None
    if replace or inspected["HostConfig"].get("Runtime") == RUNTIME:
        return Choice(False, "its own processes come back only as the container starts")
    ready.leave_whole(NOT_OURS)
    return None
