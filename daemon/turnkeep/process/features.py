"""What capturing processes needs of the kernel, each asked for without changing anything.

A kernel's version does not tell: what it was built with, a filter on system calls
around the daemon, and the daemon's own capabilities decide as well.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from turnkeep.errors import TurnkeepError
from turnkeep.process import syscalls
from turnkeep.process.mounts import make_read_only, memory_file_system

_SYS_OPEN_TREE, _SYS_CLONE3 = 428, 435
_OPEN_TREE_CLONE, _AT_EMPTY_PATH = 1, 0x1000
_CLONE_NEWUTS = 0x04000000
_PAGE = 4096
_CAPABILITIES = {19: "CAP_SYS_PTRACE", 21: "CAP_SYS_ADMIN"}
"""Those without which CRIU dumps nothing at all."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_long]
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One thing that is there or not. `needs` says where it would come from."""

    name: str
    present: bool
    why: str
    needs: str


def look_for_features() -> tuple[Feature, ...]:
    """Look for all of them."""
    return tuple(
        Feature(name=name, present=_works(probe), why=why, needs=needs) for name, probe, why, needs in _PROBES
    )


def _works(probe: Callable[[], bool]) -> bool:
    try:
        return probe()
    except (OSError, TurnkeepError):
        return False


def missing_capabilities() -> tuple[str, ...]:
    """Return the capabilities that this process lacks and CRIU cannot do without."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    held = int(found[1], 16) if found else 0
    return tuple(name for number, name in _CAPABILITIES.items() if not held >> number & 1)


def _namespaces_by_pidfd() -> bool:
    fd = os.pidfd_open(os.getpid())
    try:
        # Into the namespace that this thread is in already.
        return int(_libc.setns(fd, _CLONE_NEWUTS)) == 0
    finally:
        os.close(fd)


def _detached_mounts() -> bool:
    root = memory_file_system(_PAGE)
    try:
        flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
        copy = int(_libc.syscall(_SYS_OPEN_TREE, root, b"", flags))
        if copy >= 0:
            os.close(copy)
        return copy >= 0
    finally:
        os.close(root)


def _mount_attributes() -> bool:
    root = memory_file_system(_PAGE)
    try:
        make_read_only(root)
    finally:
        os.close(root)
    return True


def _clone3() -> bool:
    """Ask with arguments of no size: a kernel that knows the call finds them too short."""
    return int(_libc.syscall(_SYS_CLONE3, 0, None, 0)) < 0 and ctypes.get_errno() == errno.EINVAL


def _checkpoint_restore() -> bool:
    return Path("/proc/sys/kernel/ns_last_pid").exists()


def _kcmp() -> bool:
    own = (os.getpid(), 0)
    return syscalls.compare(syscalls.KCMP_VM, own, own) == 0


_PROBES: tuple[tuple[str, Callable[[], bool], str, str], ...] = (
    ("setns by pidfd", _namespaces_by_pidfd, "CRIU is started in a sandbox's namespaces", "Linux 5.8"),
    ("detached mounts", _detached_mounts, "CRIU and images reach a sandbox without a path", "Linux 5.2"),
    ("mount_setattr", _mount_attributes, "a sandbox must not write to CRIU's files", "Linux 5.12"),
    ("clone3", _clone3, "restored processes have the numbers that they had", "Linux 5.5"),
    (
        "checkpoint/restore",
        _checkpoint_restore,
        "CRIU needs what it opens of processes",
        "a kernel with CONFIG_CHECKPOINT_RESTORE",
    ),
    (
        "kcmp",
        _kcmp,
        "what process trees share is looked for with it",
        "a kernel with CONFIG_KCMP",
    ),
)
