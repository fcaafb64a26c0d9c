"""`turnkeep diff`: what differs between two checkpoints, by path."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import printing, targets, words
from turnkeep.cli.run import JsonFlag, TargetArgument, started
from turnkeep.client import Change
from turnkeep.errors import InvalidRequest

_LETTERS = {"added": "A", "removed": "D", "changed": "M", "type": "T", "metadata": "m"}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(diff)


def diff(
    ctx: typer.Context,
    before: TargetArgument,
    after: Annotated[
        str | None,
        typer.Argument(
            metavar="[TARGET]", help="The newer one; the head unless given. Its turn alone will do."
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Print the paths that differ: A added, D removed, M changed, T another type, m other metadata."""
    run = started(ctx, json=json)
    first = targets.parse(before)
    second = targets.parse(after, sandbox=first.sandbox) if after else None
    if second and second.sandbox != first.sandbox:
        raise InvalidRequest("the two are of different sandboxes", hint="name both by checkpoint id")
    if not first.sandbox and second is None:
        raise InvalidRequest("a checkpoint's id alone has no head to compare with", hint="name a second one")
    with run.connect() as tk:
        if first.sandbox:
            changes = tk.sandbox(first.sandbox).diff(first.ref, second.ref if second else None)
        else:
            changes = tk.diff(str(first.ref), str(second.ref) if second else "")
        if json:
            printing.emit(list(changes))
            return
        for change in changes:
            run.out.print(_line(change), soft_wrap=True)


def _line(change: Change) -> printing.Cell:
    letter = _LETTERS.get(change.change, "?")
    return printing.styled(f"{letter} {change.path}{_detail(change)}", printing.STYLES.get(change.change, ""))


def _detail(change: Change) -> str:
    if change.change == "changed" and change.before_size != change.after_size:
        return f"  {words.size(change.before_size)} → {words.size(change.after_size)}"
    if change.change == "type":
        return f"  {change.before_type} → {change.after_type}"
    if change.change == "metadata" and change.before_mode != change.after_mode:
        return f"  {change.before_mode & 0o7777:04o} → {change.after_mode & 0o7777:04o}"
    return ""
