"""What processes did, seen on real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from turnkeep.watch.processes import (
    Process,
    ProcessSample,
    Thread,
    activity,
    quiet_since,
    sample,
    stateful_test,
)

from tests.unit.cgroups import PATIENCE_S, Group, Tenant


def anything(process: Process) -> bool:
    """Count every process as stateful."""
    return True


@pytest.fixture
def start() -> Iterator[Callable[..., Tenant]]:
    """Starts processes; they are ended afterwards."""
    started: list[Tenant] = []

    def begin(*command: str) -> Tenant:
        process = subprocess.Popen(
            command or ("cat",), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        started.append(Tenant(process))
        # It sleeps in its first read only after it has answered once.
        if not command:
            started[-1].ask()
            assert started[-1].answered(PATIENCE_S)
        return started[-1]

    yield begin
    for tenant in started:
        tenant.process.kill()
        tenant.process.communicate()


def asleep(*tenants: Tenant) -> ProcessSample:
    """Return a sample of processes that sleep, and that nobody wakes."""
    while not all(_sleeps(tenant.pid) for tenant in tenants):
        pass
    return look(*tenants)


def _sleeps(pid: int) -> bool:
    # The state alone says "S" a moment before the thread is off the processor.
    with open(f"/proc/{pid}/syscall") as file:
        return file.read() != "running\n"


def look(*tenants: Tenant) -> ProcessSample:
    """Return a sample of these processes."""
    return sample([tenant.pid for tenant in tenants], lambda: 0)


def test_a_process_as_it_is(start: Callable[..., Tenant]) -> None:
    tenant = start("sleep", "1000")
    found = look(tenant)
    while [process.command for process in found.processes.values()] != [("sleep", "1000")]:
        found = look(tenant)  # it has not called exec yet
    (process,) = found.processes.values()
    assert process.pid == tenant.pid
    assert process.parent == os.getpid()
    assert process.threads.keys() == {tenant.pid}
    assert str(process) == f"{tenant.pid} sleep"


def test_what_sleeps_did_nothing(start: Callable[..., Tenant]) -> None:
    tenants = start(), start()
    before = asleep(*tenants)
    after = look(*tenants)
    assert not activity(before, after, anything)
    assert quiet_since(before, after, anything)


def test_one_that_was_born(start: Callable[..., Tenant]) -> None:
    old = start()
    before = asleep(old)
    new = start()
    after = asleep(old, new)
    assert activity(before, after, anything).describe() == (f"{new.pid} cat (born)",)
    assert not quiet_since(before, after, anything)


def test_one_that_died(start: Callable[..., Tenant]) -> None:
    tenant = start()
    before = asleep(tenant)
    tenant.process.kill()
    # Also while nobody has waited for it.
    os.waitid(os.P_PID, tenant.pid, os.WEXITED | os.WNOWAIT)
    after = look(tenant)
    assert activity(before, after, anything).describe() == (f"{tenant.pid} cat (died)",)
    assert not quiet_since(before, after, anything)


def test_one_that_ran(start: Callable[..., Tenant]) -> None:
    tenant = start()
    before = asleep(tenant)
    for _ in range(3):
        tenant.ask()
        assert tenant.answered(PATIENCE_S)
    after = asleep(tenant)
    assert activity(before, after, anything).describe() == (f"{tenant.pid} cat (ran)",)
    assert not quiet_since(before, after, anything)


def test_one_that_never_sleeps(start: Callable[..., Tenant]) -> None:
    tenant = start(sys.executable, "-c", "while True: pass")
    before = look(tenant)
    while not activity(before, look(tenant), anything).ran:
        pass


def test_one_that_started_a_thread(start: Callable[..., Tenant]) -> None:
    script = "import sys, threading; sys.stdin.read(1); threading.Thread(target=sys.stdin.read).start()"
    tenant = start(sys.executable, "-c", script)
    before = look(tenant)
    (process,) = before.processes.values()
    tenant.ask()
    tenant.asked = 0
    after = look(tenant)
    while len(next(iter(after.processes.values())).threads) != 2:
        after = look(tenant)
    (later,) = after.processes.values()
    assert process.threads.keys() < later.threads.keys()
    # Though no counter of the first thread moved.
    still = ProcessSample({process.identity: replace(later, threads={**later.threads, **process.threads})})
    assert activity(before, still, anything).ran
    assert not quiet_since(before, still, anything)


def test_a_pid_that_was_used_again(start: Callable[..., Tenant]) -> None:
    tenant = start()
    before = asleep(tenant)
    (process,) = before.processes.values()
    other = replace(process, started=process.started + 1)
    found = activity(before, ProcessSample({other.identity: other}), anything)
    assert (found.born, found.died) == ((other,), (process,))


def test_what_is_not_stateful_does_not_count(start: Callable[..., Tenant]) -> None:
    tenant = start()
    before = asleep(tenant)
    tenant.ask()
    tenant.ask()
    assert not activity(before, look(), lambda process: False)
    assert not activity(before, look(tenant), lambda process: False)


def test_a_freeze_alone_is_no_run(group: Group) -> None:
    """Freezing and thawing wake a thread; that is not its own doing.

    On a busy host it may be preempted on the way, which counts as having run: hence several tries.
    """
    tenant = group.add()
    tenant.ask()
    assert tenant.answered(PATIENCE_S)

    def is_quiet() -> bool:
        before = asleep(tenant)
        group.cgroup.freeze(5)
        frozen = look(tenant)
        group.cgroup.thaw()
        unmoved = quiet_since(before, frozen, lambda process: False)
        return unmoved and not activity(frozen, asleep(tenant), anything)

    assert any(is_quiet() for _ in range(20))


def test_processor_time_of_one_that_came_and_went() -> None:
    sleeper = Process(1, 1, "x", (), 0, {1: Thread(5, 1000)})
    before = ProcessSample({sleeper.identity: sleeper}, 1000)
    assert quiet_since(before, replace(before, usage_ns=6000), anything)
    assert not quiet_since(before, replace(before, usage_ns=6001), anything)
    ran = replace(sleeper, threads={1: Thread(5, 9000)})
    assert quiet_since(before, ProcessSample({ran.identity: ran}, 9000), anything)


INIT = Process(10, 1, "sleep", ("sleep", "infinity"), 0, {})


@pytest.mark.parametrize(
    ("process", "stateful"),
    [
        (INIT, False),
        (replace(INIT, name="node", command=("node", "a.js")), True),
        (replace(INIT, pid=11, parent=10), False),
        (replace(INIT, pid=11, parent=10, command=("sleep", "5")), True),
        (replace(INIT, pid=11, parent=12), True),
        (replace(INIT, pid=11, parent=10, name="node"), True),
        (replace(INIT, pid=13, parent=0, name="curl", command=("curl", "localhost")), False),
        (replace(INIT, pid=13, parent=0, name="curl", command=("curl", "other")), True),
    ],
)
def test_what_a_start_brings_back(process: Process, stateful: bool) -> None:
    test = stateful_test(10, ("sleep", "infinity"), ("sleep", "tini"), ("curl", "localhost"))
    assert test(process) is stateful


def test_without_a_health_check_nothing_is_one() -> None:
    empty = replace(INIT, pid=13, parent=0, name="x", command=())
    assert stateful_test(10, ("sleep",), ("sleep",))(empty)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "\\xff\\xfe",
        ),
        "a b) S 1",
        "new\\nline",
    ],
)
def test_a_name_that_is_meant_to_harm(start: Callable[..., Tenant], name: str) -> None:
    """A process names itself. What is made of it goes into messages, which are UTF-8."""
    script = (
        f"import ctypes, sys; ctypes.CDLL(None).prctl(15, b'{name}'); print(flush=True); sys.stdin.read()"
    )
    tenant = start(sys.executable, "-c", script)
    tenant.asked = 1
    assert tenant.answered(PATIENCE_S)
    before = ProcessSample()
    (text,) = activity(before, look(tenant), anything).describe()
    text.encode("utf-8")
    assert text.startswith(f"{tenant.pid} ")
