"""`turnkeep doctor`: what it says is so, and looking changes nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest
from turnkeep.client.sync import Client
from turnkeep.model import Fidelity, Finding, TurnState, Verdict

from tests.e2e.harness import LIMIT_S, TURNKEEP, Box, Daemon, turn, wait_until

HOST = ["daemon", "engine", "storage", "cgroups", "kernel", "space", "tracker", "features", "freezer", "criu"]
CAP_SYS_RESOURCE = 24

SLEEPER = "import time; time.sleep(100000)"
SEGMENT = "import ctypes; print(ctypes.CDLL(None).shmget(0, 4096, 0o1600), flush=True)"


def doctor(daemon: Daemon, *arguments: str, code: int = 0) -> list[Finding]:
    """Return what it found."""
    done = daemon.cli("doctor", *arguments, "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return [Finding.from_json(each) for each in json.loads(done.stdout)]


def only(findings: list[Finding], what: str, text: str = "") -> Finding:
    """Return the one finding about this that holds a text."""
    (found,) = [each for each in findings if each.what == what and text in each.detail]
    return found


def may_raise_limits() -> bool:
    """Whether this host's root has CAP_SYS_RESOURCE, which CRIU needs for other users."""
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) >> CAP_SYS_RESOURCE & 1)


def test_the_host(daemon: Daemon, engine: docker.DockerClient) -> None:
    found = doctor(daemon)
    assert [each.what for each in found] == [*HOST, "self-test", "other users", "runtime"]
    verdicts = {each.what: each.verdict for each in found}
    assert {what: verdicts[what] for what in [*HOST, "self-test"]} == dict.fromkeys(
        [*HOST, "self-test"], Verdict.OK
    )
    others = only(found, "other users")
    if may_raise_limits():
        assert others.verdict is Verdict.OK
    else:
        assert others.verdict is Verdict.DEGRADED
        assert "rlimit" in others.detail
        assert "CAP_SYS_RESOURCE" in others.fix
    known = "turnkeep" in engine.info()["Runtimes"]
    runtime = only(found, "runtime")
    assert runtime.verdict is (Verdict.OK if known else Verdict.DEGRADED)
    assert runtime.fix == ("" if known else "turnkeep install")


def test_the_self_test_is_done_once_unless_asked_for(daemon: Daemon) -> None:
    # Its detail has figures that hardly come out the same twice.
    first = only(doctor(daemon), "self-test")
    assert [only(doctor(daemon), "self-test") for _ in range(3)] == [first] * 3
    wait_until(lambda: only(doctor(daemon, "--self-test"), "self-test") != first, "it is done again")


def test_several_at_once(daemon: Daemon) -> None:
    with daemon.connect() as tk, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(tk.examine, self_test=True) for _ in range(4)]
        found = [each.result() for each in asked]
    assert {only(each, "self-test").verdict for each in found} == {Verdict.OK}
    assert {only(each, "freezer").verdict for each in found} == {Verdict.OK}


def test_for_people(daemon: Daemon, box: Box, tk: Client) -> None:
    tk.attach(box.name)
    said = daemon.cli("doctor", box.name).stdout.splitlines()
    assert [line.split()[0] for line in said if line.startswith(("container", "mounts", "processes"))] == [
        "container",
        "mounts",
        "processes",
    ]
    assert said[-1].split() == ["processes", "ok", "none", "holds", "state"]
    assert daemon.cli("doctor", "nobody", check=False).returncode == 3


def test_what_it_foretells_is_what_a_checkpoint_lacks(
    daemon: Daemon, tk: Client, make: Callable[..., Box], folder: Path
) -> None:
    box = make(volumes=[f"{folder}:/host"])
    sandbox = tk.attach(box.name)
    box.spawn("python3", "-c", SLEEPER)
    box.sh("mkfifo /tmp/f; setsid tail -f /dev/null <>/tmp/f >/dev/null 2>&1 &")
    box.spawn("sh", "-c", "exec tail -f /dev/null <>/tmp/f")
    wait_until(lambda: len(box.sh("pgrep -x tail", check=False).split()) == 2, "they run")
    found = doctor(daemon, box.name)
    assert box.freezer() == "THAWED"
    mount = only(found, "mounts", "/host (bind)")
    assert (mount.verdict, mount.fix) == (Verdict.DEGRADED, "label turnkeep.binds=/host covers it")
    assert only(found, "processes", "python3").verdict is Verdict.OK
    shared = [each for each in found if "tail" in each.detail]
    assert len(shared) == 2
    assert all(
        each.verdict is Verdict.DEGRADED and "a named pipe is shared" in each.detail for each in shared
    )
    checkpoint = sandbox.checkpoint()
    assert checkpoint.fidelity is Fidelity.PARTIAL
    lost = [each for each in checkpoint.not_captured if "a named pipe is shared" in each]
    assert len(lost) == 2
    assert any(each.startswith("/host") for each in checkpoint.not_captured)


