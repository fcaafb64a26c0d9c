"""`turnkeep attach` and `turnkeep detach`."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import printing, words
from turnkeep.cli.run import JsonFlag, Run, SandboxArgument, started
from turnkeep.client import SandboxInfo


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(attach)
    app.command()(detach)


def attach(
    ctx: typer.Context,
    container: Annotated[str, typer.Argument(help="Name or id of a running container.")],
    json: JsonFlag = False,
) -> None:
    """Begin to watch a running container. Its first checkpoint is taken now."""
    run = started(ctx, json=json)
    with run.connect(acting=True) as tk:
        _tell(run, tk.attach(container).info, "attached")


def detach(ctx: typer.Context, sandbox: SandboxArgument, json: JsonFlag = False) -> None:
    """Stop watching a sandbox. Its checkpoints stay."""
    run = started(ctx, json=json)
    with run.connect(acting=True) as tk:
        _tell(run, tk.sandbox(sandbox).detach(), "detached")


def _tell(run: Run, info: SandboxInfo, done: str) -> None:
    if run.json:
        printing.emit(info)
        return
    head = f", head {words.short(info.head_checkpoint_id)}" if info.head_checkpoint_id else ""
    run.out.print(printing.styled(f"{done} {info.name} (sandbox {info.id}{head})", ""))
    for mount in info.mounts:
        if not mount.covered:
            run.out.print(
                printing.styled(f"not covered: {mount.target} ({mount.kind}): {mount.reason}", "yellow")
            )
    if info.note:
        run.out.print(printing.styled(f"note: {info.note}", "yellow"))
