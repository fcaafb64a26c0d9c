"""What checkpoints need of a sandbox's container, and what they remember of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from turnkeep_store.ids import TreeId
from turnkeep_store.layers import LayerView

from turnkeep.model import CheckpointId, Mount, ProcessImage
from turnkeep.process.quiet import TreePrint
from turnkeep.watch.processes import ProcessSample
from turnkeep.watch.table import Sight
from turnkeep.watch.trail import Trail


class PlaceView(Protocol):
    """A file tree (or a single file) that belongs to the state."""

    @property
    def slot(self) -> bytes: ...

    @property
    def mount(self) -> Mount: ...

    @property
    def exclude(self) -> frozenset[bytes]: ...

    @property
    def is_rootfs(self) -> bool: ...

    @property
    def is_file(self) -> bool: ...

    @property
    def host_path(self) -> str: ...

    def open(self, init_pid: int) -> int: ...


class FrozenView(Protocol):
    """A freeze that lasts, or is over."""

    ns: int

    def check(self) -> None: ...


class ContainerView(Protocol):
    """A container as it runs now (or stands still)."""

    id: str
    init_pid: int
    running: bool
    inspected: Mapping[str, Any]

    @property
    def command(self) -> tuple[str, ...]: ...

    @property
    def health_check(self) -> tuple[str, ...]: ...

    def covered(self) -> tuple[PlaceView, ...]: ...

    def pids(self) -> list[int]: ...

    def usage_ns(self) -> int: ...

    @property
    def freezer_folder(self) -> str: ...

    def procs_files(self) -> list[str]: ...

    def runc_root(self) -> Path: ...

    def configuration(self) -> Mapping[str, Any]: ...

    def frozen(
        self, budget_s: float, *, hold: bool = False
    ) -> contextlib.AbstractContextManager[FrozenView | None]: ...

    def image_view(self, place: Any) -> LayerView | None: ...


@dataclass(slots=True)
class PlaceBaseline:
    """The file status of every path of one place, as of the last checkpoint.

    `doubtful` paths may have changed without any trace and are read again;
    `fresh` ones without a trace in their status. `trail` holds what was touched
    since. `generation` is a watched host folder's at the scan; 0 for none.
    """

    sight: Sight = field(default_factory=Sight)
    opaque: set[bytes] = field(default_factory=set)
    doubtful: set[bytes] = field(default_factory=set)
    fresh: set[bytes] = field(default_factory=set)
    trail: Trail = field(default_factory=Trail)
    generation: int = 0


@dataclass(slots=True)
class Baseline:
    """What a sandbox's next turn is compared with.

    An empty one is always sound: everything is then read and compared by
    content, which is what happens after a start of the daemon. `image` holds the
    processes as they were dumped when `processes` was sampled, and `prints` what
    they looked like then.
    """

    tree: TreeId | None = None
    checkpoint_id: CheckpointId | None = None
    places: dict[bytes, PlaceBaseline] = field(default_factory=dict)
    processes: ProcessSample | None = None
    image: ProcessImage | None = None
    prints: Mapping[int, TreePrint] = field(default_factory=dict)

    def place(self, slot: bytes) -> PlaceBaseline:
        """Return what is known of a place."""
        return self.places.get(slot) or PlaceBaseline()

    def fold(self) -> None:
        """Make this the only state that anything is compared with: every earlier baseline ends."""
        for place in self.places.values():
            place.sight.fold()
