"""`turnkeep journal`: the trail of what happened, taken elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import printing
from turnkeep.cli.run import JsonFlag, started
from turnkeep.errors import ExitCode

group = typer.Typer(
    help="The trail of what happened, to be kept where this host cannot change it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@group.command()
def head(ctx: typer.Context, json: JsonFlag = False) -> None:
    """Verify the journal and print its last event, NUMBER:HASH. All events before are fixed by that.

    Kept elsewhere, it shows later whether anything was changed or cut off:
    turnkeep check --journal --head NUMBER:HASH. Exits with 8 when something is damaged.
    """
    run = started(ctx, json=json)
    with run.connect() as tk:
        found = tk.check(journal=True)
    if json:
        printing.emit(found)
    elif found.ok:
        typer.echo(found.journal_head)
    else:
        for problem in found.problems:
            run.err.print(printing.styled(problem, "red"), soft_wrap=True)
    if not found.ok:
        raise typer.Exit(ExitCode.DAMAGED)


@group.command()
def export(
    ctx: typer.Context,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
) -> None:
    """Print all events as lines of JSON, with the hashes that hold them together (docs/safety.md)."""
    run = started(ctx, json=False)
    with run.connect() as tk:
        for event in tk.export_journal(after):
            typer.echo(event.line)
