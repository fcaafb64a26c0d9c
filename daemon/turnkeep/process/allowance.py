"""What a container's configuration gives its processes, and so the most that images may ask for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turnkeep.errors import ImagesRefused
from turnkeep.process.confinement import RLIMITS, Confinement

_CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE"),
    *("AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM"),
    *("BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)
CAPABILITY = {name: 1 << number for number, name in enumerate(_CAPABILITIES)}
"""The bit of each capability, by its name without CAP_."""

_MACHINES = {"x86_64": 1, "aarch64": 3}
_PORT_SYSCTL = "net.ipv4.ip_unprivileged_port_start"
_DEVICES = frozenset(f"/dev/{name}".encode() for name in ("full", "null", "random", "tty", "urandom", "zero"))
_LABEL_MODE = " ("


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The most that images may ask for.

    `processes` is what the kernel said of each process at the capture, by its number
    inside; with it a process may ask for no more than it had, and one that was not
    there is refused. `external` are the names of what comes from outside of the
    sandbox and is replaced by something of ours, as CRIU names them.
    """

    capabilities: int
    no_new_privs: bool
    seccomp: bool
    lsm_label: str
    hard_limits: tuple[int, ...]
    login_uid: int
    oom_score_adj: int = 0
    nice: int = 0
    processes: Mapping[int, Confinement] | None = None
    devices: frozenset[bytes] = _DEVICES
    external: frozenset[bytes] = frozenset()
    lowest_port: int = 1024
    open_connections: bool = False
    pid_max: int = 4_194_304
    lowest_address: int = 65536
    pipe_bytes: int = 1024 * 1024
    machine: int = _MACHINES.get(platform.machine(), 0)

    def has(self, capability: str) -> bool:
        """Whether the container's processes can have this capability."""
        return bool(self.capabilities & CAPABILITY[capability])


def allowance_from(spec: Mapping[str, Any], init: Confinement, **more: Any) -> Allowance:
    """Return what a container gives: its OCI configuration, and its init for what that leaves open.

    `spec` is the config.json of its bundle. Limits that it does not set are the
    runtime's own, which init inherited.

    Raises:
        ValueError: it is no such configuration.
    """
    try:
        process, linux = spec["process"], spec.get("linux", {})
        names = process.get("capabilities", {}).get("bounding") or ()
        given = {each["type"]: int(each["hard"]) for each in process.get("rlimits") or ()}
        devices = {str(each["path"]).encode() for each in linux.get("devices") or ()}
        port = int((linux.get("sysctl") or {}).get(_PORT_SYSCTL, 1024))
        return Allowance(
            capabilities=sum(CAPABILITY[name.removeprefix("CAP_")] for name in set(names)),
            no_new_privs=bool(process.get("noNewPrivileges")),
            seccomp=bool(linux.get("seccomp")),
            lsm_label=process.get("apparmorProfile") or process.get("selinuxLabel") or "",
            hard_limits=tuple(
                given.get(f"RLIMIT_{name.upper()}", limit.hard)
                for name, limit in zip(RLIMITS, init.rlimits, strict=True)
            ),
            login_uid=init.login_uid,
            oom_score_adj=int(process.get("oomScoreAdj") or 0),
            nice=min(init.nice, 0),
            devices=_DEVICES | devices,
            lowest_port=port,
            **more,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no OCI configuration of a container: {error!r}") from error


def profile(label: str) -> str:
    """Return a label without the mode that the kernel shows behind an AppArmor profile."""
    return label.partition(_LABEL_MODE)[0]


def require(holds: bool, where: str, found: str, allowed: str) -> None:
    """Go on if this holds.

    Raises:
        ImagesRefused: it does not; with what was found where, and what is allowed.
    """
    if not holds:
        raise ImagesRefused(
            f"process images refused: {where}: {found}; allowed: {allowed}",
            object=where,
            hint="restore the files alone, or start the container with what its processes have",
        )


def shown(value: bytes) -> str:
    """Return a name from the images as text."""
    return value.decode("utf-8", "backslashreplace")
