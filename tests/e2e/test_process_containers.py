"""Processes of containers of every make: back, confined as before, and the engine none the wiser."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import requests
from turnkeep.client.sync import Client
from turnkeep.model import Fidelity

from tests.e2e.confined import cgroups, confined, everyone, host_pid, may_set_limits
from tests.e2e.exhibits import Exhibit, Make, checkpoint_of, comes_back, keep
from tests.e2e.harness import Box, turn, wait_until

COUNTER = """
count, child = [1], worker(lambda word: os.getpid())
threading.Thread(target=threading.Event().wait, daemon=True).start()
show(lambda: [count, child("?")], lambda: count.append(2))
"""


MAKES: dict[str, dict[str, Any]] = {
    "init": {},
    "without-init": {"init": False},
    "tty": {"tty": True},
    "no-capabilities": {"cap_drop": ["ALL"]},
    "no-new-privileges": {"security_opt": ["no-new-privileges"]},
    "read-only": {"read_only": True, "tmpfs": {"/tmp": "", "/root": "size=64m"}},
    "ptrace": {"cap_add": ["SYS_PTRACE"]},
    "unfiltered": {"security_opt": ["seccomp=unconfined"]},
    "groups": {"group_add": ["44", "777"]},
    "limits": {
        "mem_limit": "300m",
        "pids_limit": 100,
        "cpu_shares": 512,
        "cpuset_cpus": "0",
        "oom_score_adj": 300,
        "ulimits": [{"Name": "nofile", "Soft": 1000, "Hard": 2000}, {"Name": "core", "Soft": 0, "Hard": 0}],
    },
    "locked-down": {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "tmpfs": {"/tmp": ""},
        "mem_limit": "300m",
        "pids_limit": 50,
    },
    "tail": {"init": False, "command": ["tail", "-f", "/dev/null"]},
    "shared-memory-and-names": {"shm_size": "32m", "hostname": "somebody", "domainname": "example.org"},
}


@pytest.mark.parametrize("name", MAKES)
def test_back_and_confined_as_before(name: str, make: Make, tk: Client) -> None:
    box = make(**MAKES[name])
    sandbox = tk.attach(box.name)
    idle = set(everyone(box))
    exhibit = Exhibit(box, COUNTER)
    before = exhibit.look()
    child = before[1]
    kept = keep(box, sandbox, tk)
    held = [confined(box, exhibit.pid), confined(box, child)]
    init = box.state()["Pid"]
    assert cgroups(host_pid(box, child)) == cgroups(init)
    identity = box.container.id, init, box.state()["StartedAt"]
    for _ in range(2):
        comes_back(exhibit, sandbox, kept, before, times=1)
        for now, then in zip([confined(box, exhibit.pid), confined(box, child)], held, strict=True):
            assert {
                key: (then.get(key), now.get(key)) for key in {*now, *then} if then.get(key) != now.get(key)
            } == {}
    assert (box.container.id, box.state()["Pid"], box.state()["StartedAt"]) == identity
    # Nothing of ours is left in it. An init that never waits keeps the dead of `docker exec`.
    wait_until(lambda: _living(box) == idle | {exhibit.pid, child}, "nobody else is there")


def _living(box: Box) -> set[int]:
    return {pid for pid, host in everyone(box).items() if not _is_dead(host)}


def _is_dead(host: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{host}/status").read_text()
    except OSError:
        return True


def test_another_user(make: Make, tk: Client) -> None:
    """Without CAP_SYS_RESOURCE CRIU cannot take processes of another user, and says so."""
    box = make(user="1000")
    sandbox = tk.attach(box.name)
    exhibit = Exhibit(box, COUNTER)
    before = exhibit.look()
    kept = turn(box, sandbox, "echo kept > /tmp/file")
    checkpoint = checkpoint_of(tk, kept)
    if may_set_limits():
        assert checkpoint.fidelity is Fidelity.COMPLETE
        held = confined(box, exhibit.pid)
        comes_back(exhibit, sandbox, kept, before)
        assert confined(box, exhibit.pid) == held
        return
    assert checkpoint.fidelity is Fidelity.FILES_ONLY
    assert any("rlimit" in each and "python3" in each for each in checkpoint.not_captured), checkpoint
    box.sh("echo lost > /tmp/file")
    assert exhibit.look() == before
    sandbox.restore(turn=kept.number)
    assert box.sh("cat /tmp/file") == "kept\n"
    assert exhibit.pid not in everyone(box)
    assert box.freezer() == "THAWED"


def test_limits_are_in_force(make: Make, tk: Client) -> None:
    box = make(mem_limit="200m", pids_limit=60)
    sandbox = tk.attach(box.name)
    program = """
