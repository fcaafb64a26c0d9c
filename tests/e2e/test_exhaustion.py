"""What the daemon needs runs out: a clear error, the sandbox runs, and later all goes on."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from turnkeep.client.sync import Client, Sandbox
from turnkeep.errors import EngineUnavailable, TurnkeepError
from turnkeep.model import Fidelity, TurnState

from tests.conftest import IMAGE
from tests.e2e.harness import Box, Daemon, make_box, turn, wait_until
from tests.runtime.engines import OwnEngine, own_engine

LARGE = "import os, time; kept = os.urandom(40000000); open('/ready', 'w'); time.sleep(1000)"


def _fails_clearly(box: Box, sandbox: Sandbox, command: str) -> TurnkeepError:
    """Run a command as a turn that cannot be kept; the sandbox runs on."""
    with pytest.raises(TurnkeepError) as caught:
        turn(box, sandbox, command)
    assert box.freezer() == "THAWED"
    assert box.sh("echo alive") == "alive\n"
    return caught.value


def _goes_on(tk: Client, box: Box, sandbox: Sandbox) -> None:
    """The daemon keeps turns again, without a restart, and what was kept before is whole."""
    with sandbox.turn(label="after", take_over=True) as after:
        box.sh("echo after > /a")
    info = after.wait()
    assert info is not None
    assert info.state is TurnState.DURABLE
    assert tk.check().ok
    sandbox.restore(turn=1)
    assert box.sh("cat /a") == "first\n"
    sandbox.restore(turn=info.number)
    assert box.sh("cat /a") == "after\n"


def test_no_descriptors_are_left(own_daemon: Daemon, box: Box) -> None:
    assert own_daemon.process is not None
    pid = own_daemon.process.pid
    with own_daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "echo first > /a")
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # The numbers in use stay; hardly another one can be had.
        used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 2, limits[1]))
        try:
            error = _fails_clearly(box, sandbox, "mkdir -p /d/e/f; echo second | tee /a /d/e/f/g")
            assert "Too many open files" in error.message
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        _goes_on(tk, box, sandbox)


def test_no_inodes_are_left(small_disk: Callable[[str], Path], box: Box) -> None:
    few_inodes = small_disk("size=64m,nr_inodes=300")
    daemon = Daemon(few_inodes)
    daemon.start()
    ballast = few_inodes / "ballast"
    ballast.mkdir()
    try:
        with daemon.connect() as tk:
            sandbox = tk.attach(box.name)
            turn(box, sandbox, "echo first > /a")
            with contextlib.suppress(OSError):
                for number in range(300):
                    (ballast / str(number)).touch()
            assert os.statvfs(few_inodes).f_favail == 0
            error = _fails_clearly(box, sandbox, "echo second > /a")
            assert "inodes" in error.message
            shutil.rmtree(ballast)
            _goes_on(tk, box, sandbox)
    finally:
        daemon.stop()


def test_a_store_that_becomes_read_only(own_daemon: Daemon, box: Box) -> None:
    store = str(own_daemon.state / "store")
    with own_daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "echo first > /a")
        subprocess.run(["mount", "--bind", store, store], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", store], check=True)
            error = _fails_clearly(box, sandbox, "echo second > /a")
            assert "Read-only file system" in error.message
        finally:
            subprocess.run(["umount", store], check=True)
        _goes_on(tk, box, sandbox)


@pytest.fixture
def small_memory(own_daemon: Daemon) -> Iterator[Path]:
    """A cgroup that gives the daemon some 200 MiB more than it begins with."""
    memory = Path("/sys/fs/cgroup/memory")
    if not (memory / "memory.limit_in_bytes").exists():
        pytest.skip("needs the memory controller of cgroup v1")
    assert own_daemon.process is not None
    process = psutil.Process(own_daemon.process.pid)
    group = memory / f"tk-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    home = memory / _memory_group(process.pid).lstrip("/")
    try:
        (group / "memory.limit_in_bytes").write_text(str(process.memory_info().rss + (200 << 20)))
        for each in (process, *process.children(recursive=True)):
            (group / "cgroup.procs").write_text(str(each.pid))
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (home / "cgroup.procs").write_text(pid)
        group.rmdir()


def _memory_group(pid: int) -> str:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return path
    raise AssertionError("no memory controller")


def test_large_turns_fit_into_little_memory(own_daemon: Daemon, box: Box, small_memory: Path) -> None:
    """What a turn changes may be larger than what the daemon may use; page cache does not count."""
    with own_daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "echo first > /a")
        large = "head -c 400000000 /dev/urandom > /big; for n in $(seq 3000); do echo $n > /srv/$n; done"
        info = turn(box, sandbox, large)
        assert info.state is TurnState.DURABLE
        digest = box.sh("sha256sum /big")
        box.sh("rm /big")
        sandbox.restore(turn=info.number)
        assert box.sh("sha256sum /big") == digest
        _goes_on(tk, box, sandbox)
    said = dict(line.split() for line in (small_memory / "memory.oom_control").read_text().splitlines())
    assert said.get("oom_kill", "0") == "0"


def test_images_that_do_not_fit(small_disk: Callable[[str], Path], box: Box) -> None:
    """The images of processes are larger than what is left."""
    daemon = Daemon(small_disk("size=24m"))
    daemon.configure("auto_attach = false\n[process]\nimage_bytes = 65536")
    daemon.start()
    try:
        with daemon.connect() as tk:
            sandbox = tk.attach(box.name)
            turn(box, sandbox, "echo first > /a")
            box.spawn("python3", "-c", LARGE)
            wait_until(lambda: box.run(["test", "-e", "/ready"])[0] == 0, "the process has its memory")
            info = turn(box, sandbox, "echo second > /a")
            assert info.state is TurnState.DURABLE
            assert box.freezer() == "THAWED"
            kept = sandbox.find_checkpoint(info.number)
            assert kept.fidelity is Fidelity.FILES_ONLY
            assert any("No space left" in each for each in kept.not_captured), kept.not_captured
            assert "python3 -c" in box.sh("ps ax")
            assert not list((daemon.state / "run").glob("images-*"))
            box.sh("pkill -f 'time.sleep'")
            _goes_on(tk, box, sandbox)
    finally:
        daemon.stop()


@pytest.fixture
def fickle() -> Iterator[OwnEngine]:
    """An engine whose containers outlive it."""
    with own_engine() as engine:
        settings = json.loads(engine.daemon_json.read_text())
        engine.daemon_json.write_text(json.dumps({**settings, "live-restore": True}))
        os.kill(engine.pid, signal.SIGHUP)
        wait_until(lambda: engine.client.info()["LiveRestoreEnabled"], "containers outlive their engine")
        yield engine


def test_an_engine_that_hangs_and_is_started_anew(
    fickle: OwnEngine, start_daemon: Callable[..., Daemon]
) -> None:
    box = make_box(fickle.client, IMAGE)
    daemon = start_daemon(f'auto_attach = false\ndocker_host = "{fickle.host}"')
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "echo first > /a")
        inside = Path(f"/proc/{box.state()['Pid']}/root")
        os.kill(fickle.pid, signal.SIGSTOP)
        try:
            # Keeping a turn needs no engine.
            with sandbox.turn(label="while it hangs") as hung:
                (inside / "a").write_text("hung\n")
            info = hung.wait()
            assert info is not None
            assert info.state is TurnState.DURABLE
            # Making a container does: what asks for one as the engine dies fails, and says so.
            errors: list[TurnkeepError] = []
            asked = threading.Thread(target=_fork, args=(daemon, box.name, errors))
            asked.start()
        finally:
            os.kill(fickle.pid, signal.SIGKILL)
        asked.join()
        assert [type(error) for error in errors] == [EngineUnavailable]
        assert (inside / "a").read_text() == "hung\n"
        assert any("does not answer" in each for each in tk.status().degraded)
        fickle.client.close()
        fickle.start()
        wait_until(lambda: not tk.status().degraded, "the daemon has found the engine again")
        box.container = fickle.client.containers.get(box.name)
        _goes_on(tk, box, sandbox)
        (copy,) = sandbox.fork()
        assert Box(fickle.client.containers.get(copy.name)).sh("cat /a") == "after\n"


def _fork(daemon: Daemon, name: str, errors: list[TurnkeepError]) -> None:
    with daemon.connect(retry_s=0) as tk:
        try:
            tk.sandbox(name).fork()
        except TurnkeepError as error:
            errors.append(error)
