"""What is said of the host, from what was seen of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from turnkeep.coordinator import examine
from turnkeep.model import Verdict
from turnkeep.process.features import Feature
from turnkeep.process.selftest import NOBODY, Trial


def test_the_runtime(tmp_path: Path) -> None:
    absent = examine._runtime({"runc": {"path": "runc"}})
    assert (absent.verdict, absent.fix) == (Verdict.DEGRADED, "turnkeep install")
    gone = examine._runtime({"turnkeep": {"path": str(tmp_path / "gone")}})
    assert (gone.verdict, gone.fix) == (Verdict.DEGRADED, "turnkeep install")
    program = tmp_path / "turnkeep-runtime"
    program.touch()
    there = examine._runtime({"turnkeep": {"path": str(program)}})
    assert (there.verdict, there.fix) == (Verdict.OK, "")
    assert str(program) in there.detail
    assert examine._runtime({"turnkeep": {}}).detail == "registered with the engine"


def test_a_trial() -> None:
    passed = examine._trial(Trial(uid=0, stopped_ns=20_000_000, total_ns=300_000_000))
    assert (passed.what, passed.verdict) == ("self-test", Verdict.OK)
    assert "20 ms stopped" in passed.detail
    failed = examine._trial(Trial(uid=0, error="no", hint="do"))
    assert (failed.verdict, failed.detail, failed.fix) == (Verdict.MISSING, "a process of root: no", "do")
    others = examine._trial(Trial(uid=NOBODY, error="no", hint="do"))
    assert (others.what, others.verdict) == ("other users", Verdict.DEGRADED)


def test_what_the_kernel_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    features = (
        Feature(name="clone3", present=True, why="", needs=""),
        Feature(name="kcmp", present=False, why="it is looked with", needs="a kernel with it"),
    )
    monkeypatch.setattr(examine, "look_for_features", lambda: features)
    monkeypatch.setattr(examine, "missing_capabilities", lambda: ("CAP_SYS_PTRACE",))
    there, absent, rights = examine._kernel()
    assert (there.verdict, there.detail) == (Verdict.OK, "clone3")
    assert (absent.verdict, absent.fix) == (Verdict.MISSING, "it needs a kernel with it")
    assert rights.verdict is Verdict.MISSING
    assert "CAP_SYS_PTRACE" in rights.detail
