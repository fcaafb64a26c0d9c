"""Reading from the kernel how processes are confined, and what they have from elsewhere."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping

from turnkeep.process.confinement import UNLIMITED, Confinement, Credentials, Rlimit, Thread
from turnkeep.process.syscalls import look_at

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts")
_STATUS = re.compile(
    r"^(Umask|NSpid|Uid|Gid|Groups|Cap(?:Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp(?:_filters)?):\t(.*)$",
    re.MULTILINE,
)
_READ_BYTES = 16384
_LIMIT_COLUMN = 26
_NICE, _POLICY = 16, 38
"""Where these stand in /proc/PID/stat, counted from the state, which follows the name."""
_NO_LOGIN = 2**32 - 1
_AIO_RING = "/[aio] (deleted)"
_HUGE_PAGES = (0, 21 << 26, 30 << 26)
_MFD_HUGETLB = 4


def observe(pid: int) -> Confinement:
    """Read how a living process is confined now, by its pid on the host.

    Works on frozen processes. Between two reads a running one may change itself:
    freeze what must be of one instant.

    Raises:
        ProcessLookupError: it is gone, or a zombie.
    """
    try:
        folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _observe(folder)
        finally:
            os.close(folder)
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} is gone") from error


def _observe(folder: int) -> Confinement:
    status = _status(_read(folder, "status"))
    if "Umask" not in status:
        raise ProcessLookupError("the process is a zombie")
    credentials = _credentials(status, _label(folder, "attr/current"))
    _, _, numbers = _read(folder, "stat").rpartition(")")
    threads, count = _threads(folder, credentials)
    return Confinement(
        pid=_inside(status),
        credentials=credentials,
        threads=threads,
        thread_count=count,
        rlimits=_rlimits(_read(folder, "limits")),
        oom_score_adj=int(_read(folder, "oom_score_adj")),
        nice=int(numbers.split()[_NICE]),
        policy=int(numbers.split()[_POLICY]),
        umask=int(status["Umask"], 8),
        login_uid=_login_uid(folder),
        namespaces={name: _namespace(folder, name) for name in _NAMESPACES},
        cgroups=_cgroups(_read(folder, "cgroup")),
        clock_offsets=" ".join(_optional(folder, "timens_offsets").split()),
    )


def _read(folder: int, name: str) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
        return b"".join(parts).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)


def _optional(folder: int, name: str) -> str:
    """Read a file that kernels built without a feature do not have."""
    try:
        return _read(folder, name)
    except FileNotFoundError:
        return ""


def _status(text: str) -> dict[str, str]:
    # A process chooses its name, but the kernel escapes newlines in it.
    return dict(_STATUS.findall(text))


def _credentials(status: Mapping[str, str], label: str) -> Credentials:
    return Credentials(
        uids=_numbers(status["Uid"]),
        gids=_numbers(status["Gid"]),
        groups=_numbers(status["Groups"]),
        inheritable=int(status["CapInh"], 16),
        permitted=int(status["CapPrm"], 16),
        effective=int(status["CapEff"], 16),
        bounding=int(status["CapBnd"], 16),
        ambient=int(status["CapAmb"], 16),
        no_new_privs=status["NoNewPrivs"] != "0",
        seccomp_mode=int(status.get("Seccomp", "0")),
        seccomp_filters=int(status.get("Seccomp_filters", "0")),
        lsm_label=label,
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


def _inside(status: Mapping[str, str]) -> int:
    return _numbers(status["NSpid"])[-1]


def _label(folder: int, name: str) -> str:
    """Return the label of the security module; without one the kernel has none to tell."""
    try:
        return _read(folder, name).rstrip("\0\n")
    except OSError:
        return ""


def _threads(folder: int, process: Credentials) -> tuple[tuple[Thread, ...], int]:
    found, count = [], 0
    tasks = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        names = os.listdir(tasks)
        if len(names) == 1:
            return (), 1
        for name in names:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = _status(_read(tasks, f"{name}/status"))
                credentials = _credentials(status, _label(tasks, f"{name}/attr/current"))
                count += 1
                if credentials != process:
                    found.append(Thread(tid=_inside(status), credentials=credentials))
    finally:
        os.close(tasks)
    return tuple(sorted(found, key=lambda thread: thread.tid)), count


@functools.lru_cache(maxsize=64)
def _rlimits(text: str) -> tuple[Rlimit, ...]:
    pairs = (line[_LIMIT_COLUMN:].split()[:2] for line in text.splitlines()[1:])
    return tuple(Rlimit(soft=_limit(soft), hard=_limit(hard)) for soft, hard in pairs)


def _limit(text: str) -> int:
    return UNLIMITED if text == "unlimited" else int(text)


def _login_uid(folder: int) -> int:
    return int(_optional(folder, "loginuid") or _NO_LOGIN)


def _namespace(folder: int, name: str) -> int:
    try:
        return os.stat(f"ns/{name}", dir_fd=folder).st_ino
    except FileNotFoundError:
        # The kernel lacks this kind; but a process without any is a zombie.
        os.stat("ns/mnt", dir_fd=folder)
        return 0


@functools.lru_cache(maxsize=64)
def _cgroups(text: str) -> Mapping[str, str]:
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found[controllers] = path
    return found


def outside(pid: int, init_pid: int) -> tuple[str, ...]:
    """Name what a process has open that is on none of its container's mounts.

    A container's processes reach nothing else, but CRIU could be made to hand them
    what it has itself. Looks at open files, mappings, the program, the root and the
    working folder. `init_pid` is the container's init; both as on the host.

    Raises:
        ProcessLookupError: one of them is gone.
    """
    try:
        with open(f"/proc/{init_pid}/mountinfo", "rb") as file:
            mounts = {int(line.split(b" ", 1)[0]) for line in file}
        folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return tuple(_foreign(folder, mounts.union(_mounts_of_memory())))
        finally:
            os.close(folder)
    except FileNotFoundError as error:
        raise ProcessLookupError(f"process {pid} or {init_pid} is gone") from error


def _foreign(folder: int, mounts: set[int]) -> Iterator[str]:
    places = ["root", "cwd", "exe"]
    for name in ("fd", "map_files"):
        places += [f"{name}/{each}" for each in _listed(folder, name)]
    for place in places:
        # A running process may close what was just listed.
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(place, dir_fd=folder)
            if _has_path(place, target) and look_at(folder, place).mount not in mounts:
                yield f"{place} -> {os.fsencode(target).decode('utf-8', 'backslashreplace')}"
    os.stat("ns/mnt", dir_fd=folder)


def _listed(folder: int, name: str) -> list[str]:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _has_path(place: str, target: str) -> bool:
    """Whether a link in /proc leads to a file by its path: pipes, sockets and the like have none."""
    if place.startswith("map_files/") and target == _AIO_RING:
        return False
    return target.startswith("/")


def _mounts_of_memory() -> Iterator[int]:
    """Yield the kernel's own mounts that memory files and shared anonymous memory are on."""
    for flags in (0, *(_MFD_HUGETLB | size for size in _HUGE_PAGES)):
        with contextlib.suppress(OSError):
            yield _mount_of_memory(flags)


@functools.cache
def _mount_of_memory(flags: int) -> int:
    fd = os.memfd_create("turnkeep", os.MFD_CLOEXEC | flags)
    try:
        return look_at(fd, f"/proc/self/fd/{fd}").mount
    finally:
        os.close(fd)
