"""How processes are confined, read from /proc by a reader that shares no code with Turnkeep."""

from __future__ import annotations

import os
from pathlib import Path

from tests.e2e.harness import Box

_STATUS = {
    *("Name", "Umask", "Uid", "Gid", "Groups", "NSpid", "NSpgid", "NSsid", "Threads", "Cpus_allowed"),
    *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters"),
    *("Speculation_Store_Bypass", "THP_enabled", "CoreDumping", "SigBlk", "SigIgn", "SigCgt"),
}
_FILES = ("limits", "oom_score_adj", "cgroup", "loginuid", "attr/current", "timerslack_ns", "timens_offsets")
_NICE = 16


def host_pid(box: Box, pid: int) -> int:
    """Return the pid on the host of a process of the sandbox."""
    return everyone(box)[pid]


def everyone(box: Box) -> dict[int, int]:
    """Return the sandbox's processes: pid inside to pid on the host."""
    namespace = os.stat(f"/proc/{box.state()['Pid']}/ns/pid").st_ino
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}/ns/pid").st_ino == namespace:
                    found[int(_status(int(name))["NSpid"].split()[-1])] = int(name)
            except OSError:
                continue
    return found


def confined(box: Box, pid: int) -> dict[str, str]:
    """Return everything that confines a process, and what it is made of, by the pid inside."""
    process = Path(f"/proc/{host_pid(box, pid)}")
    status = _status(int(process.name))
    status["NSpid"] = status["NSpid"].split()[-1]
    status["NSpgid"] = status["NSpgid"].split()[-1]
    status["NSsid"] = status["NSsid"].split()[-1]
    found = {key: value for key, value in status.items() if key in _STATUS}
    for name in _FILES:
        try:
            found[name] = (process / name).read_text()
        except OSError as error:
            found[name] = str(error.strerror)
    for name in os.listdir(process / "ns"):
        found[f"ns/{name}"] = os.readlink(process / "ns" / name)
    for name in ("cwd", "root", "exe"):
        found[name] = os.readlink(process / name)
    found["nice"] = (process / "stat").read_text().rpartition(")")[2].split()[_NICE]
    found["mounts"] = (process / "mountinfo").read_text()
    for task in sorted((process / "task").iterdir()):
        inner = _status(int(task.name))
        found[f"thread {inner['NSpid'].split()[-1]}"] = " ".join(
            inner[key] for key in ("CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp", "Uid")
        )
    return found


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cgroups(pid: int) -> dict[str, str]:
    """Return a process's cgroups by their controllers, by the pid on the host."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}


def may_set_limits() -> bool:
    """Whether this machine's root may set the limits of others' processes (CAP_SYS_RESOURCE)."""
    return bool(int(_status(os.getpid())["CapEff"], 16) >> 24 & 1)
