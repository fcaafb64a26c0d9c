"""Who calls, and what they may do.

A caller is told by the kernel (the credentials of a unix socket's other end) or
by a certificate. Its names, "user:alice", "group:ops" or "cert:ops.example", are
looked for in the configuration's lists, which give it its role.
"""

from __future__ import annotations

import enum
import pwd
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from grp import getgrgid

from turnkeep.config import AccessSettings

_LOCAL_KINDS = ("user:", "uid:", "group:", "gid:")


class Role(enum.StrEnum):
    """What a caller may do: everything; what concerns its own sandboxes; look; nothing."""

    OPERATOR = "operator"
    HARNESS = "harness"
    VIEWER = "viewer"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `name` is the name under which it was admitted; sandboxes are owned by it."""

    name: str
    role: Role
    pid: int = 0


DAEMON = Caller("daemon", Role.OPERATOR)
"""Who acts when nobody calls."""

_current: ContextVar[Caller] = ContextVar("caller", default=DAEMON)


def current() -> Caller:
    """Return who made the call that is being answered."""
    return _current.get()


@contextmanager
def acting_for(caller: Caller) -> Iterator[None]:
    """Answer a call of this caller."""
    token = _current.set(caller)
    try:
        yield
    finally:
        # A stream that is closed early is closed in another context.
        with suppress(ValueError):
            _current.reset(token)


class Policy:
    """The configured lists.

    Root is an operator. As long as no list names a user or a group, so is whoever
    may open the socket: its owner, group and mode decide then.
    """

    def __init__(self, access: AccessSettings) -> None:
        self._roles: dict[str, Role] = {}
        # What is listed twice has the role that may do more.
        lists = (
            (Role.VIEWER, access.viewers),
            (Role.HARNESS, access.harnesses),
            (Role.OPERATOR, access.operators),
        )
        for role, names in lists:
            self._roles.update(dict.fromkeys(names, role))
        self.admits_all = not any(name.startswith(_LOCAL_KINDS) for name in self._roles)

    def of_process(self, pid: int, uid: int, groups: Iterable[int]) -> Caller:
        """Return who a process of this host is."""
        name = _user_name(uid)
        if uid == 0:
            return Caller(name, Role.OPERATOR, pid)
        names = [name, f"uid:{uid}", *_group_names(groups)]
        return self._first(names, pid, Role.OPERATOR if self.admits_all else Role.NOBODY)

    def of_certificate(self, names: Iterable[str]) -> Caller:
        """Return who the holder of a certificate with these names is."""
        return self._first([f"cert:{name}" for name in names] or ["cert:"], 0, Role.NOBODY)

    def _first(self, names: list[str], pid: int, otherwise: Role) -> Caller:
        """Return the caller under that of its names which may do most; under its first if none is listed."""
        for role in Role:
            for name in names:
                if self._roles.get(name) is role:
                    return Caller(name, role, pid)
        return Caller(names[0], otherwise, pid)


def _user_name(uid: int) -> str:
    with suppress(KeyError):
        return f"user:{pwd.getpwuid(uid).pw_name}"
    return f"uid:{uid}"


def _group_names(groups: Iterable[int]) -> Iterator[str]:
    for gid in groups:
        with suppress(KeyError):
            yield f"group:{getgrgid(gid).gr_name}"
        yield f"gid:{gid}"
