"""Whole containers, dumped and brought back by `docker start` through our runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError
from turnkeep.errors import CriuFailed, SandboxGone
from turnkeep.process import whole
from turnkeep.runtime import orders, registration

from tests.runtime.boxes import SERVER, Box

pytestmark = pytest.mark.docker

Make = Callable[..., Box]
SERVE = ("python3", "-c", SERVER)

# What a container may and may not do, as its init's entries under /proc say it.
LOOK = """
import json, os, re
status = dict(line.split(":", 1) for line in open("/proc/1/status").read().splitlines())
names = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]
found = {name: status[name].split() for name in [*names, "Seccomp_filters", "Umask", "NSpid"]}
for name in ("limits", "oom_score_adj", "cgroup", "sessionid", "attr/current", "environ", "cmdline"):
    try:
        found[name] = open("/proc/1/" + name).read()
    except OSError as error:
        found[name] = error.strerror
found["hostname"] = os.uname().nodename
found["mounts"] = sorted(re.sub(r"^\\d+ \\d+ \\d+:\\d+|master:\\d+|shared:\\d+|upperdir=.*", "", line)
                         for line in open("/proc/1/mountinfo") if " /null " not in line)
print(json.dumps(found))
"""


def look(box: Box) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(box.run("python3", "-c", LOOK))
    return found


@pytest.fixture
def server(make: Make) -> Box:
    box = make(*SERVE)
    box.wait_ready()
    return box


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init": True, "ports": {"8000/tcp": 18123}},
        {"tty": True, "stdin_open": True},
        {"network_mode": "none"},
        {"tmpfs": {"/scratch": ""}, "volumes": {"tk-runtime-test": {"bind": "/data", "mode": "rw"}}},
        {"read_only": True, "tmpfs": {"/tmp": ""}, "hostname": "web"},
        {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges"], "mem_limit": "256m", "pids_limit": 50},
        {"oom_score_adj": 300, "ulimits": [docker.types.Ulimit(name="nofile", soft=512, hard=1024)]},
    ],
    ids=["plain", "init", "tty", "offline", "mounts", "read-only", "confined", "limits"],
)
def test_a_server_goes_on_where_it_was(make: Make, options: dict[str, Any]) -> None:
    box = make(*SERVE, **options)
    box.wait_ready()
    assert [box.next(), box.next()] == [1, 2]
    before = look(box)
    stats = box.dump()
    assert stats.frozen_us > 0
    assert stats.pages_written > 0
    assert [box.next(), box.next()] == [3, 4]

    # Twice: what was restored can be stopped and restored again.
    for _ in range(2):
        box.stop()
        box.order()
        box.start()
        assert box.traces() == []
        assert [box.next(), box.next()] == [3, 4]
        now = look(box)
        assert set(now["mounts"]) ^ set(before["mounts"]) == set()
        assert now == before
        assert (box.work / "stats-restore").exists()
    assert box.container.logs().decode().split().count("4") == 3
    assert any("python3 -c" in row[-1] for row in box.container.top()["Processes"])
    assert box.container.exec_run("false").exit_code == 1

    box.stop()
    assert box.container.wait()["StatusCode"] in (137, 143)
    box.start()
    box.wait_ready()
    while b"ready" not in box.container.logs(tail=1):
        pass
    assert box.next() == 1


def test_a_restored_container_gets_at_nothing_of_the_hosts(server: Box) -> None:
    before = os.stat("/dev/null")
    server.dump()
    server.stop()
    server.order()
    server.start()
    for path in ("/proc/keys", "/proc/timer_list"):
        result = server.container.exec_run(["sh", "-c", f"echo x >{path} && cat {path} && chmod 600 {path}"])
        assert b"Read-only file system" in result.output
    assert os.stat("/dev/null").st_mode == before.st_mode
    inside = server.run("sh", "-c", "cd /sys/fs/cgroup && find . -name 'docker*' -o -name '*.slice'")
    assert inside == ""


def test_restored_without_the_engines_keyring(server: Box) -> None:
    server.dump()
    server.stop()
    server.order()
    server.start()
    session = server.run("cat", "/proc/keys")
    own = Path("/proc/keys").read_text().split()[:1]
    assert not own or own[0] not in session


def test_frozen_tasks_stand_still_throughout(make: Make, tmp_path: Path) -> None:
    count = "for n in itertools.count():\n print(n, file=open('/count', 'w'), flush=True)\n"
    box = make("python3", "-c", f"import itertools\n{count} n or print('ready', flush=True)")
    box.wait_ready()
    cgroup, root = box.cgroup, Path(f"/proc/{box.pid}/root")
    cgroup.freeze(30)
    try:
        used, counted = cgroup.usage_ns(), (root / "count").read_bytes()
        whole.dump(box.runc(), box.id, tmp_path / "images", tmp_path / "work")
        assert cgroup.is_frozen()
        assert (root / "count").read_bytes() == counted
        # CRIU's parasite runs in the tasks' name, but they themselves do not.
        assert cgroup.usage_ns() - used < 10**9
    finally:
        cgroup.thaw()


def test_a_dump_of_a_running_container(server: Box) -> None:
    assert server.next() == 1
    server.dump(frozen=False)
    assert server.next() == 2


def test_runcs_record_is_not_touched(server: Box) -> None:
    record = server.bundle.runc_root / server.id
    before = {path.name: path.read_bytes() for path in record.iterdir() if path.is_file()}
    server.dump()
    assert {path.name: path.read_bytes() for path in record.iterdir() if path.is_file()} == before
    assert sorted(os.listdir(server.work)) == ["dump.log", "stats-dump"]


def test_a_container_under_plain_runc_can_be_dumped(make: Make) -> None:
    box = make(*SERVE, runtime="runc")
    box.wait_ready()
    assert box.next() == 1
    assert box.dump().pages_written > 0
    assert box.next() == 2


def test_published_ports_answer(make: Make) -> None:
    box = make(*SERVE, ports={"8000/tcp": 18124})
    box.wait_ready()
    assert box.next_from_outside(18124) == 1
    box.dump()
    box.stop()
    box.order()
    box.start()
    assert box.next_from_outside(18124) == 2
    assert box.next() == 3


def test_connections_are_closed(make: Make) -> None:
    """A server with an open connection to itself: the dump leaves it out, both ends see it gone."""
    program = f"""
