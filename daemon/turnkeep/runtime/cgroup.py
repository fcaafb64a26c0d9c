"""A container's cgroup: who is in it, freezing and thawing (cgroup v1 and v2).

See Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst and cgroup-v2.rst
("cgroup.freeze") of the kernel.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from turnkeep.errors import CaptureFailed, SandboxGone, Unsupported
from turnkeep.runtime.mountinfo import read_mountinfo

_POLL_S = 0.0002


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The cgroup of one container.

    `freezer` is the folder with the freezing control, `accounting` the one with
    the processor time; on v2 they are the same.
    """

    version: int
    freezer: Path
    accounting: Path

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
        self._write(frozen=True)
        while not self.is_frozen():
            if time.monotonic() > deadline:
                self.thaw()
                raise CaptureFailed(
                    f"its tasks did not freeze within {timeout_s:g} s",
                    object=self.freezer.name,
                    hint="look for processes in state D (ps -eo pid,stat,wchan,comm)",
                )
            time.sleep(_POLL_S)
            if self.version == 1:
                # A v1 freeze that met a task it could not stop waits for the
                # state to be written again.
                self._write(frozen=True)

    def thaw(self) -> None:
        """Let every task run. Does nothing if they do, or are gone."""
        try:
            self._write(frozen=False)
        except SandboxGone:
            return

    def _write(self, *, frozen: bool) -> None:
        name, values = (
            ("freezer.state", ("THAWED", "FROZEN")) if self.version == 1 else ("cgroup.freeze", ("0", "1"))
        )
        try:
            (self.freezer / name).write_text(values[frozen])
        except OSError as error:
            raise SandboxGone("its cgroup is gone", object=str(self.freezer)) from error


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
    mounts = _cgroup_mounts()
    freezer_path = paths.get("freezer", "/")
    if "freezer" in mounts and freezer_path != "/":
        accounting = mounts.get("cpuacct")
        cgroup = Cgroup(
            1,
            Path(mounts["freezer"] + freezer_path),
            Path(accounting + paths.get("cpuacct", freezer_path)) if accounting else Path(),
        )
    else:
        folder = Path(mounts.get("", "/sys/fs/cgroup") + paths.get("", "/"))
        cgroup = Cgroup(2, folder, folder)
    _check_own(cgroup, container_id)
    return cgroup


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


def _cgroup_mounts() -> dict[str, str]:
    """Map each v1 controller, and "" for v2, to where it is mounted."""
    found: dict[str, str] = {}
    for mount in read_mountinfo("self"):
        if mount.fs_type == b"cgroup":
            for option in mount.super_options:
                found.setdefault(os.fsdecode(option), os.fsdecode(mount.target))
        elif mount.fs_type == b"cgroup2":
            found.setdefault("", os.fsdecode(mount.target))
    return found
