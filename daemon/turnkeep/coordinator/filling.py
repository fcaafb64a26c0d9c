"""A container that does not run: filled with a checkpoint, and started."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from turnkeep.checkpointer.view import Baseline
from turnkeep.coordinator.deps import Deps
from turnkeep.errors import PidsTaken
from turnkeep.model import Checkpoint
from turnkeep.restorer.cold import fill_on_disk, start_and_fill, wait_until_unmounted
from turnkeep.restorer.pids import require_free_pids
from turnkeep.restorer.plan import Progress, Restored
from turnkeep.restorer.processes import Ready
from turnkeep.restorer.whole import start_with
from turnkeep.runtime.container import Container, open_container
from turnkeep.runtime.places import Places

T = TypeVar("T")

_FREEZE_S = 60.0
_MOST_STARTS = 20
"""One start in four, at the worst seen, gives a process of the container's own a pid that is needed."""


def fill_and_start(
    deps: Deps,
    container_id: str,
    places: Places,
    checkpoint: Checkpoint,
    ready: Ready,
    progress: Progress,
    *,
    filled: Callable[[], None],
    started: Callable[[], None],
    and_then: Callable[[Container], list[str]],
    is_copy: bool = False,
) -> tuple[Restored, Baseline, Container]:
    """Put what is on the disk right, start the container, and put the rest right. Blocking.

    `filled` and `started` are called when that is so, `and_then` with the running
    container, to bring its processes back. Where it was given pids that they need,
    it is started anew. Raises as `start_and_fill`; the container is then as far as
    it came.
    """

    def attempt() -> tuple[Restored, Baseline, Container]:
        written = fill_on_disk(deps.repository, checkpoint, places.covered, progress)
        filled()
        stopped = open_container(deps.engine, deps.freezer, container_id, places)
        try:
            present = deps.checkpointer.states.current_state(stopped, None)
        finally:
            stopped.close()

        def start() -> Container:
            start_with(ready, deps.processes, container_id, lambda: deps.engine.start(container_id))
            started()
            return open_container(deps.engine, deps.freezer, container_id)

        def processes(container: Container) -> list[str]:
            require_free_pids(ready, container, container.pids())
            return and_then(container)

        return start_and_fill(
            deps.repository,
            deps.checkpointer,
            checkpoint,
            start,
            present,
            written,
            budget_s=_FREEZE_S,
            progress=progress,
            and_then=processes,
            is_copy=is_copy,
            whole=ready.whole is not None,
        )

    return _until_pids_are_free(deps, container_id, places, attempt)


def _until_pids_are_free(deps: Deps, container_id: str, places: Places, attempt: Callable[[], T]) -> T:
    """Make attempts, with the container stopped before each, until it is given no pid that is needed.

    Raises:
        PidsTaken: it was, in each of so many, or in the first of one that is removed as it stops.
    """
    for left in reversed(range(_MOST_STARTS)):
        try:
            return attempt()
        except PidsTaken:
            # Stopping one that is removed when it stops would leave nothing to start.
            removes_itself = deps.engine.inspect(container_id)["HostConfig"].get("AutoRemove")
            if not left or removes_itself:
                raise
        deps.engine.stop(container_id)
        wait_until_unmounted(places.rootfs.host_path)
    raise AssertionError("the last start returns or raises")
