"""Sandboxes with processes that tell when they are where a test wants them."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container
from turnkeep.process.trees import Forest, Tree, TreeKind, partition
from turnkeep.runtime.cgroup import Cgroup, find_cgroup

from tests.conftest import IMAGE

FREEZE_S = 20.0

READY = "ready"

# Runs `setup`; then a process that init adopts runs `child`, while this one runs
# `parent` and stays below its exec: two trees.
TWO_TREES = """
import ctypes, mmap, os, select, signal, socket, struct, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
SETSID = True
{setup}
told, tell = os.pipe()
if not os.fork():
    if os.fork():
        os._exit(0)
    if SETSID:
        os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.close(null)
    os.close(told)
    {child}
    os.write(tell, b"x")
    os.close(tell)
    while True:
        signal.pause()
os.wait()
os.close(tell)
assert os.read(told, 1) == b"x"
os.close(told)
{parent}
print("ready", flush=True)
while True:
    signal.pause()
"""

ONE_TREE = """
import ctypes, mmap, os, select, signal, socket, struct, sys, tempfile, threading
libc = ctypes.CDLL(None, use_errno=True)
{body}
print("ready", flush=True)
while True:
    signal.pause()
"""


@dataclass(slots=True)
class Box:
    """A sandbox, its cgroup, and the execs that are running in it."""

    container: Container
    cgroup: Cgroup
    init_pid: int
    execs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str, options: Sequence[str] = ("-i",)) -> subprocess.Popen[bytes]:
        """Start an exec; it has said that it is ready when this returns."""
        name = str(self.container.name)
        process = subprocess.Popen(
            ["docker", "exec", *options, name, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.execs.append(process)
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        assert said == READY.encode(), f"{said!r}"
        return process

    def python(self, code: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a Python program that says that it is ready."""
        return self.start("python3", "-c", code, **options)

    def two_trees(self, *, setup: str = "", child: str = "pass", parent: str = "pass") -> None:
        """Start a process below an exec and one below init, see TWO_TREES."""
        inner = "\n    ".join(child.splitlines())
        self.python(TWO_TREES.format(setup=setup, child=inner, parent=parent))

    def one_tree(self, body: str, **options: Any) -> None:
        """Start a process below an exec, see ONE_TREE."""
        self.python(ONE_TREE.format(body=body), **options)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Have it stand still."""
        self.cgroup.freeze(FREEZE_S)
        try:
            yield
        finally:
            self.cgroup.thaw()

    def forest(self, pids: Sequence[int] = ()) -> Forest:
        """Look at its processes; what came with the container holds no state."""
        with open(f"/proc/{self.init_pid}/task/{self.init_pid}/children") as file:
            first = {int(pid) for pid in file.read().split()[:1]}
        shim = first if (self.container.attrs["HostConfig"].get("Init")) else set()
        reproducible = {self.init_pid, *shim}
        return partition([*self.cgroup.pids(), *pids], self.init_pid, reproducible.__contains__)

    def clear(self) -> None:
        """End what was started in it."""
        self.cgroup.thaw()
        keep = {self.init_pid}
        forest = self.forest()
        for tree in forest.trees:
            keep |= set(tree.pids) - tree.stateful
        pids = [pid for tree in forest.trees for pid in tree.pids if pid not in keep]
        for pid in [*pids, *(process.pid for process in forest.starting)]:
            _end(pid)
        for process in self.execs:
            process.kill()
            process.communicate()
        self.execs.clear()


def _end(pid: int) -> None:
    """Kill a process and wait until it is dead."""
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            os.kill(pid, 9)
            select.select([fd], [], [], FREEZE_S)
        finally:
            os.close(fd)


def init_tree(forest: Forest) -> Tree:
    """Return the tree of the sandbox's init."""
    (tree,) = [tree for tree in forest.trees if tree.kind is TreeKind.INIT]
    return tree


def exec_trees(forest: Forest) -> list[Tree]:
    """Return the trees that were started from outside."""
    return [tree for tree in forest.trees if tree.kind is TreeKind.EXEC]


def _await_command(init_pid: int, name: str, *, below: bool) -> None:
    """Wait until a sandbox's own command runs: the engine says "started" a moment before."""
    deadline = time.monotonic() + FREEZE_S
    while True:
        assert time.monotonic() < deadline
        pid = init_pid
        if below:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pid = int(children[0]) if children else 0
        if pid and Path(f"/proc/{pid}/comm").read_text().strip() == name:
            return
        os.sched_yield()


@contextlib.contextmanager
def make_box(engine: docker.DockerClient, **options: Any) -> Iterator[Box]:
    """Start a sandbox; it is removed afterwards."""
    settings: dict[str, Any] = {"network_mode": "none", "init": True, **options}
    command = settings.pop("command", ["sleep", "infinity"])
    name = f"turnkeep-test-{uuid.uuid4().hex[:8]}"
    container = engine.containers.run(IMAGE, command, detach=True, name=name, **settings)
    try:
        container.reload()
        pid = int(container.attrs["State"]["Pid"])
        cgroup = find_cgroup(pid, str(container.id))
        box = Box(container, cgroup, pid)
        _await_command(pid, str(command[0]), below=bool(settings["init"]))
        try:
            yield box
        finally:
            box.clear()
    finally:
        container.remove(force=True, v=True)
