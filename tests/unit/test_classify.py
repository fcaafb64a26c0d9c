"""From evidence to a class."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turnkeep.config import Classify
from turnkeep.model import TurnClass
from turnkeep.turns import Evidence, classify, is_cache

CACHES = Classify().caches
SOURCE, CACHE = "/app/a.py", "/app/__pycache__/a.pyc"

TABLE = [
    (Evidence(), TurnClass.STATELESS, "no file changed and no stateful process is running"),
    (
        Evidence(stateful_running=2),
        TurnClass.STATELESS,
        "no file changed, and no stateful process was born, died or ran",
    ),
    (Evidence(changed=[CACHE]), TurnClass.STATELESS, f"only derived caches changed ({CACHE})"),
    (Evidence(changed=[SOURCE]), TurnClass.FILESYSTEM, f"1 path changed ({SOURCE})"),
    (Evidence(changed=[CACHE, SOURCE]), TurnClass.FILESYSTEM, f"1 path changed ({SOURCE})"),
    (Evidence(changed=list("abcd")), TurnClass.FILESYSTEM, "4 paths changed (a, b, c, …)"),
    (Evidence(processes=["7 node (ran)"]), TurnClass.PROCESS, "1 process: 7 node (ran)"),
    (Evidence(processes=["1 a", "2 b"]), TurnClass.PROCESS, "2 processes: 1 a, 2 b"),
    (Evidence(changed=[CACHE], processes=["7 node"]), TurnClass.PROCESS, "1 process: 7 node"),
    (
        Evidence(changed=[SOURCE], processes=["7 node"]),
        TurnClass.FULL,
        f"1 path changed ({SOURCE}); 1 process: 7 node",
    ),
    (Evidence(unsure=["torn"]), TurnClass.FILESYSTEM, "not certain: torn"),
    (Evidence(changed=[CACHE], unsure=["torn"]), TurnClass.FILESYSTEM, "not certain: torn"),
    (Evidence(processes=["7 node"], unsure=["x"]), TurnClass.FULL, "1 process: 7 node; not certain: x"),
]


@pytest.mark.parametrize(("evidence", "turn_class", "reason"), TABLE)
def test_the_class_and_its_reason(evidence: Evidence, turn_class: TurnClass, reason: str) -> None:
    decision = classify(evidence, CACHES)
    assert (decision.turn_class, decision.reason) == (turn_class, reason)


@pytest.mark.parametrize(
    ("path", "derived"),
    [
        ("/app/__pycache__", True),
        ("/app/__pycache__/deep/er/x", True),
        ("/.mypy_cache/x", True),
        ("/app/__pycache__x/a", False),
        ("/app/x__pycache__", False),
        ("/app/a.pyc", False),
        ("/", False),
    ],
)
def test_what_is_a_cache(path: str, derived: bool) -> None:
    assert is_cache(path, CACHES) is derived


def test_a_decision_shows_sources_first_and_counts_everything() -> None:
    caches = [f"/__pycache__/{number}" for number in range(200)]
    decision = classify(Evidence(changed=[*caches, SOURCE]), CACHES)
    assert decision.changed_paths[0] == SOURCE
    assert len(decision.changed_paths) == 100
    assert (decision.changed_path_count, decision.cache_path_count) == (201, 200)


_PARTS = st.fixed_dictionaries(
    {
        "changed": st.lists(st.sampled_from([SOURCE, CACHE, "/b"])),
        "processes": st.lists(st.just("7 node (ran)")),
        "unsure": st.lists(st.just("torn")),
        "stateful_running": st.integers(0, 3),
    }
)


def _keeps(turn_class: TurnClass) -> set[str]:
    """Return what a turn of this class keeps."""
    return {
        TurnClass.STATELESS: set[str](),
        TurnClass.FILESYSTEM: {"files"},
        TurnClass.PROCESS: {"processes"},
        TurnClass.FULL: {"files", "processes"},
    }[turn_class]


@given(_PARTS, _PARTS)
def test_more_evidence_never_keeps_less(some: dict[str, list[str]], more: dict[str, list[str]]) -> None:
    both = {key: some[key] + more[key] for key in some}
    before = classify(Evidence(**some), CACHES)  # type: ignore[arg-type]
    after = classify(Evidence(**both), CACHES)  # type: ignore[arg-type]
    assert _keeps(before.turn_class) <= _keeps(after.turn_class)


@given(_PARTS)
def test_unsure_is_never_stateless(parts: dict[str, list[str]]) -> None:
    decision = classify(Evidence(**{**parts, "unsure": ["torn"]}), CACHES)  # type: ignore[arg-type]
    assert "files" in _keeps(decision.turn_class)
    assert "torn" in decision.reason
