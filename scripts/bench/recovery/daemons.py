"""Turnkeep's daemon, which may be killed and started again on the same state."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import turnkeep
from demo import stage
from turnkeep.client import Client

_LOG_LINES = 25


class Daemon:
    """`turnkeep serve` on a folder of its own. `tk` is a client that outlives it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = {**stage.private_environment(folder), **_engines(environment)}
        self._running = contextlib.ExitStack()
        self._pid = 0
        self._logs = 0
        self.tk: Client = turnkeep.connect(self._environment["TURNKEEP_ADDRESS"])

    def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            Failed: it does not.
        """
        (self._folder / "notify").unlink(missing_ok=True)
        self._pid = self._running.enter_context(stage.daemon(self._folder, self._environment))

    def kill(self) -> None:
        """End it with SIGKILL, and see it gone."""
        os.kill(self._pid, signal.SIGKILL)
        self._running.close()
        # The next one would begin the log anew.
        self._logs += 1
        log = self._folder / "daemon.log"
        log.with_name(f"daemon-{self._logs}.log").write_bytes(log.read_bytes())

    def stop(self) -> None:
        """Hang up and end it."""
        self.tk.close()
        self._running.close()

    def said(self) -> list[str]:
        """Return the last lines of its log, and of those of the daemons that were killed."""
        logs = sorted(self._folder.glob("daemon*.log"), key=lambda path: path.stat().st_mtime_ns)
        return [line for log in logs for line in log.read_text(errors="replace").splitlines()[-_LOG_LINES:]]


def _engines(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name == "DOCKER_HOST"}


@contextlib.contextmanager
def daemon(folder: Path, environment: Mapping[str, str]) -> Iterator[Daemon]:
    """Yield a daemon that serves; it is stopped afterwards."""
    folder.mkdir()
    made = Daemon(folder, environment)
    try:
        made.start()
        yield made
    finally:
        made.stop()
