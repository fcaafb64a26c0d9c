"""A daemon of the test's own, sandboxes, and an independent look at their files."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import docker
import turnkeep
from docker.errors import APIError
from docker.models.containers import Container
from turnkeep.client.sync import Client, Sandbox
from turnkeep.client.values import TurnInfo
from turnkeep.runtime.cgroup import find_cgroup

TURNKEEP = str(Path(sys.executable).with_name("turnkeep"))

REFUSED = (b"cannot exec in a paused container", b"waiting for the cgroup to freeze")
"""What runc says of an exec that meets a freeze."""

REPEATS = 3
READING = frozenset(
    (
        "cat",
        "cd",
        "cut",
        "getfattr",
        "grep",
        "head",
        "ls",
        "readlink",
        "sha256sum",
        "sort",
        "stat",
        "tail",
        "wc",
    )
)
"""Engine 20.10 loses all output of an exec now and then: of 4 in 1,588 on a busy machine, with exit code 0.

What only reads is asked again where it said nothing.
"""

LIMIT_S = 120.0
"""How long anything may take on a slow, loaded machine before a test calls it a hang."""

# Everything about every file that a restore has to bring back, seen from inside
# the container by a program that shares no code with Turnkeep. Left out: access
# and change times, which no restore can set, and folders' modification times.
LOOK = r"""
import hashlib, json, os, stat, sys
found = {}
skip = tuple(sys.argv[2:])
def look(path):
    st = os.lstat(path)
    kind = stat.S_IFMT(st.st_mode)
    entry = [oct(st.st_mode), st.st_uid, st.st_gid]
    if kind != stat.S_IFDIR:
        entry += [st.st_mtime_ns, st.st_nlink]
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry.append(st.st_rdev)
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            entry += [st.st_size, hashlib.sha256(file.read()).hexdigest()]
    if kind == stat.S_IFLNK:
        entry.append(os.fsencode(os.readlink(path)).hex())
    try:
        entry.append({n: os.getxattr(path, n, follow_symlinks=False).hex()
                      for n in sorted(os.listxattr(path, follow_symlinks=False))})
    except OSError:
        pass
    found[os.fsencode(path).hex()] = entry
for top in sys.argv[1].split(":"):
    device = os.lstat(top).st_dev
    look(top)
    for folder, folders, files in os.walk(top):
        folders[:] = [f for f in folders if os.lstat(os.path.join(folder, f)).st_dev == device
                      and os.path.join(folder, f) not in skip]
        for name in folders + files:
            path = os.path.join(folder, name)
            if not path.startswith(skip) if skip else True:
                look(path)
