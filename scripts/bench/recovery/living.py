"""Which processes a sandbox has, from the host's /proc, without any of Turnkeep's code."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Living:
    """A process that lives, with its number inside the sandbox."""

    pid: int
    name: str
    command: str
    threads: int


def living(init: int, *, and_dead: bool = False) -> frozenset[Living]:
    """Return the processes in the pid namespace of a container's init, without init itself.

    Zombies are left out, unless asked for: nothing of them can be brought back but the number.
    """
    space = os.readlink(f"/proc/{init}/ns/pid")
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and entry != str(init):
            # Any of them may end while it is looked at.
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/pid") == space:
                    found |= _described(entry, and_dead)
    return frozenset(found)


def _described(entry: str, and_dead: bool) -> set[Living]:
    lines = Path(f"/proc/{entry}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    command = Path(f"/proc/{entry}/cmdline").read_bytes()
    is_dead = status["State"].split()[0] in "ZX"
    if is_dead and not and_dead:
        return set()
    return {
        Living(
            pid=int(status["NSpid"].split()[-1]),
            name=status["Name"].strip() + (" (dead)" if is_dead else ""),
            command=command.replace(b"\0", b" ").decode(errors="replace").strip(),
            threads=int(status["Threads"]),
        )
    }
