"""What a policy keeps."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turnkeep.model import (
    Checkpoint,
    CheckpointId,
    Decision,
    Fidelity,
    Origin,
    RetentionPolicy,
    SandboxId,
    TurnClass,
    TurnNumber,
)
from turnkeep.retention import to_delete


def made(
    at: str | int, sandbox: str = "a", *, name: str = "", tags: tuple[str, ...] = (), stored_bytes: int = 10
) -> Checkpoint:
    """Return a checkpoint taken at a time: "DAY HH:MM" of May 2026, or nanoseconds."""
    if isinstance(at, str):
        moment = datetime.strptime(f"2026-05-{at}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
        at = int(moment.timestamp()) * 10**9
    return Checkpoint(
        id=CheckpointId(f"{sandbox}{at}"),
        sandbox_id=SandboxId(sandbox),
        parent_id=None,
        turn=TurnNumber(1),
        origin=Origin.TURN,
        created_at_ns=at,
        digest="",
        tree="",
        fidelity=Fidelity.COMPLETE,
        decision=Decision(turn_class=TurnClass.FILESYSTEM, reason=""),
        mounts=(),
        name=name,
        tags=tags,
        stored_bytes=stored_bytes,
    )


def left(checkpoints: list[Checkpoint], policy: RetentionPolicy, stored_bytes: int = 0) -> list[str]:
    """Return what stays: day and time, in order."""
    gone = to_delete(checkpoints, policy, (), stored_bytes)
    stay = [each for each in checkpoints if each not in gone]
    return [datetime.fromtimestamp(each.created_at_ns // 10**9, UTC).strftime("%d %H:%M") for each in stay]


DAYS = [
    made(at) for at in ("01 09:00", "01 10:10", "01 10:50", "02 00:00", "02 23:59", "03 00:00", "03 08:00")
]

POLICIES = [
    (RetentionPolicy(), [-7, -6, -5, -4, -3, -2, -1]),
    (RetentionPolicy(keep_last=1), [-1]),
    (RetentionPolicy(keep_last=99), [-7, -6, -5, -4, -3, -2, -1]),
    (RetentionPolicy(keep_hourly=2), [-2, -1]),
    (RetentionPolicy(keep_hourly=5), [-5, -4, -3, -2, -1]),
    (RetentionPolicy(keep_daily=1), [-1]),
    (RetentionPolicy(keep_daily=2), [-3, -1]),
    (RetentionPolicy(keep_daily=9), [-5, -3, -1]),
    (RetentionPolicy(keep_daily=2, keep_last=2), [-3, -2, -1]),
]


@pytest.mark.parametrize(("policy", "kept"), POLICIES)
def test_rules(policy: RetentionPolicy, kept: list[int]) -> None:
    assert left(DAYS, policy) == left([DAYS[each] for each in kept], RetentionPolicy())


def test_what_goes_comes_oldest_first() -> None:
    assert to_delete(DAYS[::-1], RetentionPolicy(keep_last=2), ()) == DAYS[:-2]


def test_each_sandbox_has_its_own_last() -> None:
    mixed = [made(number, "ab"[number % 2]) for number in range(6)]
    assert to_delete(mixed, RetentionPolicy(keep_last=1), ()) == mixed[:4]


@pytest.mark.parametrize(
    ("wanted", "kept"), [(("keep",), [0]), (("keep", "x"), [0, 1]), (("*",), [0, 1]), (("y",), [])]
)
def test_tags(wanted: tuple[str, ...], kept: list[int]) -> None:
    three = [made(1, tags=("keep",)), made(2, tags=("x", "z")), made(3)]
    gone = to_delete(three, RetentionPolicy(keep_tags=wanted), ())
    assert [each for each in three if each not in gone] == [three[each] for each in kept]


@pytest.mark.parametrize(("stored", "gone"), [(50, 0), (51, 1), (60, 1), (61, 2), (1000, 5)])
def test_a_budget_takes_the_oldest_until_it_fits(stored: int, gone: int) -> None:
    five = [made(number) for number in range(5)]
    assert to_delete(five, RetentionPolicy(max_bytes=50), (), stored) == five[:gone]


def test_a_budget_beside_a_rule_takes_nothing_that_the_rule_keeps() -> None:
    five = [made(number) for number in range(5)]
    assert to_delete(five, RetentionPolicy(max_bytes=1, keep_last=3), (), 1000) == five[:2]


_CHECKPOINTS = st.lists(
    st.builds(
        made,
        st.integers(0, 10**6 * 3600 * 10**9),
        st.sampled_from("abc"),
        name=st.sampled_from(["", "", "good"]),
        tags=st.sampled_from([(), ("keep",)]),
        stored_bytes=st.integers(0, 100),
    ),
    unique_by=lambda each: each.id,
)
_POLICIES = st.builds(
    RetentionPolicy,
    keep_last=st.integers(0, 4),
    keep_hourly=st.integers(0, 4),
    keep_daily=st.integers(0, 4),
    keep_tags=st.sampled_from([(), ("keep",), ("*",)]),
    max_bytes=st.sampled_from([0, 0, 1, 100]),
)


@given(_CHECKPOINTS, _POLICIES, st.sets(st.integers(0, 30)), st.integers(0, 2000))
def test_heads_and_names_always_stay(
    checkpoints: list[Checkpoint], policy: RetentionPolicy, heads: set[int], stored_bytes: int
) -> None:
    head_ids = {each.id for index, each in enumerate(checkpoints) if index in heads}
    gone = to_delete(checkpoints, policy, head_ids, stored_bytes)
    assert not [each for each in gone if each.id in head_ids or each.name]
    assert len(gone) == len({each.id for each in gone})
    assert all(each in checkpoints for each in gone)


@given(_CHECKPOINTS, st.integers(0, 10**9))
def test_no_policy_deletes_nothing(checkpoints: list[Checkpoint], stored_bytes: int) -> None:
    assert to_delete(checkpoints, RetentionPolicy(), (), stored_bytes) == []


@given(_CHECKPOINTS, st.integers(1, 5), _POLICIES)
def test_the_last_n_stay_whatever_else_is_said(
    checkpoints: list[Checkpoint], count: int, other: RetentionPolicy
) -> None:
    policy = RetentionPolicy(
        keep_last=count, keep_daily=other.keep_daily, keep_tags=other.keep_tags, max_bytes=other.max_bytes
    )
    gone = {each.id for each in to_delete(checkpoints, policy, (), 10**6)}
    for sandbox in "abc":
        own = sorted(
            (each for each in checkpoints if each.sandbox_id == sandbox), key=lambda c: c.created_at_ns
        )
        newest = {each.created_at_ns for each in own[-count:]}
        stay = [each for each in own if each.id not in gone]
        assert newest <= {each.created_at_ns for each in stay}
        if policy == RetentionPolicy(keep_last=count):
            assert len([each for each in stay if not each.name]) <= count
