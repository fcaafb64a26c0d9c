"""Processes: what ran at a checkpoint runs on after a restore, from that very instant."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable

import pytest
from turnkeep.client.sync import Client, Sandbox
from turnkeep.errors import TurnFailed
from turnkeep.model import Fidelity, TurnState

from tests.e2e.harness import Box, Daemon, turn, wait_until

# A counter in memory that is also in a file, twenty times a second: at one instant
# they agree, or differ by the tick that is being written.
TICKER = """
import os, signal, time
count = 0
fd = os.open("/root/count", os.O_RDWR | os.O_CREAT)
def tell(*_):
    with open("/root/told", "w") as out:
        out.write(f"{count} {os.pread(fd, 20, 0).decode()} {os.getpid()}")
    os.rename("/root/told", "/root/answer")
signal.signal(signal.SIGUSR1, tell)
while True:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    count += 1
    os.pwrite(fd, b"%d" % count, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    time.sleep(0.05)
"""

SERVER = """
import http.server, os
ballast, count = bytearray(os.urandom(8 << 20)), 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d" % count)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


def start(box: Box, program: str, name: str) -> None:
    """Run a Python program in the background, its parent gone."""
    box.sh(f"cat > /root/{name}.py <<'END'\n{program}\nEND")
    box.sh(f"cd /root; setsid python3 -u {name}.py </dev/null >/root/{name}.log 2>&1 &")


def get(box: Box, port: int = 8000) -> int:
    """Ask the counting server."""
    return int(
        wait_until(lambda: box.sh(f"curl -sf http://127.0.0.1:{port}/", check=False), "the server answers")
    )


def ask(box: Box) -> tuple[int, int, int]:
    """Ask the ticker for its counter, that in its file, and its pid."""
    box.sh("rm -f /root/answer; pkill -USR1 -f ticker.py")
    wait_until(lambda: box.sh("test -e /root/answer && echo yes", check=False), "the ticker answers")
    memory, file, pid = box.sh("cat /root/answer").split()
    return int(memory), int(file), int(pid)


def processes(box: Box) -> list[str]:
    """Return what runs: pid, parent, group, session, name; our own look left out."""
    listed = box.sh("ps -eo pid=,ppid=,pgid=,sid=,comm= --no-headers")
    return [line for line in listed.splitlines() if not re.search(r" (ps|bash)$", line)]


@pytest.fixture
def sandbox(tk: Client, box: Box) -> Sandbox:
    """The plain sandbox, attached."""
    return tk.attach(box.name)


def test_a_server_goes_on_counting(box: Box, sandbox: Sandbox, tk: Client) -> None:
    start(box, SERVER, "server")
    assert [get(box), get(box)] == [1, 2]
    kept = turn(box, sandbox, "true")
    assert kept.checkpoint_id
    assert tk.checkpoint(kept.checkpoint_id).fidelity is Fidelity.COMPLETE
    before = processes(box)
    assert [get(box) for _ in range(5)][-1] == 7
    for _ in range(2):
        done = sandbox.restore(turn=kept.number)
        assert done.mode == "live"
        assert get(box) == 3
        assert processes(box) == before


def test_memory_and_file_agree_to_the_tick(box: Box, sandbox: Sandbox) -> None:
    start(box, TICKER, "ticker")
    wait_until(lambda: box.sh("cat /root/count", check=False).strip().isdigit(), "the ticker ticks")
    kept = turn(box, sandbox, "true")
    ask(box)
    captured = int(box.sh("cat /root/count"))
    for _ in range(2):
        sandbox.restore(turn=kept.number)
        memory, file, _ = ask(box)
        assert memory == file
        wait_until(lambda: int(box.sh("cat /root/count")) > captured, "it ticks on")


def test_tmux_with_a_shell_and_a_repl(box: Box, sandbox: Sandbox) -> None:
    box.sh("tmux new-session -d -s main -x 120 -y 40; tmux new-window -t main -n repl python3 -q")

    def type_(window: str, text: str) -> None:
        keys = f"tmux send-keys -t main:{window}"
        box.sh(f"{keys} -l {shlex.quote(text)}; {keys} Enter")

    def shows(window: str, text: str) -> None:
        wait_until(lambda: text in box.sh(f"tmux capture-pane -pt main:{window}"), f"{text} is shown")

    type_("0", "cd /usr/lib; export COLOUR=green; f() { echo f-$COLOUR-$PWD; }; echo rea''dy")
    shows("0", "ready")
    type_("repl", "x = 40 + 2; print('se' + 't')")
    shows("repl", "set")
    kept = turn(box, sandbox, "true")
    socket = box.sh("stat -c %y /tmp/tmux-0/default")
    type_("repl", "x = 999; print('chan' + 'ged')")
    shows("repl", "changed")
    box.sh("tmux kill-server")
    sandbox.restore(turn=kept.number)
    assert box.sh("stat -c %y /tmp/tmux-0/default") == socket, "it was bound anew, which nobody should see"
    type_("repl", "print('x', x)")
    shows("repl", "x 42")
    type_("0", "f")
    shows("0", "f-green-/usr/lib")


def test_what_was_started_later_is_gone(box: Box, sandbox: Sandbox) -> None:
    start(box, SERVER, "server")
    get(box)
    kept = turn(box, sandbox, "true")
    box.sh("setsid sleep 1000 </dev/null >/dev/null 2>&1 &")
    done = sandbox.restore(turn=kept.number)
    assert any("sleep" in each for each in done.stopped_processes)
    assert not box.sh("pgrep -f 'sleep 1000'", check=False)


def test_a_pipeline_whose_shell_is_gone(box: Box, sandbox: Sandbox) -> None:
    box.sh("{ i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done | cat > /root/out; } 2>/dev/null &")
    wait_until(lambda: box.sh("wc -l < /root/out", check=False).strip() not in ("", "0"), "it flows")
    kept = turn(box, sandbox, "true")
    sandbox.restore(turn=kept.number)
    at = int(box.sh("tail -1 /root/out"))
    wait_until(lambda: int(box.sh("tail -1 /root/out")) > at + 3, "it flows on")
    numbers = [int(line) for line in box.sh("cat /root/out").split()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_detached_exec(box: Box, sandbox: Sandbox) -> None:
    box.sh(f"cat > /root/server.py <<'END'\n{SERVER}\nEND")
    box.spawn("python3", "/root/server.py")
    assert get(box) == 1
    kept = turn(box, sandbox, "true")
    get(box)
    sandbox.restore(turn=kept.number)
    assert get(box) == 2


def test_an_init_that_never_waits(make: Callable[..., Box], tk: Client) -> None:
    """Plain `sleep` as process 1 leaves its dead children as zombies, whose pids are then taken."""
    box = make(init=False)
    sandbox = tk.attach(box.name)
    start(box, SERVER, "server")
    get(box)
    kept = turn(box, sandbox, "true")
    for _ in range(3):
        sandbox.restore(turn=kept.number)
        assert get(box) == 2
    assert "Z" not in box.sh("ps -eo stat= | tr -d '\\n'")


def test_cold(box: Box, sandbox: Sandbox) -> None:
    start(box, SERVER, "server")
    get(box)
    kept = turn(box, sandbox, "true")
    get(box)
    done = sandbox.restore(turn=kept.number, mode="cold")
    assert done.mode == "cold"
    assert get(box) == 2


def test_into_a_new_container(box: Box, sandbox: Sandbox, tk: Client, daemon: Daemon) -> None:
    start(box, SERVER, "server")
    get(box)
    kept = turn(box, sandbox, "true")
    get(box)
    daemon.cli("restore", f"{box.name}@{kept.number}", "--new", f"{box.name}-new")
    assert daemon.cli("ps").stdout.count(box.name) >= 2
    new = Box(box.container.client.containers.get(f"{box.name}-new"))  # type: ignore[union-attr]
    assert get(new) == 2
    assert get(box) == 3


def start_client(box: Box, command: str) -> subprocess.Popen[bytes]:
    """Run `docker exec` with a command that makes /root/up, and waits."""
    while True:
        client = subprocess.Popen(
            ["docker", "exec", box.name, "sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        wait_until(
            lambda client=client: client.poll() is not None or box.run(["test", "-e", "/root/up"])[0] == 0,  # type: ignore[misc]
            "it is up",
        )
        if client.poll() is None:
            return client
        # It met a freeze, and was refused; see `Box.run`.
        said = client.communicate()
        assert client.returncode == 126, said


@pytest.mark.parametrize("policy", ["capture", "record", "fail", "wait"])
def test_a_client_of_docker_exec_that_waits(
    start_daemon: Callable[..., Daemon], box: Box, policy: str
) -> None:
    """What becomes of a command whose output somebody still reads is the operator's choice."""
    settings = f'auto_attach = false\n[process]\nexec_sessions = "{policy}"\nexec_wait_s = 60'
    with start_daemon(settings).connect() as tk:
        sandbox = tk.attach(box.name)
        loop = "touch /root/up; while [ ! -e /root/end ]; do sleep 0.02; done; echo done > /root/out"
        client = start_client(box, loop)
        open_turn = sandbox.turn(label=policy)
        open_turn.begin()
        open_turn.end()
        if policy == "wait":
            box.sh("touch /root/end")
        if policy == "fail":
            with pytest.raises(TurnFailed, match="docker exec"):
                open_turn.wait()
        else:
            checkpoint = sandbox.find_checkpoint(open_turn.wait().number)
            whole = policy in ("capture", "wait")
            assert (checkpoint.fidelity is Fidelity.COMPLETE) is whole
            assert any("docker exec" in each for each in checkpoint.not_captured) is not whole
        if policy == "wait":
            assert box.sh("cat /root/out") == "done\n"
        box.sh("touch /root/end")
        client.communicate()


EPOLL = """
import selectors, socket
server = socket.create_server(("127.0.0.1", 8000))
waits = selectors.DefaultSelector()
waits.register(server, selectors.EVENT_READ)
count = 0
while True:
    for key, _ in waits.select():
        connection, _ = server.accept()
        count += 1
        connection.recv(65536)
        connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n%d" % count)
        connection.close()
"""


def test_a_server_that_only_a_freeze_wakes_costs_no_dump(box: Box, sandbox: Sandbox, tk: Client) -> None:
    start(box, EPOLL, "server")
    assert get(box) == 1
    turn(box, sandbox, "true")
    # What a freeze and CRIU did to it shows once at most.
    states = [turn(box, sandbox, "true").state for _ in range(4)]
    assert states[1:] == [TurnState.SKIPPED] * 3
    files = turn(box, sandbox, "echo > /root/file")
    checkpoint = tk.checkpoint(files.checkpoint_id or "")
    assert checkpoint.fidelity is Fidelity.COMPLETE
    assert get(box) == 2
    changed = turn(box, sandbox, "true")
    assert changed.state is TurnState.DURABLE
    get(box)
    sandbox.restore(turn=changed.number)
    assert get(box) == 3
    sandbox.restore(turn=files.number)
    assert get(box) == 2


def test_images_too_large_for_memory_go_to_the_disk(start_daemon: Callable[..., Daemon], box: Box) -> None:
    daemon = start_daemon("auto_attach = false\n[process]\nimage_bytes = 1048576")
    start(box, SERVER, "server")
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        get(box)
        kept = turn(box, sandbox, "true")
        assert tk.checkpoint(kept.checkpoint_id or "").fidelity is Fidelity.COMPLETE
        get(box)
        sandbox.restore(turn=kept.number)
        assert get(box) == 2
    assert not list((daemon.state / "run").glob("images-*"))


def test_a_shell_outlives_a_restore(box: Box, sandbox: Sandbox) -> None:
    with sandbox.shell() as shell:
        shell.run("cd /usr/lib; count=1; export COLOUR=green; f() { echo $COLOUR-$count-$PWD; }")
        kept = turn(box, sandbox, "true")
        assert shell.run("count=2; cd /; f").output == "green-2-/\n"
        for _ in range(2):
            sandbox.restore(turn=kept.number)
            assert shell.run("f").output == "green-1-/usr/lib\n"
            assert shell.run("exit_with() { return $1; }; exit_with 3").exit_code == 3