forked = []
def grow():
    try:
        while len(forked) < 100:
            forked.append(worker(lambda word: word))
    except BlockingIOError: pass
def look():
    grow(); count = len(forked)
    [os.kill(each.pid, signal.SIGKILL) for each in forked]; [os.wait() for _ in forked]; forked.clear()
    return count
show(look, lambda: len(bytearray(b"x") * (400 << 20)))
"""
    exhibit = Exhibit(box, program)
    assert 40 < exhibit.look() < 60
    exhibit.look()
    kept = keep(box, sandbox, tk)
    for _ in range(2):
        sandbox.restore(turn=kept.number)
        assert 40 < exhibit.look() < 60
    pid = host_pid(box, exhibit.pid)
    with contextlib.closing(_process(pid)) as alive:
        # It takes more than its cgroup has, and is killed for it.
        os.kill(pid, signal.SIGUSR2)
        wait_until(lambda: alive.ended, "it is killed")


class _process:
    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    @property
    def ended(self) -> bool:
        try:
            signal.pidfd_send_signal(self._fd, 0)
        except ProcessLookupError:
            return True
        return False

    def close(self) -> None:
        os.close(self._fd)


def test_volumes(make: Make, tk: Client) -> None:
    """An open file on a volume, and a lock on another: where they were."""
    box = make(
        name="turnkeep-test-process-volumes",
        volumes={"turnkeep-test-process-volumes-data": {"bind": "/data"}},
        tmpfs={"/scratch": ""},
    )
    sandbox = tk.attach(box.name)
    program = """
fds = [os.open(f"/{place}/log", os.O_RDWR | os.O_CREAT) for place in ("data", "scratch")]
for fd in fds: os.write(fd, b"first\\n")
def look():
    return [[os.lseek(fd, 0, 1), os.pread(fd, 100, 0).decode()] for fd in fds]
def change():
    for fd in fds: os.write(fd, b"second\\n")
show(look, change)
"""
    exhibit = Exhibit(box, program)
    before = exhibit.look()
    comes_back(exhibit, sandbox, keep(box, sandbox, tk), before)


SERVER = """
import http.server
count = [0]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        count[0] += 1
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d" % count[0])
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
show(lambda: count)
"""


def test_published_ports_answer(make: Make, tk: Client) -> None:
    box = make(network_mode="bridge", ports={"8000/tcp": ("127.0.0.1", None)})
    sandbox = tk.attach(box.name)
    Exhibit(box, SERVER)
    box.container.reload()
    port = box.container.attrs["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"]

    def get() -> int:
        return int(requests.get(f"http://127.0.0.1:{port}/", timeout=60).text)

    assert [get(), get()] == [1, 2]
    kept = keep(box, sandbox, tk)
    for _ in range(2):
        assert [get(), get()] == [3, 4]
        sandbox.restore(turn=kept.number)
    assert [get(), get()] == [3, 4]


CONNECTED = """
def connected(address):
    connection = socket.create_connection(address, timeout=60); connection.sendall(b"hello")
    return connection
listening = socket.create_server(("127.0.0.1", 8000)); inner = connected(("127.0.0.1", 8000))
served = listening.accept()[0]; outer = connected((ADDRESS, PORT))
for each in (inner, served, outer): each.setblocking(False)
def state(connection):
    try:
        return connection.recv(100, socket.MSG_PEEK).decode() or "ended"
    except BlockingIOError:
        return "open"
    except ConnectionResetError:
        return "reset"
    except OSError as error:
        return errno.errorcode[error.errno]
