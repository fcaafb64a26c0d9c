"""`turnkeep exec`: docker exec, bracketed as one turn."""

from __future__ import annotations

import enum
import shlex
import subprocess
from typing import Annotated

import typer

from turnkeep.cli import printing
from turnkeep.cli.run import SandboxArgument, started
from turnkeep.errors import InvalidRequest, TurnkeepError

_LABEL_LENGTH = 120


class Failing(enum.StrEnum):
    """What to do when Turnkeep fails."""

    RAISE = "raise"
    IGNORE = "ignore"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("exec", context_settings={"allow_interspersed_args": False})(execute)


def execute(
    ctx: typer.Context,
    sandbox: SandboxArgument,
    command: Annotated[list[str], typer.Argument(metavar="[--] COMMAND…", help="What to run.")],
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run it in the background.")] = False,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Keep stdin open.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    workdir: Annotated[str | None, typer.Option("--workdir", "-w", help="Folder to run in.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", metavar="NAME|UID[:GID]")] = None,
    label: Annotated[str | None, typer.Option(help="The turn's label; the command unless given.")] = None,
    on_error: Annotated[
        Failing, typer.Option(help="Run the command even when Turnkeep fails: ignore.")
    ] = Failing.RAISE,
) -> None:
    """Run a command in a sandbox as one turn: wait for the gate, begin, docker exec, end.

    Stdin, stdout, stderr and the exit code are the command's. A container that
    is not attached yet is attached.
    """
    run = started(ctx)
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        raise InvalidRequest("there is no command to run")
    options = [
        *(["-d"] if detach else []),
        *(["-i"] if interactive else []),
        *(["-t"] if tty else []),
        *(["-w", workdir] if workdir is not None else []),
        *[word for setting in env or [] for word in ("-e", setting)],
        *(["-u", user] if user is not None else []),
    ]
    with run.connect(on_error=on_error.value, acting=True) as tk:
        box = tk.attach(sandbox)
        with box.turn(label or shlex.join(command)[:_LABEL_LENGTH]) as turn:
            container = box.info.container_id if box.known else sandbox
            code = _run(["docker", "exec", *options, container, *command])
            turn.labels["exit_code"] = str(code)
    if turn.error is not None:
        run.err.print(printing.styled(f"turnkeep: this was no turn: {turn.error}", "yellow"))
    raise typer.Exit(code)


def _run(command: list[str]) -> int:
    """Run a command on our own stdin, stdout and stderr, and return its exit code."""
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        hint = "install Docker's command line"
        raise TurnkeepError(f"cannot run docker: {error.strerror}", object=command[0], hint=hint) from error
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # It got the signal as well, and says itself how it ends.
            continue
        return code if code >= 0 else 128 - code
