"""`turnkeep events`: what happened, and what happens."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import printing, words
from turnkeep.cli.run import JsonFlag, complete_sandbox, started
from turnkeep.client import Event


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(events)


def events(
    ctx: typer.Context,
    sandbox: Annotated[
        str, typer.Argument(metavar="[SANDBOX]", help="Only its events.", autocompletion=complete_sandbox)
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until interrupted.")] = False,
    after: Annotated[
        int | None, typer.Option(min=0, help="Begin after this number; with --follow now is the default.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Print the recorded events, or with --follow those that happen. With --json --follow, one line each."""
    run = started(ctx, json=json)
    if after is None and not follow:
        after = 0
    with run.connect() as tk:
        happened = tk.events(sandbox, after=after, follow=follow)
        if json and not follow:
            printing.emit(list(happened))
            return
        for event in happened:
            if json:
                printing.emit_line(event)
            else:
                run.out.print(_line(event), soft_wrap=True)


def _line(event: Event) -> printing.Cell:
    about = event.sandbox_name + (f"@{event.turn}" if event.turn else "")
    text = f"{event.sequence:>6}  {words.clock(event.time_ns)}  {event.kind:<12} {about:<16} {event.message}"
    return printing.styled(text.rstrip(), printing.STYLES.get(event.kind.upper(), ""))
