"""The daemon with clocks at some of its functions: where the time goes.

Run as a program this is `turnkeep`. What a function took is appended to the file
that `CLOCKS` in the environment names, a line each, when it returns. Elsewhere,
`Clocks` reads that file.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CLOCKS = "TURNKEEP_BENCH_CLOCKS"

# A short name for each, and where it is looked up by who calls it.
FUNCTIONS = {
    "criu_restore": "turnkeep.process.sandboxed:InSandbox.restore",
    "criu_check": "turnkeep.restorer.processes:_compare",
    "load": "turnkeep.coordinator.loading:load_images",
    "read": "turnkeep.process.archive:load",
    "kill": "turnkeep.coordinator.restore:stop_strays",
    "gone": "turnkeep.coordinator.restore:see_them_gone",
    "back": "turnkeep.coordinator.live_restore:bring_back",
    "create": "turnkeep.runtime.engine:Engine.create",
    "start": "turnkeep.runtime.engine:Engine.start",
}


def places() -> dict[str, tuple[Any, str]]:
    """Return, for each short name, the object that holds the function, and its name there.

    A function that this version of the daemon does not have is left out.
    """
    found = {}
    for name, place in FUNCTIONS.items():
        module, _, path = place.partition(":")
        *owners, last = path.split(".")
        with contextlib.suppress(ImportError, AttributeError):
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            getattr(owner, last)
            found[name] = owner, last
    return found


class Clocks:
    """What the clocks showed since they were last read."""

    def __init__(self, path: Path) -> None:
        self.complete = len(places()) == len(FUNCTIONS)
        """Whether the daemon has all functions: else its parts cannot be told from the rest."""
        self._path = path
        self._position = 0
        path.touch()

    def read(self) -> Mapping[str, int]:
        """Return the nanoseconds spent in each function since the last call; 0 in the others."""
        found: dict[str, int] = defaultdict(int)
        with self._path.open() as lines:
            lines.seek(self._position)
            for line in lines:
                name, taken = line.split()
                found[name] += int(taken)
            self._position = lines.tell()
        return found


def _clocked(name: str, function: Callable[..., Any], fd: int) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter_ns()
        try:
            return function(*arguments, **options)
        finally:
            os.write(fd, b"%s %d\n" % (name.encode(), time.perf_counter_ns() - started))

    return wrapper


def main() -> int:
    """Set the clocks, then be `turnkeep`."""
    fd = os.open(os.environ[CLOCKS], os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    for name, (owner, last) in places().items():
        setattr(owner, last, _clocked(name, getattr(owner, last), fd))
    from turnkeep.cli import main as turnkeep

    sys.argv[0] = "turnkeep"
    turnkeep()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
