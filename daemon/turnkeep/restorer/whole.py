"""Bringing back a whole container: its init and all that descends from it, as the engine starts it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from turnkeep_store.points import reached

from turnkeep.errors import RestoreFailed, TurnkeepError
from turnkeep.points import Point
from turnkeep.process.engine import Processes
from turnkeep.restorer.processes import Ready
from turnkeep.runtime import orders

RUNTIME = "turnkeep"


NOT_OURS = (
    f"they do only in one that the runtime {RUNTIME} started; restore with --replace to put one in its place"
)


@contextlib.contextmanager
def ordered(ready: Ready, processes: Processes, container_id: str) -> Iterator[None]:
    """Have the container's next start, inside a `with` block, restore its processes.

    Raises:
        RestoreFailed: that start did not restore them; CRIU's lines that matter are quoted.
    """
    assert ready.whole is not None
    folder = Path(processes.settings.orders)
    # CRIU mounts something in it for a moment, which a mount without a path refuses.
    work = Path(tempfile.mkdtemp(prefix="whole-", dir=processes.run_dir))
    try:
        orders.place(folder, container_id, ready.whole.images.as_path, work)
        reached(Point.WHOLE_ORDERED)
        try:
            yield
        except TurnkeepError as error:
            raise RestoreFailed(
                f"the container was not restored: {error.message}",
                object=error.object,
                hint=error.hint or "turnkeep doctor says what CRIU can do here",
            ) from error
        reached(Point.WHOLE_STARTED)
        if orders.withdraw(folder, container_id):
            raise RestoreFailed(
                "the container was started without restoring its processes",
                object=f"container {container_id[:12]}",
                hint=f"is its runtime {RUNTIME}? turnkeep install registers it",
            )
    finally:
        with contextlib.suppress(TurnkeepError):
            orders.withdraw(folder, container_id)
        shutil.rmtree(work, ignore_errors=True)


def start_with(ready: Ready, processes: Processes, container_id: str, start: Callable[[], None]) -> None:
    """Start a container; with a whole one among the images, that start restores it.

    Raises:
        RestoreFailed: it could not be restored.
    """
    if ready.whole is None:
        start()
        return
    with ordered(ready, processes, container_id):
        start()
