"""A daemon with clocks, which can be started again with nothing of its store in memory."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import turnkeep
from demo import stage
from turnkeep.client import Client

from bench.processes import clocks
from bench.processes.clocks import CLOCKS, Clocks

_START_S, _STOP_S = 60.0, 60.0
_LOG_LINES = 15
_DATAGRAMS = socket.AF_UNIX, socket.SOCK_DGRAM


class Daemon:
    """`turnkeep serve` on a folder of its own. `tk` is a client of the one that runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {**stage.private_environment(folder), CLOCKS: str(folder / "clocks")}
        self.clocks = Clocks(folder / "clocks")
        self.tk: Client = turnkeep.connect(self._environment["TURNKEEP_ADDRESS"])

    def start(self) -> None:
        """Start it and wait until it serves.

        Raises:
            Failed: it does not.
        """
        notify = self._folder / "notify"
        notify.unlink(missing_ok=True)
        with (self._folder / "daemon.log").open("ab") as log, socket.socket(*_DATAGRAMS) as ready:
            ready.bind(str(notify))
            # A session of its own: Ctrl-C is for the benchmark, which then stops it in order.
            self._process = subprocess.Popen(
                [sys.executable, clocks.__file__, "serve", "--log-format", "json"],
                env={**self._environment, "NOTIFY_SOCKET": str(notify)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            _wait_until_ready(ready, self._process.pid)
        # A client of the one before would wait a while until it seeks the new one.
        self.tk.close()
        self.tk = turnkeep.connect(self._environment["TURNKEEP_ADDRESS"])

    def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def restart_cold(self) -> None:
        """Start it again, with its state on the disk and not in memory."""
        # It would wait a while for who is connected to hang up.
        self.tk.close()
        self.stop()
        os.sync()
        for path in (self._folder / "state").rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.start()


def _wait_until_ready(ready: socket.socket, pid: int) -> None:
    """Wait for what the daemon tells systemd, too, or for its end (sd_notify(3))."""
    ended = os.pidfd_open(pid)
    try:
        readable, _, _ = select.select([ready.fileno(), ended], [], [], _START_S)
    finally:
        os.close(ended)
    if ready.fileno() not in readable or b"READY=1" not in ready.recv(4096):
        raise stage.Failed("the daemon ended while it started, or took too long for it")


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[Daemon]:
    """Yield a daemon that serves; it is stopped afterwards."""
    made = Daemon(folder)
    try:
        made.start()
        yield made
    except Exception:
        sys.stderr.writelines((folder / "daemon.log").read_text().splitlines(keepends=True)[-_LOG_LINES:])
        raise
    finally:
        made.tk.close()
        made.stop()
