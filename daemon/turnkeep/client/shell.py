"""A shell inside a sandbox that outlives its clients, and a restore of the sandbox."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Self

from turnkeep.client import shell_scripts as scripts
from turnkeep.client.docker_exec import Exec, finish
from turnkeep.client.shell_run import DEFAULT_MAX_OUTPUT_BYTES, MARKS_BYTES, Run, ShellPlace, ShellResult
from turnkeep.errors import InvalidRequest, ShellTimeout, TurnkeepError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FOUND = re.compile(rb"((?:/[a-z]+)+/\.turnkeep-shell-\d+-[A-Za-z0-9._-]+) (new|alive) (\d{1,15})\n")
_START_S = 20.0


class Shell:
    """A shell of a sandbox, found or started by `open_shell`.

    The shell is the sandbox's: variables, functions, working folder and background jobs
    stay from one `run` to the next, whichever client asks, and a restore brings back
    those of the checkpoint. This object only knows its name. May be used from several
    threads; one command runs at a time.
    """

    def __init__(self, place: ShellPlace, *, started: bool) -> None:
        self.started = started
        self._place = place
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """What `open_shell` finds it by."""
        return self._place.name

    @property
    def cwd(self) -> str:
        """Its working folder.

        Raises:
            ShellEnded: it is not there any more.
        """
        found = self._place.ask(scripts.LOOK)
        if not found:
            raise self._place.ended("the shell is not there any more")
        return found.decode(errors="surrogateescape").removesuffix("\n")

    def run(
        self, command: str, *, timeout_s: float | None = None, max_output_bytes: int | None = None
    ) -> ShellResult:
        """Run a command, of any number of lines, and return what it printed and its exit code.

        Its stdin is empty. What background jobs print meanwhile is among the output;
        what they print between runs is not kept. This is no turn: bracket it in one.

        Raises:
            ShellTimeout: it took too long, and was interrupted as by Ctrl-C.
            ShellEnded: there is no shell any more, perhaps because the command ended it.
            Conflict: another client's command runs in it, or a restore cut the command off.
        """
        if "\0" in command:
            raise InvalidRequest("a command cannot hold a NUL", object=str(self._place))
        if timeout_s is not None and timeout_s <= 0:
            raise InvalidRequest("a timeout must be longer than nothing", object=str(self._place))
        max_bytes = self._place.limit_bytes if max_output_bytes is None else max_output_bytes
        run = Run(self._place, command, timeout_s, max_bytes)
        with self._lock:
            return run.result(run.answer())

    def interrupt(self) -> None:
        """Interrupt what runs in it, as Ctrl-C does. Does nothing to an idle shell."""
        self._place.ask(scripts.INTERRUPT)

    def close(self) -> None:
        """End the shell and its jobs, as a closed terminal does: `nohup` and `setsid` protect from it."""
        self._place.ask(scripts.CLOSE)


def open_shell(
    container: str | Callable[[], str],
    name: str = "main",
    *,
    user: str | None = None,
    workdir: str | None = None,
    env: Mapping[str, str] | None = None,
    max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
) -> Shell:
    """Return the sandbox's shell of this name, started if there is none: bash, or else sh.

    `started` says whether it was. Shells of different users are different ones. `workdir`,
    `env` and the most that a command's output may take are for a shell that is started;
    they change nothing in one that is there.

    Raises:
        InvalidRequest: the name is not of letters, digits, and `._-`; no such user or folder.
        TurnkeepError: it could not be started.
    """
    if not _NAME.fullmatch(name):
        raise InvalidRequest("a shell's name has letters, digits and ._- only", object=f"shell {name}")
    options = ("-u", user) if user is not None else ()
    where = container if callable(container) else lambda: container
    place, started = _find(where, name, options, max_output_bytes)
    if started:
        settings = ["-w", workdir] if workdir is not None else []
        for key, value in {**(env or {}), "TURNKEEP_SHELL": place.folder}.items():
            settings += ["-e", f"{key}={value}"]
        _start(place, settings)
    return Shell(place, started=started)


def _find(
    where: Callable[[], str], name: str, options: tuple[str, ...], limit_bytes: int
) -> tuple[ShellPlace, bool]:
    command = ["sh", "-c", scripts.FIND, "turnkeep-shell", name, str(limit_bytes)]
    done = finish(lambda: Exec([*options, where(), *command], b"", MARKS_BYTES), where())
    found = _FOUND.fullmatch(done.out)
    if found is None:
        raise TurnkeepError(f"no place for a shell: {done.err.strip()}", object=f"shell {name} of {where()}")
    place = ShellPlace(
        container=where, name=name, options=options, folder=found[1].decode(), limit_bytes=int(found[3])
    )
    return place, found[2] == b"new"


def _start(place: ShellPlace, settings: list[str]) -> None:
    limit = str(place.limit_bytes + MARKS_BYTES)
    command = ["sh", "-c", scripts.START, "turnkeep-shell", place.folder, limit]
    arguments = ["-d", *place.options, *settings, place.container(), *command]
    finish(lambda: Exec(arguments, b"", MARKS_BYTES), place.container())
    run = Run(place, scripts.SET_UP % {"folder": place.folder}, _START_S, MARKS_BYTES)
    try:
        run.result(run.answer("new"))
    except ShellTimeout as error:
        raise place.ended("the shell does not start") from error
