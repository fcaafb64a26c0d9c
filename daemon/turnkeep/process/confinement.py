"""What holds a process: identity, capabilities, filters, limits, namespaces; and whether it still does.

A restored process must be exactly as confined as the captured one. What the kernel
says of a process is read at capture (`observe`), stored with the checkpoint, read
again after a restore and compared here, field by field. Nothing of it comes from
images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from turnkeep.codec import from_json, to_json

UNLIMITED = 2**64 - 1
RLIMITS = (
    *("cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile"),
    *("memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"),
)
"""The kernel's resource limits by their numbers."""

_CAPABILITY_SETS = ("inheritable", "permitted", "effective", "bounding", "ambient")
_SECCOMP_ORDER = {0: 0, 2: 1, 1: 2}
"""Modes from none over filters to strict, which allows four system calls."""
_REAL_TIME = frozenset({1, 2, 6})
_CLOCKS = "time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who a thread is and what it may do. Capability sets are bit masks."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    no_new_privs: bool
    seccomp_mode: int
    seccomp_filters: int
    lsm_label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """A thread that is confined otherwise than its process, by its number inside."""

    tid: int
    credentials: Credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class Rlimit:
    """A resource limit: the one in force, and how far it may be raised."""

    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What the kernel says holds a process. `pid` is its number inside the sandbox.

    `threads` has those whose credentials differ from the process's. Namespaces are
    inode numbers; control groups are paths by their controllers (as in /proc/PID/cgroup).
    """

    pid: int
    credentials: Credentials
    threads: tuple[Thread, ...]
    rlimits: tuple[Rlimit, ...]
    oom_score_adj: int
    nice: int
    policy: int
    umask: int
    login_uid: int
    namespaces: Mapping[str, int]
    cgroups: Mapping[str, str]
    clock_offsets: str = ""
    thread_count: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return a value that `json.dumps` takes and `from_json` reads back."""
        return cast("dict[str, Any]", to_json(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned.

        Raises:
            ValueError: a required field is absent or of the wrong type.
        """
        return cast("Self", from_json(cls, value))

    def thread(self, tid: int) -> Credentials:
        """Return the credentials of one of its threads."""
        return next((each.credentials for each in self.threads if each.tid == tid), self.credentials)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not as it was. `weaker` if it holds the process less, or cannot be told."""

    field: str
    captured: str
    restored: str
    weaker: bool

    def __str__(self) -> str:
        verdict = "weaker" if self.weaker else "not weaker"
        return f"{self.field}: {self.captured} before, {self.restored} now ({verdict})"


def compare(
    captured: Confinement, restored: Confinement, *, init: Confinement | None = None
) -> tuple[Difference, ...]:
    """Return what differs between a process at its capture and after its restore.

    Namespaces and control groups must be those of `init`, the container's init of
    now, if it is given (a fork has other ones than the original); else those at the
    capture. A time namespace of its own is what CRIU gives a process: it shows other
    clocks and grants nothing.
    """
    around = init or captured
    return (
        *_credentials("", captured.credentials, restored.credentials),
        *_threads(captured, restored),
        *_rlimits(captured.rlimits, restored.rlimits),
        *_numbers(captured, restored),
        *_namespaces(around.namespaces, restored),
        *_cgroups(around.cgroups, restored.cgroups),
    )


def _credentials(prefix: str, captured: Credentials, restored: Credentials) -> Iterator[Difference]:
    # Another identity is not a weaker or stronger one: it is somebody else.
    for name in ("uids", "gids", "groups", "lsm_label"):
        yield from _difference(prefix + name, getattr(captured, name), getattr(restored, name), True)
    for name in _CAPABILITY_SETS:
        before, now = getattr(captured, name), getattr(restored, name)
        yield from _difference(prefix + name, f"{before:#x}", f"{now:#x}", bool(now & ~before))
    yield from _difference(
        prefix + "no_new_privs", captured.no_new_privs, restored.no_new_privs, captured.no_new_privs
    )
    before, now = (_SECCOMP_ORDER.get(each.seccomp_mode, -1) for each in (captured, restored))
    yield from _difference(
        prefix + "seccomp_mode", captured.seccomp_mode, restored.seccomp_mode, now <= before
    )
    yield from _difference(
        prefix + "seccomp_filters",
        captured.seccomp_filters,
        restored.seccomp_filters,
        restored.seccomp_filters < captured.seccomp_filters,
    )


def _threads(captured: Confinement, restored: Confinement) -> Iterator[Difference]:
    yield from _difference("threads", captured.thread_count, restored.thread_count, True)
    numbers = {thread.tid for thread in (*captured.threads, *restored.threads)}
    for tid in sorted(numbers):
        yield from _credentials(f"thread {tid}: ", captured.thread(tid), restored.thread(tid))


def _rlimits(captured: tuple[Rlimit, ...], restored: tuple[Rlimit, ...]) -> Iterator[Difference]:
    yield from _difference("rlimits", len(captured), len(restored), True)
    for number, (before, now) in enumerate(zip(captured, restored, strict=False)):
        name = RLIMITS[number] if number < len(RLIMITS) else str(number)
        weaker = now.soft > before.soft or now.hard > before.hard
        yield from _difference(f"rlimit {name}", _limits(before), _limits(now), weaker)


def _limits(limit: Rlimit) -> str:
    return "/".join("unlimited" if each == UNLIMITED else str(each) for each in (limit.soft, limit.hard))


def _numbers(captured: Confinement, restored: Confinement) -> Iterator[Difference]:
    yield from _difference("pid", captured.pid, restored.pid, True)
    for name in ("oom_score_adj", "nice"):
        before, now = getattr(captured, name), getattr(restored, name)
        yield from _difference(name, before, now, now < before)
    yield from _difference("policy", captured.policy, restored.policy, restored.policy in _REAL_TIME)
    opened = bool(captured.umask & ~restored.umask)
    yield from _difference("umask", f"{captured.umask:#o}", f"{restored.umask:#o}", opened)
    yield from _difference("login_uid", captured.login_uid, restored.login_uid, True)


def _namespaces(around: Mapping[str, int], restored: Confinement) -> Iterator[Difference]:
    for name in sorted(around.keys() | restored.namespaces.keys()):
        before, now = around.get(name, 0), restored.namespaces.get(name, 0)
        shown = f"{now} ({restored.clock_offsets})" if name == _CLOCKS else now
        if before != now:
            yield from _difference(f"{name} namespace", before, shown, name != _CLOCKS)


def _cgroups(around: Mapping[str, str], restored: Mapping[str, str]) -> Iterator[Difference]:
    for name in sorted(around.keys() | restored.keys()):
        before, now = around.get(name), restored.get(name)
        within = before is not None and now is not None and now.startswith(before.rstrip("/") + "/")
        yield from _difference(f"cgroup {name or 'v2'}", before, now, not within)


def _difference(field: str, captured: object, restored: object, weaker: bool) -> Iterator[Difference]:
    if captured != restored:
        yield Difference(field=field, captured=str(captured), restored=str(restored), weaker=weaker)