def test_system_v_memory(daemon: Daemon, tk: Client, box: Box) -> None:
    tk.attach(box.name)
    box.spawn("python3", "-c", SLEEPER)
    box.sh(f"python3 -c '{SEGMENT}'")
    found = only(doctor(daemon, box.name), "processes", "python3")
    assert found.verdict is Verdict.DEGRADED
    assert "System V IPC: 1 shared memory segments" in found.detail


def test_an_init_with_state(daemon: Daemon, tk: Client, make: Callable[..., Box]) -> None:
    box = make(command=["python3", "-c", SLEEPER], init=False)
    tk.attach(box.name)
    found = only(doctor(daemon, box.name), "processes")
    assert found.verdict is Verdict.DEGRADED
    assert "the whole container" in found.detail
    assert "the container's own process holds state" in found.detail
    assert "--runtime turnkeep" in found.fix


def test_a_proc_that_is_not_the_kernels(daemon: Daemon, tk: Client, make: Callable[..., Box]) -> None:
    box = make(cap_add=["SYS_ADMIN"], security_opt=["seccomp=unconfined", "apparmor=unconfined"])
    tk.attach(box.name)
    box.spawn("python3", "-c", SLEEPER)
    box.sh("mount -t tmpfs none /proc")
    found = only(doctor(daemon, box.name), "processes", "python3")
    assert (found.verdict, "its /proc is not the kernel's own" in found.detail) == (Verdict.DEGRADED, True)


def test_a_container_that_does_not_run(daemon: Daemon, tk: Client, box: Box) -> None:
    # The engine cannot pause what the first checkpoint is freezing.
    tk.attach(box.name).checkpoint()
    box.container.pause()
    try:
        assert "paused" in only(doctor(daemon, box.name), "container").detail
        assert box.freezer() == "FROZEN"
    finally:
        box.container.unpause()
    box.container.stop(timeout=0)
    stopped = only(doctor(daemon, box.name), "container")
    assert (stopped.verdict, stopped.fix) == (Verdict.DEGRADED, f"docker start {box.name}")
    box.container.remove(force=True)
    assert only(doctor(daemon, box.name), "container").verdict is Verdict.DEGRADED


def test_it_never_meets_a_capture(daemon: Daemon, tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    box.spawn("python3", "-c", SLEEPER)
    command = f"while {TURNKEEP} doctor {box.name} >/dev/null; do :; done"
    with subprocess.Popen(["sh", "-c", command], env=daemon.environment, start_new_session=True) as looking:
        try:
            states = [turn(box, sandbox, f"echo {number} > /root/x").state for number in range(5)]
            assert looking.poll() is None, "looking failed"
        finally:
            looking.terminate()
    assert states == [TurnState.DURABLE] * 5


def test_without_criu(start_daemon: Callable[..., Daemon], box: Box, folder: Path) -> None:
    daemon = start_daemon(f'auto_attach = false\n[process]\ncriu = "{folder}"')
    with daemon.connect() as tk:
        tk.attach(box.name)
    box.spawn("python3", "-c", SLEEPER)
    found = doctor(daemon, box.name, code=1)
    assert not {"self-test", "other users", "host"} & {each.what for each in found}
    criu = only(found, "criu")
    assert (criu.verdict, criu.detail) == (
        Verdict.MISSING,
        "processes are not captured: there is no CRIU that starts",
    )
    assert "make host" in criu.fix
    assert criu.detail in only(found, "processes", "python3").detail


def test_where_processes_are_not_wanted(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("auto_attach = false\n[process]\nenabled = false")
    criu = only(doctor(daemon), "criu")
    assert criu.verdict is Verdict.DEGRADED
    assert "process.enabled" in criu.fix


@pytest.mark.timeout(LIMIT_S * 2)
def test_a_daemon_that_is_killed_in_the_middle_leaves_nothing(own_daemon: Daemon) -> None:
    assert own_daemon.process is not None
    name = f"turnkeep-self-test-{own_daemon.process.pid}"
    group = next(each for each in (Path("/sys/fs/cgroup/freezer"), Path("/sys/fs/cgroup")) if each.is_dir())
    members = group / name / "cgroup.procs"

    def inside() -> list[str]:
        try:
            return members.read_text().split()
        except OSError:  # not there yet, or removed between its opening and its reading (ENODEV)
            return []

    with subprocess.Popen([TURNKEEP, "doctor"], env=own_daemon.environment, stdout=subprocess.DEVNULL):
        wait_until(inside, "the self-test runs")
        own_daemon.kill()
        wait_until(lambda: not inside(), "its processes are gone")
    own_daemon.start()
    assert only(doctor(own_daemon), "self-test").verdict is Verdict.OK
    assert not members.exists()
