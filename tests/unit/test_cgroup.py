"""Cgroups of the host: finding a container's own, freezing and thawing it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from turnkeep.errors import CaptureFailed, SandboxGone, Unsupported
from turnkeep.runtime.cgroup import Cgroup, find_cgroup

from tests.unit.cgroups import PATIENCE_S, Group


def test_a_frozen_process_does_nothing_until_it_is_thawed(group: Group) -> None:
    tenant = group.add()
    tenant.ask()
    assert tenant.answered(PATIENCE_S)
    group.cgroup.freeze(5)
    assert group.cgroup.is_frozen()
    tenant.ask()
    assert not tenant.answered(0.05)
    group.cgroup.thaw()
    assert tenant.answered(PATIENCE_S)
    assert not group.cgroup.is_frozen()
    group.cgroup.thaw()
    assert not group.cgroup.is_frozen()


def test_freezing_reaches_what_is_below(group: Group) -> None:
    nested = group.cgroup.freezer / "nested"
    nested.mkdir()
    tenant, own = group.add(), group.add()
    (nested / "cgroup.procs").write_text(str(tenant.pid))
    assert sorted(group.cgroup.pids()) == sorted([tenant.pid, own.pid])
    group.cgroup.freeze(5)
    tenant.ask()
    assert not tenant.answered(0.05)
    group.cgroup.thaw()
    assert tenant.answered(PATIENCE_S)


def test_an_empty_cgroup_freezes(group: Group) -> None:
    assert group.cgroup.pids() == []
    group.cgroup.freeze(5)
    assert group.cgroup.is_frozen()


def test_processor_time_grows_and_outlives_its_process(group: Group) -> None:
    before = group.cgroup.usage_ns()
    tenant = group.add()
    for _ in range(200):
        tenant.ask()
        assert tenant.answered(PATIENCE_S)
    used = group.cgroup.usage_ns()
    assert used > before
    tenant.process.kill()
    tenant.process.communicate()
    assert group.cgroup.usage_ns() >= used


def test_a_containers_own_is_found(group: Group) -> None:
    found = find_cgroup(group.add().pid, group.id)
    assert found == group.cgroup
    assert set(found.folders) == set(group.folders)


def test_what_is_held_stands_still_while_newcomers_run(group: Group) -> None:
    held = group.add()
    group.cgroup.freeze(5)
    group.cgroup.hold()
    newcomer, late = group.add(), group.add()
    newcomer.ask()
    assert newcomer.answered(PATIENCE_S)
    group.cgroup.hold_more([late.pid])
    assert sorted(group.cgroup.held_pids()) == sorted([held.pid, late.pid])
    for tenant in (held, late):
        tenant.ask()
        assert not tenant.answered(0.05)
    group.cgroup.let_go()
    assert held.answered(PATIENCE_S)
    assert late.answered(PATIENCE_S)
    assert group.cgroup.held_pids() == []
    group.cgroup.let_go()


def test_a_containers_own_is_found_from_below(group: Group) -> None:
    """Its init moved itself down: the rest of the container has to stand still, too."""
    tenant = group.add()
    for folder in group.folders:
        nested = folder / "init"
        nested.mkdir()
        (nested / "cgroup.procs").write_text(str(tenant.pid))
    assert find_cgroup(tenant.pid, group.id) == group.cgroup


def test_a_cgroup_that_is_not_named_after_it_is_refused(group: Group) -> None:
    with pytest.raises(Unsupported, match="is not named after it") as raised:
        find_cgroup(group.add().pid, "f" * 64)
    assert raised.value.object == "f" * 12


def test_a_process_of_the_host_is_refused() -> None:
    """It is in the root cgroup, or in a service's: freezing that would stop the host."""
    with pytest.raises(Unsupported, match="is not named after it"):
        find_cgroup(os.getpid(), "f" * 64)


def test_a_process_that_is_gone() -> None:
    with pytest.raises(SandboxGone):
        find_cgroup(999999999, "f" * 64)


def test_a_cgroup_that_is_gone(make_group: Callable[..., Group]) -> None:
    group = make_group()
    gone = Cgroup(group.cgroup.version, group.cgroup.freezer / "gone", group.cgroup.freezer / "gone")
    gone.thaw()
    assert gone.pids() == []
    for call in (gone.is_frozen, gone.usage_ns, lambda: gone.freeze(1)):
        with pytest.raises(SandboxGone):
            call()


@pytest.mark.parametrize("timeout_s", [0, 0.01])
def test_what_does_not_freeze_is_thawed(tmp_path: Path, timeout_s: float) -> None:
    """Plain files for the controls: a task that cannot be stopped is hard to come by."""
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    stuck = Cgroup(2, tmp_path, tmp_path)
    with pytest.raises(CaptureFailed, match="did not freeze within"):
        stuck.freeze(timeout_s)
    assert (tmp_path / "cgroup.freeze").read_text() == "0"


def test_a_v1_freeze_is_written_again_until_it_is_there(tmp_path: Path) -> None:
    state = tmp_path / "freezer.state"
    state.write_text("FREEZING")
    Cgroup(1, tmp_path, tmp_path).freeze(1)
    assert state.read_text() == "FROZEN"
    Cgroup(1, tmp_path, tmp_path).thaw()
    assert state.read_text() == "THAWED"


EXECUTES = """
import os, sys, threading, time
for _ in range(60):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
os.execv(sys.executable, [sys.executable, "-S", "-c", os.environ["PROGRAM"]])
"""


def test_a_process_whose_threads_die_for_an_exec_freezes(group: Group) -> None:
    """On v1 it waits for threads that are frozen, and cannot be frozen itself; waiting does not end that."""
    command = [sys.executable, "-S", "-c", EXECUTES]
    with subprocess.Popen(command, env={**os.environ, "PROGRAM": EXECUTES}) as process:
        try:
            (group.cgroup.freezer / "cgroup.procs").write_text(str(process.pid))
            for _ in range(150):
                group.cgroup.freeze(PATIENCE_S)
                assert group.cgroup.is_frozen()
                group.cgroup.thaw()
            assert process.poll() is None
        finally:
            process.kill()
