"""A recorded command, run again: `docker exec`, as the harness ran it."""

from __future__ import annotations

import hashlib
import os
import selectors
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bench.replay.traces import Step

_PIECE = 65536
_SHOWN = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a command. `exit` is None if it was cut off at its limit."""

    exit: int | None
    took_ns: int
    digest: str
    """Of all that it said."""
    shown: str
    """The beginning of what it said."""


def run(container: str, step: Step, limit_s: float, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run the command to its end or its limit, which is its own where the trace gives one.

    At the limit only the client of `docker exec` is killed. Whatever it had started in
    the container runs on, as it did when the run was recorded.
    """
    command = ["docker", "exec", "-w", step.cwd, container, *step.shell, step.command]
    started = time.monotonic_ns()
    deadline = time.monotonic() + (step.limit_s or limit_s)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        bufsize=0,
    ) as process:
        said = _Said()
        ended = said.listen(process, deadline)
        if not ended:
            process.kill()
        code = process.wait()
    took_ns = time.monotonic_ns() - started
    return Outcome(exit=code if ended else None, took_ns=took_ns, digest=said.digest(), shown=said.shown())


class _Said:
    """Output of any length, of which little is kept."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._beginning = b""

    def listen(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Take in the output to its end; False if the deadline comes first."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while (left_s := deadline - time.monotonic()) > 0:
                if not ready.select(left_s):
                    continue
                if not (piece := os.read(process.stdout.fileno(), _PIECE)):
                    return True
                self._hash.update(piece)
                self._beginning += piece[: _SHOWN - len(self._beginning)]
        return False

    def digest(self) -> str:
        return self._hash.hexdigest()

    def shown(self) -> str:
        return self._beginning.decode(errors="replace")
