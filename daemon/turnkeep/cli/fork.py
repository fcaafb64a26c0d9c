"""`turnkeep fork`: independent copies of a sandbox."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import printing, targets, words
from turnkeep.cli.run import JsonFlag, complete_sandbox, started
from turnkeep.client.calls import Ref


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(fork)


def fork(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="SANDBOX[@TURN]",
            help="The sandbox as it is now, or at a turn or named checkpoint.",
            autocompletion=complete_sandbox,
        ),
    ],
    count: Annotated[int | None, typer.Option("-n", "--count", help="How many copies.", min=1)] = None,
    name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A copy's name; once for each copy.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Make new containers that begin where the sandbox is, or was: files and processes."""
    run = started(ctx, json=json)
    sandbox, ref = _meant(target)
    with run.connect(acting=True) as tk, printing.progress_bar(run.err) as show:
        done = tk.fork(sandbox, count, ref=ref, names=name or (), on_progress=show)
    if json:
        printing.emit(done)
        return
    printing.fields(
        run.out,
        [
            ("forked", f"{sandbox} at checkpoint {words.short(done.checkpoint_id)}"),
            ("into", [each.name for each in done.sandboxes]),
            ("in", words.duration(done.total_ns)),
            ("notes", [printing.styled(note, "yellow") for note in done.notes]),
        ],
    )


def _meant(target: str) -> tuple[str, Ref | None]:
    if "@" not in target:
        return target, None
    meant = targets.parse(target)
    return meant.sandbox, meant.ref
