"""A recorded command, run again: `docker exec`, as the harness ran it."""

from __future__ import annotations

import hashlib
import os
import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from bench.replay.traces import Step

_PIECE = 65536
_SHOWN = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a command. `exit` is None if it was cut off at its limit."""

    exit: int | None
    took_ns: int
    digest: str
    """Of all that it said, on its two outputs."""
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
        stderr=subprocess.PIPE,
        env=environment,
        bufsize=0,
    ) as process:
        # One by one: in which order they come through the engine is chance.
        said, complained = _Said(process.stdout), _Said(process.stderr)
        ended = _listen((said, complained), deadline)
        if not ended:
            process.kill()
        code = process.wait()
    took_ns = time.monotonic_ns() - started
    return Outcome(
        exit=code if ended else None,
        took_ns=took_ns,
        digest=f"{said.digest()} {complained.digest()}",
        shown=said.shown() + complained.shown(),
    )


class _Said:
    """Output of any length, of which little is kept."""

    def __init__(self, pipe: IO[bytes] | None) -> None:
        assert pipe is not None
        self.fd = pipe.fileno()
        self._hash = hashlib.sha256()
        self._beginning = b""

    def take(self) -> bool:
        """Take in what is there; False at the end."""
        piece = os.read(self.fd, _PIECE)
        self._hash.update(piece)
        self._beginning += piece[: _SHOWN - len(self._beginning)]
        return bool(piece)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def shown(self) -> str:
        return self._beginning.decode(errors="replace")


def _listen(outputs: Sequence[_Said], deadline: float) -> bool:
    """Take in all that is said to its end; False if the deadline comes first."""
    with selectors.DefaultSelector() as ready:
        for output in outputs:
            ready.register(output.fd, selectors.EVENT_READ, output)
        while ready.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in ready.select(left_s):
                if not key.data.take():
                    ready.unregister(key.fd)
        return not ready.get_map()