def look():
    fresh = connected((ADDRESS, PORT)); fresh.close()
    again = connected(("127.0.0.1", 8000)); listening.accept()[0].close(); again.close()
    return [state(each) for each in (inner, served, outer)]
show(look)
"""


def test_connections_are_cut_and_it_is_said(make: Make, tk: Client) -> None:
    box = make(network_mode="bridge")
    # The network itself does not say it before the engine was started a second time.
    box.container.reload()
    gateway = box.container.attrs["NetworkSettings"]["Networks"]["bridge"]["Gateway"]
    sandbox = tk.attach(box.name)
    with socket.create_server((gateway, 0)) as server:
        port = server.getsockname()[1]
        program = CONNECTED.replace("ADDRESS", repr(gateway)).replace("PORT", str(port))
        exhibit = Exhibit(box, program)
        assert exhibit.look() == ["open", "hello", "open"]
        kept = turn(box, sandbox, "true")
        checkpoint = checkpoint_of(tk, kept)
        assert checkpoint.fidelity is Fidelity.COMPLETE
        assert checkpoint.processes is not None
        notes = " ".join(note for tree in checkpoint.processes.trees for note in tree.notes)
        assert "closed at a restore" in notes
        assert f"{gateway}:{port}" in notes
        assert "127.0.0.1:8000" in notes
        assert exhibit.look() == ["open", "hello", "open"], "the capture itself cuts nothing"
        for _ in range(2):
            done = sandbox.restore(turn=kept.number)
            assert any("closed at a restore" in note for note in done.notes)
            states = exhibit.look()
            assert "open" not in states


def test_the_engine_goes_on(make: Make, tk: Client) -> None:
    """Exec, logs, top, inspect, stop and wait, start, and the restart policy."""
    box = make(init=True, restart_policy={"Name": "always"})
    sandbox = tk.attach(box.name)
    program = """
out, count = open("/proc/1/fd/1", "w"), [1]
def look():
    print("line", len(count), file=out, flush=True)
    return count
show(look, lambda: count.append(2))
"""
    exhibit = Exhibit(box, program)
    before = exhibit.look()
    kept = turn(box, sandbox, "true")
    assert checkpoint_of(tk, kept).fidelity is Fidelity.COMPLETE
    comes_back(exhibit, sandbox, kept, before)
    assert box.container.logs().decode().split("\n")[-2] == "line 1"
    exhibit.change()
    exhibit.look()
    wait_until(lambda: b"line 2" in box.container.logs(tail=1), "the log goes on")
    rows = box.container.top()["Processes"]
    assert any("exhibit" in row[-1] and row[1] == str(host_pid(box, exhibit.pid)) for row in rows)
    assert box.state()["Running"]
    assert not box.state()["Paused"]
    assert box.sh("kill -0 " + str(exhibit.pid)) == ""
    first = box.state()["Pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: box.state()["Running"] and box.state()["Pid"] not in (0, first), "it is restarted")
    assert exhibit.pid not in everyone(box)
    box.container.stop(timeout=20)
    assert box.container.wait()["StatusCode"] in (137, 143)
    assert box.state()["Status"] == "exited"
    box.container.start()
    assert box.sh("echo alive") == "alive\n"
    sandbox.restore(turn=kept.number)
    assert exhibit.look() == before


def test_docker_stop_ends_restored_processes(make: Make, tk: Client) -> None:
    """What `docker stop` and `docker wait` say of a container whose processes were restored."""
    box = make(init=True)
    sandbox = tk.attach(box.name)
    exhibit = Exhibit(box, COUNTER)
    exhibit.look()
    kept = keep(box, sandbox, tk)
    sandbox.restore(turn=kept.number)
    pid = host_pid(box, exhibit.pid)
    with contextlib.closing(_process(pid)) as process:
        box.container.stop(timeout=20)
        assert process.ended
    assert box.container.wait()["StatusCode"] == 143
