"""The root of the command line: global options, the list of commands, errors to exit codes."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import turnkeep
from turnkeep.cli import (
    attach,
    checkpoint,
    diff,
    doctor,
    events,
    execute,
    fork,
    install,
    journal,
    key,
    log,
    ps,
    restore,
    serve,
    show,
    store,
    turn,
    words,
)
from turnkeep.cli.run import Run
from turnkeep.errors import ExitCode, TurnkeepError

_INTERRUPTED = 130
_BROKEN_PIPE = 141


class Root(TyperGroup):
    """The group of all commands. Errors of Turnkeep end here, as one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            answer = super().invoke(ctx)
            sys.stdout.flush()
        except TurnkeepError as error:
            _report(error, as_json=isinstance(ctx.obj, Run) and ctx.obj.json)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read has seen enough. The interpreter flushes once more at
            # its end, and must not complain then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_BROKEN_PIPE) from None
        return answer


app = typer.Typer(
    name="turnkeep",
    cls=Root,
    help="Keep every turn of an AI agent's sandbox restorable.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"turnkeep {turnkeep.__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(help="The daemon's socket.", envvar="TURNKEEP_ADDRESS", metavar="unix:///PATH"),
    ] = None,
    retry: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="How long to wait for a daemon that restarts."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Keep every turn of an AI agent's sandbox restorable."""
    ctx.obj = Run(address=address, retry_s=retry)


for module in (serve, attach, ps, log, show, diff, events, restore, fork, execute, store, doctor, install):
    module.add_to(app)
app.add_typer(checkpoint.group, name="checkpoint")
app.add_typer(turn.group, name="turn")
app.add_typer(journal.group, name="journal")
app.add_typer(key.group, name="key")


def main() -> None:
    """Run the command line and exit. What nobody foresaw is one line as well."""
    try:
        app(prog_name="turnkeep")
    except Exception as error:
        if os.environ.get("TURNKEEP_DEBUG"):
            raise
        text = words.safe(f"{type(error).__name__}: {error}")
        sys.stderr.write(f"turnkeep: defect in the command line: {text}. TURNKEEP_DEBUG=1 shows where\n")
        sys.exit(ExitCode.FAILED)


def _report(error: TurnkeepError, *, as_json: bool) -> None:
    if as_json:
        described = {
            "reason": error.reason,
            "message": error.message,
            "object": error.object,
            "hint": error.hint,
            "exit_code": int(error.exit_code),
        }
        sys.stderr.write(json.dumps({"error": described}) + "\n")
        return
    line = f"turnkeep: {error.message}" + (f" ({error.object})" if error.object else "")
    if error.hint:
        line = f"{line.rstrip('.')}. {error.hint}"
    sys.stderr.write(words.safe(line) + "\n")
