"""kill -9 of the daemon and of CRIU while processes are dumped, restored and forked.

The moment is found by looking, not by waiting: a process of the sandbox that is
traced is being dumped; a CRIU with children is restoring.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from turnkeep.client.sync import Client
from turnkeep.errors import TurnkeepError
from turnkeep.model import Fidelity, TurnState
from turnkeep.runtime.cgroup import find_cgroup

from tests.e2e.confined import everyone, host_pid
from tests.e2e.exhibits import Exhibit, checkpoint_of, keep
from tests.e2e.harness import Box, Daemon, turn, wait_until

# Enough memory that a dump or a restore can be met in the act.
BALLAST = """
ballast, count = bytearray(os.urandom(1 << 20)) * 64, [1]
child = worker(lambda word: [os.getpid(), len(ballast)])
show(lambda: [count, child("?"), ballast[::99999].hex()[:64]], lambda: count.append(2))
"""


FREEZERS = {"freezer.state": "THAWED", "cgroup.freeze": "0"}


def _fields(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def is_criu(pid: int) -> bool:
    """Whether it runs the loader that CRIU is started through. CRIU gives itself other titles."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe").endswith("/ld.so")
    return False


def _children(pid: int) -> list[int]:
    found: list[int] = []
    # Each thread lists those that it started itself. Any may end meanwhile.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, task.read_text().split())
    return found


def criu_processes(daemon: Daemon) -> list[int]:
    """Return the CRIUs that work for a daemon, by their pids on the host."""
    assert daemon.process is not None
    found, left = [], [daemon.process.pid]
    while left:
        children = _children(left.pop())
        found += [each for each in children if is_criu(each)]
        left += [each for each in children if each not in found]
    return found


def dumping(daemon: Daemon, pid: int) -> Callable[[], int]:
    """Return a condition: the CRIU that traces this process (a pid on the host), 0 for none."""

    def tracer() -> int:
        number = int(_fields(pid).get("TracerPid", "0"))
        return number if number and number in criu_processes(daemon) else 0

    return tracer


def restoring(daemon: Daemon, pid: int = 0, elsewhere: Box | None = None) -> Callable[[], int]:
    """Return a condition: the CRIU that restores, 0 for none.

    It has children, and whom it brings back (a pid on the host) is no longer
    there; or it works in another container than `elsewhere`.
    """
    namespace = os.stat(f"/proc/{elsewhere.state()['Pid']}/ns/pid").st_ino if elsewhere else 0

    def there(criu: int) -> bool:
        with contextlib.suppress(OSError):
            return not namespace or os.stat(f"/proc/{criu}/ns/pid").st_ino != namespace
        return False

    def parent() -> int:
        if pid and _fields(pid).get("State", "Z")[0] not in "ZX":
            return 0
        return next((each for each in criu_processes(daemon) if _children(each) and there(each)), 0)

    return parent


def met(condition: Callable[[], int], over: Callable[[], bool]) -> int:
    """Look, without any pause, until the condition holds; 0 if what it is part of is over before."""
    while not (found := condition()):
        if over():
            return 0
    return found


def in_background(daemon: Daemon, work: Callable[[Client], Any]) -> tuple[threading.Thread, list[Any]]:
    """Have a client of its own work; the list holds its result, or its error, in the end."""
    results: list[Any] = []

    def run() -> None:
        try:
            with daemon.connect(retry_s=0) as tk:
                results.append(work(tk))
        except TurnkeepError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def _runs(box: Box) -> bool:
    cgroup = find_cgroup(box.state()["Pid"], box.container.id or "")
    held = list(cgroup.freezer.glob("turnkeep-held*"))
    return not cgroup.is_frozen() and not held


def nothing_is_left(box: Box) -> None:
    """Make sure that nothing is frozen, held or traced, and that no CRIU is in the sandbox."""
    wait_until(lambda: _runs(box), "nothing is frozen or held")

    def free() -> bool:
        return all(_fields(host).get("TracerPid", "0") == "0" for host in everyone(box).values())

    wait_until(free, "nothing is traced")
    wait_until(lambda: not any(is_criu(host) for host in everyone(box).values()), "no CRIU")
    assert box.sh("echo alive") == "alive\n"


@pytest.fixture
def daemon(own_daemon: Daemon) -> Daemon:
    """Each of these tests kills its own."""
    return own_daemon


@pytest.fixture(autouse=True)
def no_captive(box: Box) -> Iterator[None]:
    """Let run what a failed test left frozen: the engine could not remove it."""
    yield
    for container in box.container.client.containers.list(ignore_removed=True):  # type: ignore[union-attr]
        if (container.name or "").startswith(box.name):
            cgroup = find_cgroup(container.attrs["State"]["Pid"], container.id or "")
            for folder in (cgroup.freezer, *cgroup.freezer.glob("turnkeep-held*")):
                file = next(folder / name for name in FREEZERS if (folder / name).exists())
                file.write_text(FREEZERS[file.name])


@pytest.fixture
def exhibit(box: Box, daemon: Daemon) -> Exhibit:
    """A process with much memory and a child, in an attached sandbox."""
    with daemon.connect() as tk:
        tk.attach(box.name)
    return Exhibit(box, BALLAST)


def _first(box: Box, daemon: Daemon) -> int:
    """Take a turn that holds the processes."""
    with daemon.connect() as tk:
        return keep(box, tk.sandbox(box.name), tk).number


