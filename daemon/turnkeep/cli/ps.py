"""`turnkeep ps`: the sandboxes at a glance."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import printing, words
from turnkeep.cli.run import JsonFlag, started
from turnkeep.client import SandboxInfo
from turnkeep.codec import to_json


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(ps)


def ps(
    ctx: typer.Context,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Also those that are detached.")] = False,
    json: JsonFlag = False,
) -> None:
    """List the sandboxes: how they fare, where their heads are, what they cost."""
    run = started(ctx, json=json)
    with run.connect() as tk:
        sandboxes = tk.sandboxes(include_detached=show_all)
    if json:
        printing.emit([to_json(item) for item in sandboxes])
        return
    heads = ("SANDBOX", "STATE", ">HEAD", ">TURNS", ">DURABLE", ">SKIPPED", ">FAILED", ">STORED", "NOTE")
    rows = [_row(item) for item in sandboxes]
    printing.table(run.out, heads, rows, flexible=["NOTE"])


def _row(item: SandboxInfo) -> list[printing.Cell]:
    state = item.container_state.value if item.container_state else "unknown"
    head = f"@{item.head_turn}" if item.head_turn else words.short(item.head_checkpoint_id) or "-"
    return [
        item.name,
        printing.styled(state) if item.attached else printing.styled(f"{state}, detached", "dim"),
        head,
        str(item.turns.total),
        str(item.turns.durable),
        str(item.turns.skipped),
        printing.styled(str(item.turns.failed), "bold red" if item.turns.failed else ""),
        words.size(item.stored_bytes),
        "; ".join(_notes(item)),
    ]


def _notes(item: SandboxInfo) -> list[str]:
    notes = [item.note] if item.note else []
    if item.open_turn:
        notes.append(f"turn {item.open_turn} is open")
    uncovered = [mount.target for mount in item.mounts if not mount.covered]
    if uncovered:
        notes.append(f"not covered: {', '.join(uncovered)}")
    return notes
