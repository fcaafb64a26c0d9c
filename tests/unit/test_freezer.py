"""The freezer and its watchdog: a sandbox runs again, whatever happens to who froze it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from turnkeep.errors import CaptureFailed, SandboxGone
from turnkeep.runtime.cgroup import Cgroup
from turnkeep.runtime.freezer import Freezer

from tests.unit.cgroups import PATIENCE_S, Group, ended, holder


@pytest.fixture
def freezer() -> Iterator[Freezer]:
    with Freezer() as opened:
        yield opened


def test_a_block_is_frozen_and_nothing_after_it(freezer: Freezer, group: Group) -> None:
    tenant = group.add()
    with freezer.frozen(group.cgroup, 30) as state:
        tenant.ask()
        assert not tenant.answered(0.05)
        state.check()
    assert tenant.answered(PATIENCE_S)
    assert state.ns > 50_000_000


def test_an_error_thaws(freezer: Freezer, group: Group) -> None:
    with pytest.raises(ZeroDivisionError), freezer.frozen(group.cgroup, 30):
        raise ZeroDivisionError
    assert not group.cgroup.is_frozen()


def test_what_was_paused_stays_so(freezer: Freezer, group: Group) -> None:
    tenant = group.add()
    group.cgroup.freeze(5)
    with freezer.frozen(group.cgroup, 0.01) as state:
        state.check()
    tenant.ask()
    assert not tenant.answered(0.3)
    assert group.cgroup.is_frozen()


def test_a_thaw_by_somebody_else_is_noticed(freezer: Freezer, group: Group) -> None:
    with freezer.frozen(group.cgroup, 30) as state:
        state.check()
        group.cgroup.thaw()
        with pytest.raises(CaptureFailed, match="was thawed"):
            state.check()


def test_a_freeze_over_its_budget_is_ended(freezer: Freezer, group: Group) -> None:
    tenant = group.add()
    with freezer.frozen(group.cgroup, 0.2) as state:
        tenant.ask()
        assert tenant.answered(PATIENCE_S)
        with pytest.raises(CaptureFailed):
            state.check()


def test_a_held_freeze_may_last(freezer: Freezer, group: Group) -> None:
    tenant = group.add()
    with freezer.frozen(group.cgroup, 0.1, hold=True) as state:
        tenant.ask()
        assert not tenant.answered(0.5)
        state.check()
    assert tenant.answered(PATIENCE_S)
    # The hold ended with its block.
    with freezer.frozen(group.cgroup, 0.1):
        tenant.ask()
        assert tenant.answered(PATIENCE_S)


def test_a_cgroup_that_is_gone(freezer: Freezer, group: Group) -> None:
    gone = Cgroup(group.cgroup.version, group.cgroup.freezer / "gone", group.cgroup.freezer)
    with pytest.raises(SandboxGone), freezer.frozen(gone, 1):
        pytest.fail("it is not frozen")


def test_who_is_killed_leaves_nothing_frozen(group: Group) -> None:
    tenant = group.add()
    with holder(group) as (process, watchdog):
        tenant.ask()
        assert not tenant.answered(0.05)
        process.send_signal(signal.SIGKILL)
        assert tenant.answered(PATIENCE_S)
        assert ended(watchdog)
    assert not group.cgroup.is_frozen()


def test_who_is_stopped_leaves_nothing_frozen(group: Group) -> None:
    tenant = group.add()
    with holder(group) as (process, _):
        tenant.ask()
        assert not tenant.answered(0.05)
        process.send_signal(signal.SIGSTOP)
        assert tenant.answered(PATIENCE_S)
        # And it finds out when it goes on.
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate("\n")
        assert said.startswith("the sandbox was thawed during the capture, which took longer than")


def test_a_restore_that_is_killed_leaves_it_frozen(group: Group) -> None:
    tenant = group.add()
    with holder(group, hold=True) as (process, watchdog):
        tenant.ask()
        process.send_signal(signal.SIGKILL)
        assert ended(watchdog)
    assert group.cgroup.is_frozen()
    assert not tenant.answered(0.05)
    group.cgroup.thaw()
    assert tenant.answered(PATIENCE_S)


def test_a_restore_that_is_stopped_leaves_it_frozen(group: Group) -> None:
    tenant = group.add()
    with holder(group, hold=True) as (process, _):
        tenant.ask()
        process.send_signal(signal.SIGSTOP)
        assert not tenant.answered(0.5)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate("\n")
        assert said == "still frozen\n"
    assert tenant.answered(PATIENCE_S)


def test_a_watchdog_that_was_killed_is_replaced(make_group: Callable[..., Group]) -> None:
    """Its orders are given to the next one, which thaws both when their owner dies."""
    groups = [make_group(), make_group()]
    tenants = [group.add() for group in groups]
    with holder(*groups, kill_watchdog=True) as (process, watchdog):
        for tenant in tenants:
            tenant.ask()
            assert not tenant.answered(0.05)
        process.send_signal(signal.SIGKILL)
        assert ended(watchdog)
        assert all(tenant.answered(PATIENCE_S) for tenant in tenants)


def test_the_next_watchdog_knows_what_is_frozen(freezer: Freezer, make_group: Callable[..., Group]) -> None:
    first, second = make_group(), make_group()
    tenant = first.add()
    with freezer.frozen(first.cgroup, 0.5):
        watchdog = os.pidfd_open(freezer.watchdog_pid)
        os.kill(freezer.watchdog_pid, signal.SIGKILL)
        assert ended(watchdog)
        os.close(watchdog)
        with freezer.frozen(second.cgroup, 30) as state:
            tenant.ask()
            # The first one's budget is over: only the new watchdog can know.
            assert tenant.answered(PATIENCE_S)
            state.check()


def test_many_at_once(freezer: Freezer, make_group: Callable[..., Group]) -> None:
    groups = [make_group() for _ in range(4)]
    for group in groups:
        group.add()
    failures: list[BaseException] = []

    def work(group: Group) -> None:
        try:
            for _ in range(50):
                with freezer.frozen(group.cgroup, 30) as state:
                    state.check()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not any(group.cgroup.is_frozen() for group in groups)


def test_the_watchdog_ends_with_its_freezer() -> None:
    with Freezer() as freezer:
        watchdog = os.pidfd_open(freezer.watchdog_pid)
    assert ended(watchdog, 0)
    os.close(watchdog)
    assert freezer.watchdog_pid == 0


def test_a_name_with_a_space_is_watched(make_group: Callable[..., Group]) -> None:
    """`docker run --cgroup-parent "a b"`."""
    group = make_group(below="turnkeep test")
    tenant = group.add()
    with holder(group) as (process, watchdog):
        tenant.ask()
        process.send_signal(signal.SIGKILL)
        assert ended(watchdog)
    assert tenant.answered(0.5)
