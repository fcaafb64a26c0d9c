"""Freezing a sandbox so that it is thawed whatever happens to this process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from turnkeep.errors import CaptureFailed, InternalError
from turnkeep.runtime import watchdog
from turnkeep.runtime.cgroup import Cgroup

_FREEZE_LIMIT_S = 10.0
"""Tasks that have not stopped by then wait for something that may never come."""


@dataclass(slots=True)
class Frozen:
    """A freeze that lasts. `ns` is how long it did, once it is over."""

    cgroup: Cgroup
    since: float
    ns: int = 0

    def check(self) -> None:
        """Make sure that nothing ran since the freeze began.

        Raises:
            CaptureFailed: the watchdog, or somebody else, thawed the sandbox.
        """
        if not self.cgroup.is_frozen():
            raise CaptureFailed(
                "the sandbox was thawed during the capture, which took longer than limits.freeze_budget_s,"
                " or the daemon was stopped",
                object=self.cgroup.freezer.name,
                hint="if turns change very many files, raise limits.freeze_budget_s",
            )


class Freezer:
    """Freezes cgroups, with a watchdog process behind it. Used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._armed: dict[str, list[str]] = {}

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._watchdog is not None and self._watchdog.stdin is not None:
                with contextlib.suppress(OSError):
                    self._watchdog.stdin.close()
                self._watchdog.wait()
                self._watchdog = None

    @property
    def watchdog_pid(self) -> int:
        """The watchdog's process id; 0 if it does not run."""
        return self._watchdog.pid if self._watchdog is not None else 0

    @contextlib.contextmanager
    def frozen(self, cgroup: Cgroup, budget_s: float, *, hold: bool = False) -> Iterator[Frozen]:
        """Freeze for the length of a `with` block.

        When the block is left, however, the sandbox runs, unless it was paused
        before. If this process is
        killed or stopped inside it, or stays longer than `budget_s`, the watchdog
        thaws, and `Frozen.check` says so. With `hold`, a killed process leaves
        the sandbox frozen: a restore was half done.

        Raises:
            CaptureFailed: the sandbox cannot be frozen in time.
            SandboxGone: it is gone.
        """
        if cgroup.is_frozen():
            # Somebody paused it through Docker: it stands still already, and it
            # is not ours to let it run.
            yield Frozen(cgroup, time.monotonic())
            return
        name = cgroup.freezer.name
        control, text = ("freezer.state", "THAWED") if cgroup.version == 1 else ("cgroup.freeze", "0")
        arm = f"arm {name} {budget_s:.3f} {text} {cgroup.freezer / control}"
        self._armed[name] = [f"hold {name}", arm] if hold else [arm]
        for line in self._armed[name]:
            self._tell(line)
        state = Frozen(cgroup, time.monotonic())
        started = time.monotonic_ns()
        try:
            cgroup.freeze(min(budget_s, _FREEZE_LIMIT_S))
            yield state
        finally:
            cgroup.thaw()
            state.ns = time.monotonic_ns() - started
            self._armed.pop(name, None)
            self._tell(f"disarm {name}")

    def _tell(self, line: str) -> None:
        with self._lock:
            for _ in range(2):
                process = self._watchdog
                if process is not None and process.poll() is None:
                    with contextlib.suppress(BrokenPipeError):
                        _pipe(process).write(line.encode() + b"\n")
                        _pipe(process).flush()
                        return
                self._start()
        raise InternalError("the freeze watchdog does not run and cannot be started")

    def _start(self) -> None:
        if self._watchdog is not None:
            with contextlib.suppress(OSError):
                _pipe(self._watchdog).close()
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(watchdog.__file__))],
            stdin=subprocess.PIPE,
            start_new_session=True,
            close_fds=True,
        )
        # One that died took its orders with it.
        for line in [line for lines in self._armed.values() for line in lines]:
            _pipe(self._watchdog).write(line.encode() + b"\n")
        _pipe(self._watchdog).flush()


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