def _all_restore(box: Box, daemon: Daemon, exhibit: Exhibit, numbers: list[int], before: Any) -> None:
    with daemon.connect() as tk:
        sandbox = tk.sandbox(box.name)
        assert tk.check().ok
        for number in numbers:
            sandbox.restore(turn=number)
            assert exhibit.look() == before
        nothing_is_left(box)


def test_a_kill_of_the_daemon_in_a_dump(daemon: Daemon, box: Box, exhibit: Exhibit) -> None:
    before = exhibit.look()
    first = _first(box, daemon)
    pid = host_pid(box, exhibit.pid)
    exhibit.look()
    worker, results = in_background(daemon, lambda tk: turn(box, tk.sandbox(box.name), "echo 2 > /root/file"))
    assert met(dumping(daemon, pid), lambda: bool(results)), f"the dump was not met: {results}"
    daemon.kill()
    worker.join()
    nothing_is_left(box)
    assert exhibit.look() == before, "who was dumped runs on"
    daemon.start()
    with daemon.connect() as tk:
        assert tk.sandbox(box.name).wait(first + 1).state is TurnState.DURABLE
    exhibit.change()
    _all_restore(box, daemon, exhibit, [first, first + 1, first], before)


def test_a_kill_of_the_daemon_in_a_restore(daemon: Daemon, box: Box, exhibit: Exhibit) -> None:
    before = exhibit.look()
    first = _first(box, daemon)
    exhibit.change()
    with daemon.connect() as tk:
        second = keep(box, tk.sandbox(box.name), tk).number
    after = exhibit.look()
    pid = host_pid(box, exhibit.pid)
    worker, results = in_background(daemon, lambda tk: tk.sandbox(box.name).restore(turn=first))
    assert met(restoring(daemon, pid), lambda: bool(results)), f"the restore was not met: {results}"
    daemon.kill()
    worker.join()
    daemon.start()
    nothing_is_left(box)
    _all_restore(box, daemon, exhibit, [first], before)
    _all_restore(box, daemon, exhibit, [second], after)
    _all_restore(box, daemon, exhibit, [first], before)


def test_a_kill_of_the_daemon_in_a_fork(
    daemon: Daemon, box: Box, exhibit: Exhibit, engine: docker.DockerClient
) -> None:
    before = exhibit.look()
    first = _first(box, daemon)
    worker, results = in_background(daemon, lambda tk: tk.sandbox(box.name).fork(2))
    assert met(restoring(daemon, elsewhere=box), lambda: bool(results)), f"the fork was not met: {results}"
    daemon.kill()
    worker.join()
    nothing_is_left(box)
    assert exhibit.look() == before, "the original goes on untouched"
    daemon.start()
    names = [each.name for each in engine.containers.list(all=True, ignore_removed=True)]
    with daemon.connect() as tk:
        known = {each.name for each in tk.sandboxes()}
    halves = [name for name in names if name and name.startswith(f"{box.name}-") and name not in known]
    assert halves == [], "a copy that is not finished is not left"
    exhibit.change()
    _all_restore(box, daemon, exhibit, [first], before)


def test_a_kill_of_criu_in_a_dump(daemon: Daemon, box: Box, exhibit: Exhibit) -> None:
    before = exhibit.look()
    first = _first(box, daemon)
    pid = host_pid(box, exhibit.pid)
    exhibit.look()
    worker, results = in_background(daemon, lambda tk: turn(box, tk.sandbox(box.name), "echo 2 > /root/file"))
    criu = met(dumping(daemon, pid), lambda: bool(results))
    assert criu, f"the dump was not met: {results}"
    os.kill(criu, signal.SIGKILL)
    worker.join()
    [info] = results
    ended = not box.state()["Running"]
    if isinstance(info, TurnkeepError):
        # It may have had code of its own in the container's init just then, which nobody takes out.
        assert ended or "CRIU" in str(info), info
        numbers = [first, first]
    else:
        with daemon.connect() as tk:
            checkpoint = checkpoint_of(tk, info)
        # It is tried again, or said to be missing.
        whole = checkpoint.fidelity is Fidelity.COMPLETE
        assert whole or any("CRIU" in each for each in checkpoint.not_captured)
        numbers = [first, info.number, first] if whole else [first, first]
        trees = checkpoint.processes.trees if checkpoint.processes else ()
        there = any(line.pid == exhibit.pid for tree in trees for line in tree.processes)
        assert there or not whole, "complete, without the process that was being dumped"
    if not ended:
        nothing_is_left(box)
    _all_restore(box, daemon, exhibit, numbers, before)
    with daemon.connect() as tk:
        assert turn(box, tk.sandbox(box.name), "echo 3 > /root/file").state is TurnState.DURABLE


def test_a_kill_of_criu_in_a_restore(daemon: Daemon, box: Box, exhibit: Exhibit) -> None:
    before = exhibit.look()
    first = _first(box, daemon)
    exhibit.change()
    after = exhibit.look()
    box.sh("echo later > /root/file")
    pid = host_pid(box, exhibit.pid)
    worker, results = in_background(daemon, lambda tk: tk.sandbox(box.name).restore(turn=first))
    criu = met(restoring(daemon, pid), lambda: bool(results))
    assert criu, f"the restore was not met: {results}"
    os.kill(criu, signal.SIGKILL)
    worker.join()
    assert isinstance(results[0], TurnkeepError), results
    assert "CRIU" in str(results[0]), results
    nothing_is_left(box)
    assert exhibit.look() == after, "the sandbox is where it was"
    assert box.sh("cat /root/file") == "later\n"
    _all_restore(box, daemon, exhibit, [first, first], before)
