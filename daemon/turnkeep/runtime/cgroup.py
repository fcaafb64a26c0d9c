"""A container's cgroup: who is in it, freezing and thawing (cgroup v1 and v2).

See Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst and cgroup-v2.rst
("cgroup.freeze") of the kernel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from turnkeep.errors import CaptureFailed, SandboxGone, Unsupported
from turnkeep.runtime.mountinfo import read_mountinfo

_POLL_S = 0.0002
_PATIENCE_S = 0.05
"""How long the first attempt to freeze takes at most; each further one takes twice as long."""
_HELD = "turnkeep-held"
_HOLD_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The cgroup of one container.

    `freezer` is the folder with the freezing control, `accounting` the one with
    the processor time; on v2 they are the same. `folders` are its folders in all
    hierarchies.
    """

    version: int
    freezer: Path
    accounting: Path
    folders: tuple[Path, ...] = field(default=(), compare=False)

    def procs_files(self) -> list[str]:
        """Return the files that a process is written to in order to join the container's cgroups."""
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def pids(self) -> list[int]:
        """Return the processes in the cgroup and below it, by their pids on the host."""
        found: list[int] = []
        for folder, _, _ in os.walk(self.freezer):
            try:
                text = Path(folder, "cgroup.procs").read_text()
            except (FileNotFoundError, OSError):
                continue
            found.extend(int(line) for line in text.split())
        return found

    def usage_ns(self) -> int:
        """Return the processor time that the cgroup has used, dead processes included."""
        try:
            if self.version == 1:
                return int((self.accounting / "cpuacct.usage").read_text())
            for line in (self.accounting / "cpu.stat").read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "usage_usec":
                    return int(value) * 1000
        except OSError as error:
            raise SandboxGone("its cgroup is gone", object=str(self.accounting)) from error
        return 0

    def is_frozen(self) -> bool:
        """Whether every task in it is stopped."""
        try:
            if self.version == 1:
                return (self.freezer / "freezer.state").read_text().strip() == "FROZEN"
            return "frozen 1" in (self.freezer / "cgroup.events").read_text()
        except OSError as error:
            raise SandboxGone("its cgroup is gone", object=str(self.freezer)) from error

    def freeze(self, timeout_s: float) -> None:
        """Stop every task. When this raises, the tasks run.

        Raises:
            CaptureFailed: some task did not stop in time, one in an
                uninterruptible wait perhaps.
            SandboxGone: the cgroup is gone.
        """
        deadline = time.monotonic() + timeout_s
        patience_s = _PATIENCE_S
        while not self._freezes(min(deadline, time.monotonic() + patience_s)):
            self.thaw()
            if time.monotonic() > deadline:
                raise CaptureFailed(
                    f"its tasks did not freeze within {timeout_s:g} s",
                    object=self.freezer.name,
                    hint="look for processes in state D (ps -eo pid,stat,wchan,comm)",
                )
            # On v1, execve waits for the other threads to die, which they cannot while
            # they are frozen, and cannot be frozen itself: whoever meets it there has to
            # let them run for a moment.
            time.sleep(_POLL_S * 10)
            patience_s *= 2

    def _freezes(self, deadline: float) -> bool:
        """Stop every task; return whether all did in time."""
        self._write(frozen=True)
        while not self.is_frozen():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
            if self.version == 1:
                # A v1 freeze that met a task it could not stop waits for the
                # state to be written again.
                self._write(frozen=True)
        return True

    def thaw(self) -> None:
        """Let every task run. Does nothing if they do, or are gone."""
        try:
            self._write(frozen=False)
        except SandboxGone:
            return

    def hold(self) -> None:
        """Keep all that is in it now frozen, while what joins it from now on runs.

        Call this inside a freeze; `let_go` ends it. What is held sits in a frozen
        cgroup of its own below this one, so that its limits still hold.

        Raises:
            SandboxGone: the cgroup is gone.
            CaptureFailed: it cannot be held.
        """
        held = Cgroup(self.version, self.freezer / _HELD, self.accounting)
        pids = self.pids()
        try:
            held.freezer.mkdir(exist_ok=True)
            held._write(frozen=True)
            for pid in pids:
                _move(pid, held.freezer)
            self._write(frozen=False)
            deadline = time.monotonic() + _HOLD_LIMIT_S
            while not held.is_frozen():
                if time.monotonic() > deadline:
                    raise CaptureFailed("its processes cannot be held", object=self.freezer.name)
                time.sleep(_POLL_S)
        except OSError as error:
            self.let_go()
            raise CaptureFailed(f"its processes cannot be held: {error}", object=self.freezer.name) from error

    def hold_more(self, pids: Iterable[int]) -> None:
        """Keep these frozen as well, while `hold` lasts."""
        for pid in pids:
            _move(pid, self.freezer / _HELD)

    def let_go(self) -> None:
        """Let run what was held. Does nothing if nothing is."""
        held = Cgroup(self.version, self.freezer / _HELD, self.accounting)
        if not held.freezer.is_dir():
            return
        for pid in held.pids():
            _move(pid, self.freezer)
        held.thaw()
        deadline = time.monotonic() + _HOLD_LIMIT_S
        while True:
            # What was born in it meanwhile has to move, too; a dead one leaves late.
            for pid in held.pids():
                _move(pid, self.freezer)
            try:
                held.freezer.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > deadline:
                    return
                time.sleep(_POLL_S)

    def held_pids(self) -> list[int]:
        """Return the processes that are held."""
        return Cgroup(self.version, self.freezer / _HELD, self.accounting).pids()

    def _write(self, *, frozen: bool) -> None:
        name, values = (
            ("freezer.state", ("THAWED", "FROZEN")) if self.version == 1 else ("cgroup.freeze", ("0", "1"))
        )
        try:
            (self.freezer / name).write_text(values[frozen])
        except OSError as error:
            raise SandboxGone("its cgroup is gone", object=str(self.freezer)) from error


