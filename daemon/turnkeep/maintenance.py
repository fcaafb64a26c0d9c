"""Prune and check: the whole store at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from turnkeep_store.backend import ASIDE
from turnkeep_store.check import CheckReport, check, rebuild_index
from turnkeep_store.prune import prune
from turnkeep_store.repair import repair

from turnkeep.config import check_policy
from turnkeep.coordinator.deps import run
from turnkeep.coordinator.registry import Registry
from turnkeep.errors import Conflict, TurnkeepError
from turnkeep.model import CheckpointId, RetentionPolicy
from turnkeep.retention import to_delete

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a prune did, or would do."""

    deleted: tuple[str, ...]
    kept: int
    freed_bytes: int
    stored_bytes: int
    dry_run: bool
    notes: tuple[str, ...]


async def prune_store(
    registry: Registry, policy: RetentionPolicy, *, dry_run: bool, progress: Progress
) -> Pruned:
    """Delete what the policy does not keep, then free what nothing references."""
    check_policy(policy, "retention policy")
    deps = registry.deps
    checkpoints = await run(deps.pools.long, deps.journal.checkpoints)
    heads = {each.record.head_checkpoint_id for each in registry.sandboxes.values()} - {None}
    size = await run(deps.pools.commit, deps.repository.size)
    doomed = to_delete(checkpoints, policy, heads, size.stored_bytes)  # type: ignore[arg-type]
    notes: list[str] = []
    deleted = []
    for index, checkpoint in enumerate(doomed):
        progress("delete", index, len(doomed))
        if not dry_run:
            try:
                await registry.delete_checkpoint(checkpoint)
            except Conflict as error:
                notes.append(f"{checkpoint.id[:12]} stays: {error.message}")
                continue
        deleted.append(checkpoint.id)
    report = await run(deps.pools.long, prune, deps.repository, dry_run=dry_run, progress=progress)
    if not dry_run:
        await _unpin(registry)
    after = await run(deps.pools.commit, deps.repository.size)
    if policy.max_bytes and not dry_run and after.stored_bytes > policy.max_bytes:
        notes.append(
            f"the store holds {after.stored_bytes} bytes, more than the budget of {policy.max_bytes}:"
            " what is left is kept by a rule, a name, or as a head"
        )
    return Pruned(
        deleted=tuple(deleted),
        kept=len(checkpoints) - len(deleted),
        freed_bytes=report.freed_bytes,
        stored_bytes=after.stored_bytes,
        dry_run=dry_run,
        notes=tuple(notes),
    )


async def _unpin(registry: Registry) -> None:
    """Let go of images that neither a checkpoint nor an attached sandbox stands on."""
    deps = registry.deps
    needed = {each.image_id for each in await run(deps.pools.long, deps.journal.checkpoints)}
    needed |= {each.record.image_id for each in registry.sandboxes.values() if each.record.attached}
    for image_id in {each.record.image_id for each in registry.sandboxes.values()} - needed:
        try:
            await run(deps.pools.engine, deps.engine.unpin_image, image_id)
        except TurnkeepError:
            continue


async def repair_store(registry: Registry, progress: Progress) -> list[str]:
    """Save what is sound of damaged packs, and delete checkpoints whose record is damaged.

    Returns what was done, in sentences; what is lost for good is what a check finds afterwards.
    """
    deps = registry.deps
    report = await run(deps.pools.long, repair, deps.repository, progress)
    said = ["the index was made anew from the packs"]
    if report.packs:
        aside = ", ".join(f"{name[:12]}…{ASIDE}" for name in report.packs)
        said.append(
            f"{report.saved_blobs} sound blobs of damaged packs saved; the packs are set aside: {aside}"
        )
    for name in report.records:
        checkpoint = deps.journal.checkpoint(CheckpointId(name))
        if checkpoint is None:
            await run(deps.pools.commit, deps.repository.delete, name)
            said.append(
                f"record {name[:12]} was damaged and is deleted; the journal knows no such checkpoint"
            )
            continue
        try:
            await registry.delete_checkpoint(checkpoint)
            said.append(f"checkpoint {name[:12]} is lost: its record was damaged, and is deleted")
        except Conflict as error:
            said.append(
                f"checkpoint {name[:12]} is lost, its record being damaged, and stays listed:"
                f" {error.message}; take another checkpoint there and repair again"
            )
    await run(deps.pools.journal, deps.journal.rebuild)
    return said


async def check_store(
    registry: Registry, *, read_data: bool, rebuild: bool, progress: Progress
) -> CheckReport:
    """Verify everything in the store; first make its index anew from the packs, if asked to."""
    deps = registry.deps
    if rebuild:
        progress("rebuild the index", 0, 0)
        await run(deps.pools.long, rebuild_index, deps.repository)
    return await run(
        deps.pools.long,
        check,
        deps.repository,
        read_data=read_data,
        progress=progress,
    )