import socket
served = socket.create_server(("", 9000))
client = socket.create_connection(("127.0.0.1", 9000))
accepted, _ = served.accept()
{
        SERVER.replace(
            "connection.close()",
            '''
    try:
        client.send(b"x")
        accepted.recv(1)
        print("connected", flush=True)
    except OSError:
        print("cut", flush=True)
    connection.close()''',
        )
    }
"""
    box = make("python3", "-c", program)
    box.wait_ready()
    assert box.next() == 1
    box.dump()
    assert box.next() == 2
    box.stop()
    box.order()
    box.start()
    assert box.next() == 2
    assert [word for word in box.container.logs().decode().split() if word in ("connected", "cut")] == [
        *("connected", "connected"),
        "cut",
    ]


def test_a_restore_that_fails_says_why_and_leaves_nothing(server: Box) -> None:
    server.dump()
    bundle, cgroup = server.bundle, server.cgroup
    server.stop()
    (server.images / "core-1.img").unlink()
    server.order()
    with pytest.raises(APIError, match=r"could not restore the container: Error .*empty-image") as caught:
        server.start()
    assert str(server.work / "restore.log") in str(caught.value)
    assert server.traces() == []
    assert not (bundle.runc_root / server.id).exists()
    assert not cgroup.freezer.exists()
    assert not server.state["Running"]
    server.start()
    while b"ready" not in server.container.logs(tail=1):
        pass
    assert server.next() == 1


def test_an_expired_order_is_none(server: Box) -> None:
    assert server.next() == 1
    server.dump()
    server.stop()
    server.order(expires_s=-1)
    server.start()
    while b"ready" not in server.container.logs(tail=1):
        pass
    assert server.next() == 1
    assert server.traces() == []


def test_a_withdrawn_order_is_none(server: Box) -> None:
    server.dump()
    server.stop()
    server.order()
    assert orders.withdraw(server.settings.orders, server.id) is True
    server.start()
    assert not (server.work / "restore.log").exists()


def test_what_criu_cannot_dump_is_said(make: Make) -> None:
    box = make("python3", "-c", LOCKER)
    box.wait_ready()
    with pytest.raises(CriuFailed, match="file-locks") as caught:
        box.dump(file_locks=False)
    assert str(box.work / "dump.log") in caught.value.hint
    assert box.dump(file_locks=True).pages_written > 0


LOCKER = """
import fcntl, time
file = open("/locked", "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("ready", flush=True)
time.sleep(3600)
"""


def test_a_container_that_is_gone(server: Box, tmp_path: Path) -> None:
    runc = server.runc()
    with pytest.raises(SandboxGone):
        whole.dump(runc, "0" * 64, tmp_path / "images", tmp_path / "work")
    server.stop()
    with pytest.raises(SandboxGone):
        whole.dump(runc, server.id, tmp_path / "images", tmp_path / "work")


def test_without_criu(server: Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runc = whole.Runc(root=server.bundle.runc_root, program="/usr/sbin/runc", criu_bin="/nonexistent")
    unshare = shutil.which("unshare")
    assert unshare is not None
    (tmp_path / "unshare").symlink_to(unshare)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CriuFailed, match="criu"):
        whole.dump(runc, server.id, tmp_path / "images", tmp_path / "work")


def test_an_exec_during_a_freeze_waits_for_the_thaw(server: Box) -> None:
    cgroup = server.cgroup
    cgroup.freeze(30)
    command = ["docker", "--host", server.own.host, "exec", server.id, "echo", "here"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            # Until it has joined the cgroup, and stands still there with the others.
            while len(cgroup.pids()) < 2 or not cgroup.is_frozen():
                assert process.poll() is None
        finally:
            cgroup.thaw()
        assert process.communicate(timeout=60)[0] == b"here\n"
        assert process.returncode == 0


def test_a_dump_while_an_exec_waits(server: Box) -> None:
    cgroup, runc = server.cgroup, server.runc()  # the engine does not answer about it then
    command = ["docker", "--host", server.own.host, "exec", server.id, "echo", "here"]
    cgroup.freeze(30)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            while len(cgroup.pids()) < 2 or not cgroup.is_frozen():
                assert process.poll() is None
            whole.dump(runc, server.id, server.images, server.work)
            assert cgroup.is_frozen()
        finally:
            cgroup.thaw()
        assert process.communicate(timeout=60)[0] == b"here\n"
    server.stop()
    server.order()
    server.start()
    assert server.next() == 1


def test_the_runtime_is_known(settings: registration.Settings, server: Box) -> None:
    info = server.own.client.info()
    assert info["Runtimes"]["turnkeep"]["path"] == str(settings.program)
    assert server.container.attrs["HostConfig"]["Runtime"] == "turnkeep"