def _move(pid: int, group: Path) -> None:
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except ProcessLookupError:
        return


def find_cgroup(init_pid: int, container_id: str) -> Cgroup:
    """Find the cgroup of a container by its init process.

    Raises:
        SandboxGone: the process is gone, or is not the container's.
        Unsupported: the container has no cgroup of its own that can be frozen.
    """
    try:
        lines = Path(f"/proc/{init_pid}/cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise SandboxGone("its init process is gone", object=container_id[:12]) from error
    paths = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = _containers(path, container_id)
    mounts = cgroup_mounts()
    freezer_path = paths.get("freezer", "/")
    if "freezer" in mounts and freezer_path != "/":
        accounting = mounts.get("cpuacct")
        cgroup = Cgroup(
            1,
            Path(mounts["freezer"] + freezer_path),
            Path(accounting + paths.get("cpuacct", freezer_path)) if accounting else Path(),
            _own_folders(mounts, paths, container_id),
        )
    else:
        folder = Path(mounts.get("", "/sys/fs/cgroup") + paths.get("", "/"))
        cgroup = Cgroup(2, folder, folder, (folder,))
    _check_own(cgroup, container_id)
    return cgroup


def _own_folders(mounts: Mapping[str, str], paths: Mapping[str, str], container_id: str) -> tuple[Path, ...]:
    """Return the container's folder in each hierarchy that has one for it alone."""
    found = {
        Path(mounts[controller] + path).resolve(): None
        for controller, path in paths.items()
        if controller in mounts and container_id in path
    }
    return tuple(found)


def _containers(path: str, container_id: str) -> str:
    """Return the container's own part of a path: its init may sit in a group below that."""
    parts = path.split("/")
    for index, part in enumerate(parts):
        if container_id in part:
            return "/".join(parts[: index + 1])
    return path


def _check_own(cgroup: Cgroup, container_id: str) -> None:
    """Refuse a cgroup that holds more than the container: freezing it would stop the host."""
    if not any(container_id in part for part in cgroup.freezer.parts):
        raise Unsupported(
            f"its cgroup {cgroup.freezer} is not named after it",
            object=container_id[:12],
            hint="containers with a shared cgroup parent cannot be frozen alone",
        )
    control = "freezer.state" if cgroup.version == 1 else "cgroup.freeze"
    if not (cgroup.freezer / control).exists():
        raise Unsupported(
            f"its cgroup {cgroup.freezer} has no {control}",
            object=container_id[:12],
            hint="cgroup freezing is needed: mount the v1 freezer controller or cgroup2",
        )


def cgroup_mounts() -> dict[str, str]:
    """Map each v1 controller, and "" for v2, to where it is mounted."""
    found: dict[str, str] = {}
    for mount in read_mountinfo("self"):
        if mount.fs_type == b"cgroup":
            for option in mount.super_options:
                found.setdefault(os.fsdecode(option), os.fsdecode(mount.target))
        elif mount.fs_type == b"cgroup2":
            found.setdefault("", os.fsdecode(mount.target))
    return found
