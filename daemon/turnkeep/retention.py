"""Which checkpoints a policy keeps: a pure function."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from turnkeep.model import Checkpoint, CheckpointId, RetentionPolicy, SandboxId


def to_delete(
    checkpoints: Iterable[Checkpoint],
    policy: RetentionPolicy,
    heads: Collection[CheckpointId],
    stored_bytes: int = 0,
) -> list[Checkpoint]:
    """Return what may go, oldest first.

    A checkpoint stays if any rule keeps it; heads and named ones always stay.
    With no rule at all everything does. A byte budget alone deletes the oldest
    until the store, now `stored_bytes`, would fit, by the bytes that each added.
    Hours and days are UTC's.
    """
    ordered = sorted(checkpoints, key=lambda each: (each.created_at_ns, each.id))
    if policy.is_empty:
        return []
    kept = {each.id for each in ordered if each.id in heads or each.name}
    by_sandbox: dict[SandboxId, list[Checkpoint]] = {}
    for each in ordered:
        by_sandbox.setdefault(each.sandbox_id, []).append(each)
    for group in by_sandbox.values():
        kept |= _kept(group, policy)
    candidates = [each for each in ordered if each.id not in kept]
    if not policy.max_bytes:
        return candidates
    rules = RetentionPolicy(
        keep_last=policy.keep_last,
        keep_hourly=policy.keep_hourly,
        keep_daily=policy.keep_daily,
        keep_tags=policy.keep_tags,
    )
    if not rules.is_empty:
        # Besides other rules the budget only matters where they keep too little
        # to reach it; what they do not keep goes anyway.
        return candidates
    excess = stored_bytes - policy.max_bytes
    chosen = []
    for each in candidates:
        if excess <= 0:
            break
        chosen.append(each)
        excess -= each.stored_bytes
    return chosen


def _kept(group: list[Checkpoint], policy: RetentionPolicy) -> set[CheckpointId]:
    newest_first = group[::-1]
    kept = {each.id for each in newest_first[: policy.keep_last]}
    kept |= _newest_of_each(newest_first, "%Y-%m-%dT%H", policy.keep_hourly)
    kept |= _newest_of_each(newest_first, "%Y-%m-%d", policy.keep_daily)
    for each in group:
        if each.tags and ("*" in policy.keep_tags or set(each.tags) & set(policy.keep_tags)):
            kept.add(each.id)
    return kept


def _newest_of_each(newest_first: list[Checkpoint], period: str, count: int) -> set[CheckpointId]:
    found: dict[str, CheckpointId] = {}
    for each in newest_first:
        if len(found) == count:
            break
        moment = datetime.fromtimestamp(each.created_at_ns / 1e9, UTC).strftime(period)
        found.setdefault(moment, each.id)
    return set(found.values())
