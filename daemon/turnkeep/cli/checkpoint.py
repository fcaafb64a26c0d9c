"""`turnkeep checkpoint`: restore points by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import printing, targets, words
from turnkeep.cli.run import JsonFlag, SandboxArgument, TargetArgument, complete_sandbox, started
from turnkeep.client import Checkpoint

group = typer.Typer(help="Create, list and delete checkpoints.", no_args_is_help=True, rich_markup_mode=None)

_HEADS = (
    *("CHECKPOINT", "SANDBOX", ">TURN", "NAME", "ORIGIN", "FIDELITY"),
    *(">FILES", ">BYTES", ">STORED", ">AGE", "TAGS"),
)


@group.command()
def create(
    ctx: typer.Context,
    sandbox: SandboxArgument,
    name: Annotated[str, typer.Option(help="A name, unique within the sandbox.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be given several times.")] = None,
    json: JsonFlag = False,
) -> None:
    """Take a checkpoint now, and print its id when it is durable."""
    run = started(ctx, json=json)
    with run.connect(acting=True) as tk:
        made = tk.sandbox(sandbox).checkpoint(name=name, tags=tag or [])
    if json:
        printing.emit(made)
    else:
        run.out.print(printing.styled(made.id))


@group.command("list")
def list_checkpoints(
    ctx: typer.Context,
    sandbox: Annotated[
        str, typer.Argument(metavar="[SANDBOX]", help="Only its own.", autocompletion=complete_sandbox)
    ] = "",
    json: JsonFlag = False,
) -> None:
    """List checkpoints, oldest first. "*" marks a head."""
    run = started(ctx, json=json)
    with run.connect() as tk:
        found = tk.sandbox(sandbox).checkpoints() if sandbox else tk.checkpoints()
        names = {item.id: item.name for item in tk.sandboxes(include_detached=True)}
    if json:
        printing.emit(found)
        return
    printing.table(run.out, _HEADS, [_row(item, names) for item in found], flexible=["TAGS"])


@group.command()
def delete(ctx: typer.Context, target: TargetArgument, json: JsonFlag = False) -> None:
    """Delete a checkpoint. Its children are given its parent; `turnkeep prune` frees the space."""
    run = started(ctx, json=json)
    meant = targets.parse(target)
    with run.connect(acting=True) as tk:
        if meant.sandbox:
            gone = tk.sandbox(meant.sandbox).delete_checkpoint(meant.ref)
        else:
            gone = tk.delete_checkpoint(str(meant.ref))
    if json:
        printing.emit(gone)
        return
    moved = (
        f"; {words.count(gone.reparented, 'child', 'children')} moved to its parent"
        if gone.reparented
        else ""
    )
    run.out.print(printing.styled(f"deleted {words.short(gone.checkpoint_id)}{moved}"))


def _row(item: Checkpoint, names: dict[str, str]) -> list[printing.Cell]:
    return [
        words.short(item.id) + ("*" if item.is_head else ""),
        names.get(item.sandbox_id, item.sandbox_id),
        str(item.turn) if item.turn else "-",
        item.name or "-",
        item.origin,
        printing.styled(item.fidelity or "not known", "yellow" if item.fidelity == "files only" else ""),
        str(item.changed_files),
        words.size(item.changed_bytes),
        words.size(item.stored_bytes),
        words.age(item.created_at_ns),
        ", ".join(item.tags),
    ]
