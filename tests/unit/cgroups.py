"""Cgroups of one's own in the host's hierarchies, with real processes in them."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from turnkeep.runtime.cgroup import Cgroup
from turnkeep.runtime.mountinfo import read_mountinfo

PATIENCE_S = 15.0


def hierarchy(version: int, controller: str = "freezer") -> Path | None:
    """Return where a v1 controller, or cgroup2, is mounted, if cgroups can be made there."""
    for mount in read_mountinfo("self"):
        v1 = mount.fs_type == b"cgroup" and controller.encode() in mount.super_options
        if (v1 if version == 1 else mount.fs_type == b"cgroup2") and mount.writable and os.geteuid() == 0:
            return Path(os.fsdecode(mount.target))
    return None


@dataclass(slots=True)
class Tenant:
    """A process that answers whenever it can run: `cat`."""

    process: subprocess.Popen[bytes]
    asked: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self) -> None:
        """Let it have something to do."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"?")
        self.asked += 1

    def answered(self, within_s: float) -> bool:
        """Whether it has done all that it was asked, or does so within a time."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + within_s
        while self.asked:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                return False
            self.asked -= len(os.read(self.process.stdout.fileno(), self.asked))
        return True


@dataclass(slots=True)
class Group:
    """A cgroup named after a container that there is none of."""

    id: str
    cgroup: Cgroup
    folders: list[Path]
    tenants: list[Tenant] = field(default_factory=list)

    @classmethod
    def make(cls, version: int, below: str = "turnkeep-test") -> Group:
        """Make one; `close` takes it away."""
        identifier = secrets.token_hex(32)
        roots = [hierarchy(version, "freezer"), hierarchy(version, "cpuacct")][: 3 - version]
        folders = []
        for root in roots:
            assert root is not None
            folders.append(root / below / identifier)
            folders[-1].mkdir(parents=True)
        return cls(identifier, Cgroup(version, folders[0], folders[-1]), folders)

    def add(self) -> Tenant:
        """Start a process in it."""
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(str(process.pid))
        self.tenants.append(Tenant(process))
        return self.tenants[-1]

    def close(self) -> None:
        """End its processes, and remove it."""
        self.cgroup.thaw()
        for tenant in self.tenants:
            tenant.process.kill()
            tenant.process.communicate()
        for folder in self.folders:
            nested = sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True)
            for path in (*nested, folder):
                _remove(path)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()


def _remove(folder: Path) -> None:
    """Remove a cgroup; one whose last process has just died is busy for a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            os.sched_yield()


_HOLDER = """
import os, sys
from pathlib import Path
from turnkeep.errors import CaptureFailed
from turnkeep.runtime.cgroup import Cgroup
from turnkeep.runtime.freezer import Freezer

version, budget_s, hold, kill, *folders = sys.argv[1:]
with Freezer() as freezer:
    def freeze(folders):
        if not folders:
            print(freezer.watchdog_pid, flush=True)
            sys.stdin.readline()
            return
        cgroup = Cgroup(int(version), Path(folders[0]), Path(folders[0]))
        with freezer.frozen(cgroup, float(budget_s), hold=bool(int(hold))) as state:
            if int(kill) and len(folders) > 1:
                watchdog = freezer.watchdog_pid
                os.kill(watchdog, 9)
                os.waitid(os.P_PID, watchdog, os.WEXITED | os.WNOWAIT)
            freeze(folders[1:])
            try:
                state.check()
                print("still frozen", flush=True)
            except CaptureFailed as error:
                print(error.message, flush=True)
    freeze(folders)
"""


@contextlib.contextmanager
def holder(
    *groups: Group, budget_s: float = 600.0, hold: bool = False, kill_watchdog: bool = False
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Freeze cgroups from another process; gives it, and a pidfd of its watchdog."""
    arguments = [groups[0].cgroup.version, budget_s, int(hold), int(kill_watchdog)]
    folders = [group.cgroup.freezer for group in groups]
    command = [sys.executable, "-c", _HOLDER, *map(str, (*arguments, *folders))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        watchdog = os.pidfd_open(int(process.stdout.readline()))
        try:
            yield process, watchdog
        finally:
            os.close(watchdog)
    finally:
        process.kill()
        process.communicate()


def ended(pidfd: int, within_s: float = PATIENCE_S) -> bool:
    """Whether a process has ended, or does so within a time."""
    return bool(select.select([pidfd], [], [], within_s)[0])
