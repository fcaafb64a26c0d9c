"""What every part of a run is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import docker

from bench.budget import Budget
from bench.interrupt import Interrupts


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where a part measures. All that it makes in the engine begins with `name`."""

    engine: docker.DockerClient
    name: str
    folder: Path
    """Its own, empty and on a disk; it is deleted afterwards."""
    interrupts: Interrupts
    budget: Budget

    @contextlib.contextmanager
    def below(self, name: str) -> Iterator[Scene]:
        """Yield a scene with a folder and names of its own within this one."""
        folder = self.folder / name
        folder.mkdir()
        yield replace(self, name=f"{self.name}-{name}", folder=folder)
