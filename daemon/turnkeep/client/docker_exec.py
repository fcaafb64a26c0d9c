"""Short `docker exec`s, by Docker's own command line as `turnkeep exec` does it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from turnkeep.errors import (
    Conflict,
    ContainerNotFound,
    ContainerNotRunning,
    EngineUnavailable,
    InvalidRequest,
    TurnkeepError,
    Unsupported,
)

HEADER = b"turnkeep "
"""How the output of a script begins that must not run twice."""

_ERROR_BYTES = 64 * 1024
_SHORT_S = 60.0
_FROZEN = "paused"
_FROZEN_RETRY_S = 30.0
_FIRST_DELAY_S = 0.02
_LONGEST_DELAY_S = 0.5

_REFUSALS: tuple[tuple[str, type[TurnkeepError], str], ...] = (
    (_FROZEN, Conflict, "a capture or a `docker pause` holds it; try again"),
    ("no such container", ContainerNotFound, ""),
    ("is not running", ContainerNotRunning, "start it"),
    ("is restarting", ContainerNotRunning, "wait until it runs"),
    ("cannot connect to the docker daemon", EngineUnavailable, "is the Docker Engine up?"),
    ("permission denied while trying to connect", EngineUnavailable, "may you use the Docker socket?"),
    ("chdir to cwd", InvalidRequest, "the folder to start in must be there"),
    ("unable to find user", InvalidRequest, "the user must be one of the image's"),
    ("executable file not found", Unsupported, "the image needs sh and the usual programs"),
    ("no such file or directory: unknown", Unsupported, "the image needs sh and the usual programs"),
)
"""What Docker says when it starts nothing, in small letters, and what that means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How an exec ended. `out` is at most one byte longer than was allowed."""

    code: int
    out: bytes
    err: str


class Exec:
    """A running `docker exec`, in a session of its own so that Ctrl-C is for the caller alone.

    What it prints is read by threads: a full pipe on one side never blocks the other.
    """

    def __init__(self, arguments: Sequence[str], payload: bytes, limit_bytes: int) -> None:
        command = ["docker", "exec", *arguments]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            hint = "install Docker's command line"
            raise TurnkeepError(f"cannot run docker: {error.strerror}", object="docker", hint=hint) from error
        self._out = b""
        self._err = b""
        self._threads = [
            threading.Thread(target=work, name="turnkeep-exec", daemon=True)
            for work in (lambda: self._write(payload), lambda: self._read(limit_bytes), self._read_errors)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, timeout_s: float | None = None) -> Done | None:
        """Return how it ended, or None when the time is over before."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                return None
        return Done(code=self._process.wait(), out=self._out, err=self._err.decode(errors="replace"))

    def kill(self) -> None:
        """End the command line. What it started in the sandbox goes on."""
        self._process.kill()
        for thread in self._threads:
            thread.join()
        self._process.wait()

    def _write(self, payload: bytes) -> None:
        stdin = _opened(self._process.stdin)
        # Who does not read to the end says why by other means.
        with contextlib.suppress(OSError), stdin:
            stdin.write(payload)

    def _read(self, limit_bytes: int) -> None:
        with _opened(self._process.stdout) as stdout:
            self._out = stdout.read(limit_bytes + 1)
        if len(self._out) > limit_bytes:
            self._process.kill()

    def _read_errors(self) -> None:
        with _opened(self._process.stderr) as stderr:
            self._err = stderr.read(_ERROR_BYTES)


def _opened(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def refusal(done: Done, container: str) -> TurnkeepError | None:
    """Return why Docker started nothing; None if it started the command.

    Its answers come on either stream, whatever the version. What a script said behind a
    header of its own is none: it ran, and must not run again.
    """
    if done.code == 0 or done.out.startswith(HEADER):
        return None
    said = (done.err + done.out[:_ERROR_BYTES].decode(errors="replace")).strip()
    for words, kind, hint in _REFUSALS:
        if words in said.lower():
            return kind(said, object=f"container {container}", hint=hint)
    return None


def persist(attempt: Callable[[], Done], container: str) -> Done:
    """Return how an exec ended that is tried again while the container is frozen.

    Raises:
        Conflict: it was frozen for half a minute.
        TurnkeepError: Docker started nothing, for another reason.
    """
    deadline = time.monotonic() + _FROZEN_RETRY_S
    delay_s = _FIRST_DELAY_S
    while True:
        done = attempt()
        error = refusal(done, container)
        if error is None:
            return done
        if not isinstance(error, Conflict) or time.monotonic() > deadline:
            raise error
        time.sleep(delay_s)
        delay_s = min(delay_s * 2, _LONGEST_DELAY_S)


def finish(start: Callable[[], Exec], container: str) -> Done:
    """Return how an exec ended that ends by itself, tried again while the container is frozen."""

    def attempt() -> Done:
        execution = start()
        try:
            done = execution.wait(_SHORT_S)
        finally:
            execution.kill()
        if done is None:
            raise Conflict(f"docker exec did not end in {_SHORT_S:g} s", object=f"container {container}")
        return done

    return persist(attempt, container)
