"""Sandboxes with something in them that lives: a server, or a terminal.

Both are asked from outside, past the engine: an exec of its own takes longer than
most of what is measured here.
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import subprocess
import time
from collections.abc import Iterator
from typing import Protocol, cast

import docker
from demo.stage import IMAGE, Failed
from docker.errors import NotFound
from docker.models.containers import Container

MIB = 1024 * 1024
COMMAND = ["sleep", "infinity"]
PORT = 8000
_LIMIT_S = 60.0

# Holds random memory, which no dump can make smaller. "/touch" writes to a few of its
# pages; "/gap" tells for how many nanoseconds at most it did not run since that was last
# asked; all else is counted.
_SERVER = """
import http.server, os, sys, threading, time
ballast, count, gap = bytearray(os.urandom(int(sys.argv[1]))), 0, 0
def watch():
    global gap
    last = time.monotonic_ns()
    while True:
        time.sleep(0.001)
        now = time.monotonic_ns()
        gap, last = max(gap, now - last), now
def answer(path):
    global count, gap
    if path == "/gap":
        seen, gap = gap, 0
        return seen
    if path == "/touch":
        for _ in range(8):
            ballast[int.from_bytes(os.urandom(8)) % len(ballast)] ^= 1
        return 0
    count += 1
    return count
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d" % answer(self.path))
    def log_message(self, *_): pass
threading.Thread(target=watch, daemon=True).start()
http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
_BACKGROUND = 'setsid "$@" </dev/null >/dev/null 2>&1 &'
_TMUX = "tmux new-session -d -s main -x 120 -y 40 && tmux new-window -t main -n repl python3 -q"
_TYPE = 'tmux send-keys -t main:repl -l "$2" && tmux send-keys -t main:repl Enter'
_SHOWN = 'until tmux capture-pane -pt main:repl | grep -x -- "$1 .*"; do :; done'


class Reach(Protocol):
    """A container: its init's pid, how to run a command in it, how to ask its server."""

    pid: int

    def run(self, command: list[str]) -> None: ...

    def fetch(self, path: str) -> int: ...


class Living(Protocol):
    """A program that lives in a sandbox. Its state shows in its answers."""

    name: str

    def start(self, box: Reach) -> None:
        """Start it; it could answer when this returns."""
        ...

    def ask(self, box: Reach) -> str:
        """Return its answer, as soon as it gives one."""
        ...

    def change(self, box: Reach) -> None:
        """Make it give another answer from now on."""
        ...


class Server:
    """An HTTP server that counts, and holds so much random memory."""

    def __init__(self, memory_bytes: int) -> None:
        self.name = f"{memory_bytes // MIB} MiB server"
        self._bytes = memory_bytes

    def start(self, box: Reach) -> None:
        box.run(["sh", "-c", _BACKGROUND, "sh", "python3", "-c", _SERVER, str(self._bytes)])
        self.gap_ns(box)

    def ask(self, box: Reach) -> str:
        return str(box.fetch("/"))

    def change(self, box: Reach) -> None:
        self.ask(box)

    def touch(self, box: Reach) -> None:
        """Have it write to a few of its pages."""
        box.fetch("/touch")

    def gap_ns(self, box: Reach) -> int:
        """Return for how long at most it did not run since this was last asked."""
        return box.fetch("/gap")


class Terminal:
    """A tmux session with a shell, and a REPL in which x is 42."""

    name = "tmux with a REPL"

    def start(self, box: Reach) -> None:
        box.run(["sh", "-c", _TMUX])
        self._type(box, "x = 42")

    def ask(self, box: Reach) -> str:
        return self._type(box, "0")

    def change(self, box: Reach) -> None:
        self._type(box, "x = 999")

    def _type(self, box: Reach, line: str) -> str:
        """Type a line into the REPL; return what x is afterwards."""
        # A mark of its own: the screen shows earlier answers as well.
        mark = f"mark-{secrets.token_hex(4)}"
        said = _enter(box.pid, f"{_TYPE} && {_SHOWN}", mark, f"{line}; print('{mark}', x)")
        return said.split()[1]


def _enter(pid: int, script: str, *arguments: str) -> str:
    """Run a shell script in a container's namespaces."""
    command = ["nsenter", "--target", str(pid), "--all", "sh", "-c", script, "sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode != 0:
        raise Failed(f"in the sandbox {arguments} failed: {done.stderr.strip()}")
    return done.stdout


class Box:
    """A container of the benchmark's own, in the engine."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.name = container.name or ""
        self.look()

    def look(self) -> None:
        """Learn the address and init's pid, which a start changes."""
        self.container.reload()
        networks = self.container.attrs["NetworkSettings"]["Networks"]
        self.address: str = networks["bridge"]["IPAddress"]
        self.pid: int = self.container.attrs["State"]["Pid"]

    def run(self, command: list[str]) -> None:
        """Run a command in it, to its end.

        Raises:
            Failed: it failed.
        """
        code, raw = self.container.exec_run(command)
        if code != 0:
            # Not a stream: it was not asked for.
            raise Failed(f"{command[0]} in the sandbox exited with {code}: {cast(bytes, raw)!r}")

    def fetch(self, path: str) -> int:
        """Return what the server in it answers, as soon as it does."""
        deadline = time.monotonic() + _LIMIT_S
        while True:
            connection = http.client.HTTPConnection(self.address, PORT, timeout=_LIMIT_S)
            try:
                connection.request("GET", path)
                return int(connection.getresponse().read())
            except (OSError, http.client.HTTPException, ValueError):
                if time.monotonic() > deadline:
                    raise
            finally:
                connection.close()


@contextlib.contextmanager
def box(engine: docker.DockerClient, name: str) -> Iterator[Box]:
    """Yield a sandbox in which nothing runs but an init shim; remove it afterwards."""
    try:
        made = create(engine, name)
        made.start()
        yield Box(made)
    finally:
        remove(engine, name)


def create(engine: docker.DockerClient, name: str) -> Container:
    """Create a sandbox, on the engine's own network, as `docker create` does."""
    return engine.containers.create(IMAGE, COMMAND, name=name, init=True, network_mode="bridge")


def remove(engine: docker.DockerClient, name: str) -> None:
    """Remove a container, if it is there."""
    with contextlib.suppress(NotFound):
        engine.api.remove_container(name, force=True, v=True)
