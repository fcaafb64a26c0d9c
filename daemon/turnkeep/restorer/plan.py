"""Which way a restore goes, and what both ways share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from turnkeep_store.diff import diff
from turnkeep_store.ids import TreeId
from turnkeep_store.repository import Repository
from turnkeep_store.restorer import Written

from turnkeep.errors import DigestMismatch
from turnkeep.model import Checkpoint, ContainerState
from turnkeep.paths import display

Progress = Callable[[str, int, int], None]
"""Called with a phase, the units done, and the units in all (0: unknown)."""

SHOWN_PATHS = 20


def no_progress(phase: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class Restored:
    """What a restore did, before the sandbox's record is brought up to date."""

    digest: str
    written: Written
    freeze_ns: int = 0
    full: bool = False
    notes: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """How a restore will be done, and why so."""

    live: bool
    reason: str


def choose(state: ContainerState, *, init_is_stateful: bool, wanted_live: bool | None) -> Choice:
    """Decide between live and cold. `wanted_live` is the caller's wish, None for none."""
    if state is not ContainerState.RUNNING:
        return Choice(False, "the container does not run")
    if wanted_live is True:
        return Choice(True, "asked for")
    if wanted_live is False:
        return Choice(False, "asked for")
    if init_is_stateful:
        return Choice(False, "the container's own process holds state, which only a restart resets")
    return Choice(True, "nothing but files has to come back")


def check_digest(
    repository: Repository, checkpoint: Checkpoint, actual_digest: str, actual: TreeId, source: object = None
) -> None:
    """Compare what is there with what was captured.

    Raises:
        DigestMismatch: they differ; the message names the first paths.
    """
    if actual_digest == checkpoint.digest:
        return
    wanted = TreeId(bytes.fromhex(checkpoint.tree))
    paths: Sequence[str] = [display(delta.path) for delta in diff(source or repository, wanted, actual)]  # type: ignore[arg-type]
    shown = ", ".join(paths[:SHOWN_PATHS]) + (", …" if len(paths) > SHOWN_PATHS else "")
    raise DigestMismatch(
        f"what is there is not what was captured; {len(paths)} paths differ: {shown}",
        object=f"checkpoint {checkpoint.id[:12]}",
        hint="something else writes to the sandbox's files, or this is a defect; the state before was kept",
    )
