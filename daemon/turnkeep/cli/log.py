"""`turnkeep log`: what happened to a sandbox, turn by turn."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import graph, history, printing, words
from turnkeep.cli.history import Node
from turnkeep.cli.run import JsonFlag, SandboxArgument, started
from turnkeep.model import TurnState

_HEADS = ("TURN", "LABEL", "CLASS", "WHY", ">FILES", ">BYTES", ">STORED", ">FREEZE", ">AGE", "CHECKPOINT")

_NARROW = {"flexible": ("LABEL", "WHY"), "optional": ("BYTES", "FREEZE", "CHECKPOINT")}


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(log)


def log(
    ctx: typer.Context,
    sandbox: SandboxArgument,
    limit: Annotated[int, typer.Option("-n", "--limit", min=0, help="Only the newest; 0 for all.")] = 0,
    with_graph: Annotated[
        bool, typer.Option("--graph", help="Draw the tree that restores make of the turns.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """List turns and checkpoints, newest first. "*" marks the head."""
    run = started(ctx, json=json)
    with run.connect() as tk:
        box = tk.sandbox(sandbox)
        turns, checkpoints = box.turns(), box.checkpoints()
    if json:
        shown = turns[-limit:] if limit else turns
        printing.emit({"sandbox": box.info, "turns": shown, "checkpoints": checkpoints})
        return
    nodes = history.tree(turns, checkpoints, box.info.head_checkpoint_id)
    nodes = nodes[:limit] if limit else nodes
    if with_graph:
        rows = _with_lines(nodes, unicode=run.out.encoding.startswith("utf"))
        printing.table(run.out, ("", *_HEADS), rows, **_NARROW)
    else:
        printing.table(run.out, _HEADS, [_row(node) for node in nodes], **_NARROW)


def _with_lines(nodes: list[Node], *, unicode: bool) -> list[list[printing.Cell]]:
    by_key = {node.key: node for node in nodes}
    marks = ("●", "○", "◆") if unicode else ("*", "o", "#")

    def mark(key: str) -> str:
        turn = by_key[key].turn
        if turn is None:
            return marks[2]
        return marks[1] if turn.state is TurnState.SKIPPED else marks[0]

    links = [(node.key, node.parent if node.parent in by_key else None) for node in nodes]
    drawn = graph.draw(links, mark, graph.LINES if unicode else graph.ASCII)
    blank = [""] * len(_HEADS)
    return [[line, *(_row(by_key[key]) if key else blank)] for line, key in drawn]


def _row(node: Node) -> list[printing.Cell]:
    return _turn_row(node) if node.turn else _checkpoint_row(node)


def _turn_row(node: Node) -> list[printing.Cell]:
    turn = node.turn
    assert turn is not None
    decision = turn.decision
    why = turn.state_reason or (decision.reason if decision else "")
    state: str = turn.state
    if decision and turn.state in (TurnState.DURABLE, TurnState.SKIPPED):
        state = decision.turn_class
    if turn.abandoned:
        why = f"abandoned; {why}" if why else "abandoned"
    kept = turn.state is not TurnState.SKIPPED
    return [
        _number(f"{turn.number}", node),
        turn.label,
        printing.styled(state),
        why + _fidelity(node),
        str(turn.changed_files) if kept else "-",
        words.size(turn.changed_bytes) if kept else "-",
        words.size(turn.stored_bytes) if kept else "-",
        words.duration(turn.timings.freeze_ns) if turn.timings.freeze_ns else "-",
        words.age(turn.began_at_ns),
        _checkpoint_id(node),
    ]


def _checkpoint_row(node: Node) -> list[printing.Cell]:
    checkpoint = node.checkpoint
    assert checkpoint is not None
    name = f"@{checkpoint.name}" if checkpoint.name else ""
    return [
        _number("-", node),
        " ".join([name, *checkpoint.tags]).strip(),
        printing.styled(checkpoint.origin, "cyan"),
        (checkpoint.decision.reason if checkpoint.decision else "") + _fidelity(node),
        str(checkpoint.changed_files),
        words.size(checkpoint.changed_bytes),
        words.size(checkpoint.stored_bytes),
        "-",
        words.age(checkpoint.created_at_ns),
        _checkpoint_id(node),
    ]


def _number(text: str, node: Node) -> printing.Cell:
    return printing.styled(f"{text}*", "bold") if node.is_head else text


def _fidelity(node: Node) -> str:
    skipped = node.turn is not None and node.turn.state is TurnState.SKIPPED
    partial = node.checkpoint is not None and node.checkpoint.fidelity == "files only"
    return " (files only)" if partial and not skipped else ""


def _checkpoint_id(node: Node) -> printing.Cell:
    if node.checkpoint is not None:
        return words.short(node.checkpoint.id)
    deleted = node.turn is not None and node.turn.checkpoint_id
    return printing.styled("deleted", "dim") if deleted else "-"