json.dump(found, sys.stdout)
"""


class Daemon:
    """A `turnkeep serve` process with a private state directory and socket."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.address = f"unix://{folder}/turnkeep.sock"
        self.environment = {
            **os.environ,
            "TURNKEEP_ADDRESS": self.address,
            "TURNKEEP_STATE_DIR": str(self.state),
            "TURNKEEP_CONFIG": str(folder / "turnkeep.toml"),
            **environment,
        }
        self.configure("auto_attach = false")
        self.log = folder / "daemon.log"
        self.prefix: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, text: str) -> None:
        """Write the configuration that the next start reads; each look is compared with a scan."""
        (self.folder / "turnkeep.toml").write_text(f"{text}\n[tracker]\naudit = 1.0\n")

    def start(self) -> None:
        """Start it and wait until it serves."""
        self.begin()
        wait_until(self._answers, "the daemon serves", lambda: self.log.read_text()[-3000:])

    def begin(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, TURNKEEP, "serve", "--log-format", "json"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> int:
        """Wait for its end; return its exit code, or minus the signal that ended it."""
        assert self.process is not None
        return self.process.wait(LIMIT_S)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended: {self.log.read_text()[-3000:]}")
        try:
            with self.connect(retry_s=0) as tk:
                tk.status()
        except turnkeep.DaemonUnavailable:
            return False
        return True

    def assert_nothing_missed(self) -> None:
        """Fail if a scan found a change that nobody had told of (`configure` has every look compared)."""
        lines = self.log.read_text().splitlines()
        assert not [line for line in lines if "changes were not reported" in line]

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it with SIGTERM; return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        return self.process.wait(LIMIT_S)

    def connect(self, **options: Any) -> Client:
        """Return a client of it."""
        return turnkeep.connect(self.address, **options)

    def cli(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of the CLI."""
        return subprocess.run(
            [TURNKEEP, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=check,
            timeout=LIMIT_S,
            **options,
        )

    def events(self) -> list[Mapping[str, Any]]:
        """Return what the daemon logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


class Box:
    """A sandbox container of the test's own."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.name: str = container.name or ""

    def sh(self, command: str, *, check: bool = True, user: str = "") -> str:
        """Run a shell command in it, return its output."""
        code, output = self.run(["bash", "-c", command], user=user)
        for _ in range(REPEATS):
            if output or code or not only_reads(command):
                break
            code, output = self.run(["bash", "-c", command], user=user)
        text = output.decode(errors="backslashreplace")
        assert not check or code == 0, f"{command!r} exited with {code}: {text}"
        return text

    def look(self, tops: str = "/", skip: str = "/proc /sys /tmp/look") -> dict[str, Any]:
        """Return everything about every file, as an independent program sees it."""
        for _ in range(1 + REPEATS):
            code, output = self.run(["python3", "-B", "-c", LOOK, tops, *skip.split()])
            assert code == 0, output
            try:
                found: dict[str, Any] = json.loads(output)
            except ValueError:
                # The engine loses all of it now and then, or puts its frames into it.
                continue
            return found
        raise AssertionError(output)

    def run(self, command: list[str], user: str = "") -> tuple[int, bytes]:
        """Run a program in it; return its exit code, and all that it printed."""
        while True:
            result = self.container.exec_run(command, user=user)
            assert isinstance(result.output, bytes)
            # An exec outside of a turn may meet a capture's freeze, and runc
            # refuses it; a harness has the gate for that.
            refused = any(words in result.output for words in REFUSED)
            if not refused and (result.exit_code, result.output) != (126, b""):
                return result.exit_code or 0, result.output

    def spawn(self, *command: str) -> None:
        """Run a program in it that nobody waits for: `docker exec -d`."""
        while True:
            try:
                self.container.exec_run(list(command), detach=True)
            except APIError as error:
                if not any(words in str(error).encode() for words in REFUSED):
                    raise
            else:
                return

    def state(self) -> Mapping[str, Any]:
        """Return what the engine says of its state."""
        self.container.reload()
        state: Mapping[str, Any] = self.container.attrs["State"]
        return state

    def freezer(self) -> str:
        """Return "FROZEN" or "THAWED"."""
        cgroup = find_cgroup(self.state()["Pid"], self.container.id or "")
        return "FROZEN" if cgroup.is_frozen() else "THAWED"


def turn(box: Box, sandbox: Sandbox, command: str, *, wait: bool = True, **options: Any) -> TurnInfo:
    """Run one command as a turn and wait until it is kept."""
    with sandbox.turn(label=command[:100], **options) as open_turn:
        box.sh(command)
    info = open_turn.wait() if wait else open_turn.info
    assert info is not None
    return info


def only_reads(command: str) -> bool:
    """Whether a shell command changes nothing, so that it can be repeated."""
    parts = (part.removeprefix(" xargs").split() for part in re.split(r"[;|&\n]+", command))
    return not re.search(r">|\$\(|`", command) and all(part[0] in READING for part in parts if part)


def wait_until(condition: Callable[[], Any], what: str, detail: Callable[[], str] = str) -> Any:
    """Wait for a condition that another process brings about; fail when it does not for long."""
    deadline = time.monotonic() + LIMIT_S
    with selectors.DefaultSelector() as pause:
        while True:
            value = condition()
            if value:
                return value
            assert time.monotonic() < deadline, f"not within {LIMIT_S:g} s: {what} {detail()}"
            pause.select(0.01)


def make_box(engine: docker.DockerClient, image: str, **options: Any) -> Box:
    """Start a sandbox."""
    settings: dict[str, Any] = {"network_mode": "none", "init": True, **options}
    name = settings.pop("name", f"turnkeep-test-{uuid.uuid4().hex[:8]}")
    command = settings.pop("command", ["sleep", "infinity"])
    box = Box(engine.containers.run(image, command, detach=True, name=name, **settings))
    wait_until(lambda: _has_begun(box), f"{name} runs its command")
    return box


def _has_begun(box: Box) -> bool:
    """Whether its own command runs, or has ended: the engine says "started" a moment before."""
    pid = box.state()["Pid"]
    try:
        name = Path(f"/proc/{pid}/comm").read_text()
        if name != "docker-init\n":
            return not name.startswith("runc")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return bool(children) and Path(f"/proc/{children[0]}/comm").read_text() != name
    except (FileNotFoundError, ProcessLookupError):
        return not box.state()["Running"]
