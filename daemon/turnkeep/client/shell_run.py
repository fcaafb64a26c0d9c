"""One command in a sandbox's shell, from sending it to its result."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from turnkeep.client import shell_scripts as scripts
from turnkeep.client.docker_exec import HEADER, Done, Exec, finish, persist
from turnkeep.errors import Conflict, ShellEnded, ShellTimeout, TurnkeepError

DEFAULT_MAX_OUTPUT_BYTES = 100 * 1024 * 1024
MARKS_BYTES = 4096
"""Room for a header, the marks, and what background jobs print before the first of them."""

_HEADER = re.compile(HEADER + rb"(exited|ended|abandoned|gone|busy) (\d{1,3}|-)\n")
_SHORT_S = 60.0
_GRACE_S = 5.0
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellResult:
    """What a command printed, both streams in order, and how it ended.

    `data` is exact. If the command printed more than was asked for, it is the beginning
    of that, and `truncated` says so.
    """

    data: bytes = field(repr=False)
    exit_code: int
    truncated: bool = False

    @property
    def output(self) -> str:
        """The text of `data`; what is not UTF-8 is replaced."""
        return self.data.decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellPlace:
    """Where a shell is: the container by name or id, options of `docker exec`, its folder there."""

    container: Callable[[], str]
    name: str
    options: tuple[str, ...] = ()
    folder: str = ""
    limit_bytes: int = DEFAULT_MAX_OUTPUT_BYTES

    def execute(self, script: str, *arguments: str, payload: bytes = b"", limit_bytes: int = 0) -> Exec:
        """Start a script in the sandbox."""
        command = ["sh", "-c", script, "turnkeep-shell", self.folder, *arguments]
        container = self.container()
        return Exec(["-i", *self.options, container, *command], payload, limit_bytes + MARKS_BYTES)

    def ask(self, script: str, *arguments: str) -> bytes:
        """Return what a script prints that ends by itself."""
        return finish(lambda: self.execute(script, *arguments), self.container()).out

    def ended(self, message: str, data: bytes = b"") -> ShellEnded:
        """Return the error for a shell that is no more."""
        error = ShellEnded(message, object=str(self), hint="open it again to get a new one")
        error.output = data.decode(errors="replace")
        return error

    def __str__(self) -> str:
        return f"shell {self.name} of {self.container()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What RUN said: how the command ended, and its output without the marks."""

    word: str
    code: int | None
    data: bytes
    truncated: bool


class Run:
    """One command, from sending it to its result."""

    def __init__(self, place: ShellPlace, command: str, timeout_s: float | None, max_bytes: int) -> None:
        self._place = place
        self._payload = command.encode(errors="surrogateescape")
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._token = secrets.token_hex(16)

    def answer(self, state: str = "alive") -> Answer:
        """Send the command and wait for its end."""
        limit_bytes = self._max_bytes + MARKS_BYTES

        def attempt() -> Done:
            asked = (self._token, str(limit_bytes), state)
            execution = self._place.execute(
                scripts.RUN, *asked, payload=self._payload, limit_bytes=limit_bytes
            )
            try:
                return self._wait(execution)
            except TurnkeepError:
                raise
            except BaseException:
                # Ctrl-C: as a terminal would have it, the command gets it as well.
                self._give_up()
                raise
            finally:
                execution.kill()

        return self._read(persist(attempt, self._place.container()))

    def result(self, answer: Answer) -> ShellResult:
        """Return the result of a command that ended, or raise what came instead."""
        match answer.word:
            case "exited" if answer.code is not None:
                return ShellResult(data=answer.data, exit_code=answer.code, truncated=answer.truncated)
            case "busy":
                hint = "wait for it, or use a shell of another name"
                raise Conflict(
                    "another client's command runs in the shell", object=str(self._place), hint=hint
                )
            case "ended":
                message = f"the command ended the shell, with exit code {answer.code}"
                raise self._place.ended(message, answer.data)
            case _:
                raise self._place.ended("the shell is not there any more", answer.data)

    def _wait(self, execution: Exec) -> Done:
        deadline = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while True:
            left_s = _LOOK_S if deadline is None else min(_LOOK_S, deadline - time.monotonic())
            done = execution.wait(max(left_s, 0))
            if done is not None:
                return done
            if deadline is not None and time.monotonic() >= deadline:
                self._time_out(execution)
            # One that was killed cannot say so itself.
            if self._is_gone():
                self._place.ask(scripts.ABANDON, self._token)

    def _is_gone(self) -> bool:
        try:
            return not self._place.ask(scripts.LOOK)
        except TurnkeepError:
            # Frozen for long, or stopped: then the exec itself ends.
            return False

    def _time_out(self, execution: Exec) -> NoReturn:
        self._place.ask(scripts.INTERRUPT)
        done = execution.wait(_GRACE_S)
        if done is None:
            self._place.ask(scripts.ABANDON, self._token)
            done = execution.wait(_SHORT_S)
        message = f"the command took longer than {self._timeout_s:g} s"
        answer = self._read(done) if done is not None else None
        if answer is not None and answer.word == "ended":
            raise self._place.ended(f"{message}, and its interruption ended the shell", answer.data)
        how = "it was interrupted, and the shell is free again"
        if answer is None or answer.word != "exited":
            how = "it goes on in spite of SIGINT, and later commands wait for it"
        error = ShellTimeout(f"{message}; {how}", object=str(self._place))
        error.output = answer.data.decode(errors="replace") if answer is not None else ""
        raise error

    def _give_up(self) -> None:
        self._place.ask(scripts.INTERRUPT)
        self._place.ask(scripts.ABANDON, self._token)

    def _read(self, done: Done) -> Answer:
        """Return what an exec of RUN says."""
        header = _HEADER.match(done.out)
        if header is None:
            said = done.err.strip() or f"docker exec exited with {done.code}"
            hint = "was the sandbox restored or stopped meanwhile?"
            raise Conflict(f"the command was cut off: {said}", object=str(self._place), hint=hint)
        word, code = header[1].decode(), header[2].decode()
        _, _, data = done.out[header.end() :].partition(f"\0B{self._token}\0".encode())
        data, end, _ = data.partition(f"\0E{self._token}\0".encode())
        return Answer(
            word=word,
            code=None if code == "-" else int(code),
            data=data[: self._max_bytes],
            truncated=not end or len(data) > self._max_bytes,
        )
