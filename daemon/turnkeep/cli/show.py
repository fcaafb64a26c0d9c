"""`turnkeep show`: one turn or checkpoint, and why it was decided so."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import printing, targets, words
from turnkeep.cli.run import JsonFlag, TargetArgument, started
from turnkeep.client import Checkpoint, Client, Sandbox, TurnInfo
from turnkeep.client.handles import only
from turnkeep.client.values import ProcessImage
from turnkeep.errors import CheckpointNotFound
from turnkeep.model import Decision, Mount, TurnState, TurnTimings

_PATHS = 12
_SHOWN_PROCESSES = 8


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(show)


def show(
    ctx: typer.Context,
    target: TargetArgument,
    all_paths: Annotated[bool, typer.Option("--all", "-a", help="Print every path that is known.")] = False,
    json: JsonFlag = False,
) -> None:
    """Explain a turn or a checkpoint: the decision, its evidence, what it holds and what not."""
    run = started(ctx, json=json)
    with run.connect() as tk:
        turn, checkpoint = _find(tk, targets.parse(target))
        sandbox_id = turn.sandbox_id if turn else checkpoint.sandbox_id if checkpoint else ""
        info = tk.sandbox(sandbox_id).info
    if json:
        printing.emit({"sandbox": info, "turn": turn, "checkpoint": checkpoint})
        return
    limit = 10**9 if all_paths else _PATHS
    pairs: printing.Pairs = _turn_pairs(turn, info.name) if turn else []
    decision = turn.decision if turn else checkpoint.decision if checkpoint else None
    if decision:
        pairs += _decision_pairs(decision, limit)
    if checkpoint:
        pairs += _checkpoint_pairs(checkpoint, turn, info.name)
    printing.fields(run.out, pairs)


def _find(tk: Client, target: targets.Target) -> tuple[TurnInfo | None, Checkpoint | None]:
    if target.turn is not None:
        box = tk.sandbox(target.sandbox)
        turn = _turn(box, target.turn)
        try:
            return turn, tk.checkpoint(turn.checkpoint_id) if turn.checkpoint_id else None
        except CheckpointNotFound:
            return turn, None
    checkpoint = targets.find(tk, target)
    if checkpoint.turn is None:
        return None, checkpoint
    return _turn(tk.sandbox(checkpoint.sandbox_id), checkpoint.turn), checkpoint


def _turn(box: Sandbox, number: int) -> TurnInfo:
    return only(box.turns(after=number - 1), number, box.name)


def _turn_pairs(turn: TurnInfo, name: str) -> printing.Pairs:
    state = f"{turn.state}" + (f": {turn.state_reason}" if turn.state_reason else "")
    pairs: printing.Pairs = [
        ("turn", f"{turn.number} of {name}" + (f", after turn {turn.parent}" if turn.parent else "")),
        ("state", printing.styled(state, printing.STYLES.get(turn.state, ""))),
        ("began", f"{words.clock(turn.began_at_ns)} ({words.age(turn.began_at_ns)} ago)"),
    ]
    if turn.abandoned:
        pairs.append(("abandoned", "its harness did not end it; what it did is captured all the same"))
    said = {
        "label": turn.label,
        "model": turn.metadata.model,
        "tool": turn.metadata.tool_name,
        **turn.labels,
        **turn.metadata.extra,
    }
    pairs += [(words.safe(key), value) for key, value in said.items() if value]
    if turn.metadata.prompt_tokens or turn.metadata.completion_tokens:
        tokens = f"{turn.metadata.prompt_tokens} read, {turn.metadata.completion_tokens} written"
        pairs.append(("tokens", tokens))
    timings = _timings(turn.timings)
    if timings:
        pairs.append(("timings", timings))
    if turn.harness_state_bytes is not None:
        pairs.append(("harness state", words.size(turn.harness_state_bytes)))
    return pairs


def _timings(timings: TurnTimings) -> str:
    parts = (
        ("waited at the gate {}", timings.gate_ns),
        ("inspected in {}", timings.inspect_ns),
        ("frozen for {}", timings.freeze_ns),
        ("captured after {}", timings.captured_ns),
        ("durable after {}", timings.durable_ns),
    )
    return ", ".join(form.format(words.duration(spent)) for form, spent in parts if spent)


def _decision_pairs(decision: Decision, limit: int) -> printing.Pairs:
    pairs: printing.Pairs = [
        ("class", printing.styled(decision.turn_class)),
        ("why", decision.reason),
    ]
    if decision.changed_path_count:
        paths: list[printing.Cell] = list(decision.changed_paths[:limit])
        left = decision.changed_path_count - len(paths)
        if left:
            paths.append(printing.styled(f"… and {words.count(left, 'more path')}", "dim"))
        if decision.cache_path_count:
            paths.append(printing.styled(f"{decision.cache_path_count} of them derived caches", "dim"))
        pairs.append(("changed", paths))
    if decision.processes:
        pairs.append(("processes", list(decision.processes)))
    if decision.unsure:
        pairs.append(("unsure", [printing.styled(item, "yellow") for item in decision.unsure]))
    return pairs


def _checkpoint_pairs(checkpoint: Checkpoint, turn: TurnInfo | None, name: str) -> printing.Pairs:
    identity = f"{checkpoint.id}"
    if turn and turn.state is TurnState.SKIPPED:
        of = f"turn {checkpoint.turn}" if checkpoint.turn else checkpoint.origin
        identity += f" (that of {of}: nothing had to be kept)"
    pairs: printing.Pairs = [] if turn else [("sandbox", name)]
    pairs += [
        ("checkpoint", identity),
        ("taken", f"{words.clock(checkpoint.created_at_ns)} ({checkpoint.origin})"),
    ]
    if checkpoint.name:
        pairs.append(("name", checkpoint.name))
    if checkpoint.tags:
        pairs.append(("tags", ", ".join(checkpoint.tags)))
    held = f"{words.count(checkpoint.changed_files, 'changed path')}, {words.size(checkpoint.changed_bytes)}"
    pairs += [
        ("parent", words.short(checkpoint.parent_id) or "none"),
        ("holds", f"{held}; {words.size(checkpoint.stored_bytes)} stored"),
        ("fidelity", _fidelity(checkpoint)),
        ("digest", checkpoint.digest),
        ("image", checkpoint.image),
    ]
    if checkpoint.processes is not None:
        pairs.append(("process image", _processes(checkpoint.processes, checkpoint.turn or 0)))
    if checkpoint.not_captured:
        pairs.append(("not captured", [printing.styled(item, "yellow") for item in checkpoint.not_captured]))
    pairs.append(("mounts", [_mount(mount) for mount in checkpoint.mounts]))
    return pairs


def _fidelity(checkpoint: Checkpoint) -> printing.Cell:
    if checkpoint.fidelity == "files and some processes":
        return printing.styled("files and some processes; the others are listed below", "yellow")
    if checkpoint.fidelity == "files only":
        return printing.styled("files only: stateful processes ran and were not captured", "yellow")
    return checkpoint.fidelity or "not known"


def _processes(image: ProcessImage, turn: int) -> list[printing.Cell]:
    """Say what was dumped, by which engine, and what will be different after a restore."""
    lines: list[printing.Cell] = []
    for tree in image.trees:
        named = ", ".join(f"{each.pid} {each.name}" for each in tree.processes[:_SHOWN_PROCESSES])
        left = len(tree.processes) - _SHOWN_PROCESSES
        more = f" and {left} more" if left > 0 else ""
        what = "its init's tree" if tree.kind == "init" else "started by docker exec"
        size, stopped = words.size(tree.image_bytes), words.duration(tree.stopped_ns)
        lines.append(f"{what}, dumped {image.engine}: {named}{more}; {size}, stopped for {stopped}")
        lines += [printing.styled(note, "yellow") for note in tree.notes]
    if image.turn and image.turn != turn:
        lines.append(printing.styled(f"dumped at turn {image.turn}: none of them changed since", "dim"))
    elif image.reason:
        lines.append(printing.styled(f"dumped anew because {image.reason}", "dim"))
    return lines


def _mount(mount: Mount) -> printing.Cell:
    if mount.covered:
        return f"{mount.target} ({mount.kind})"
    return printing.styled(f"{mount.target} ({mount.kind}) is not covered: {mount.reason}", "yellow")
