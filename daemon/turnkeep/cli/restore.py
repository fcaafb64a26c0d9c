"""`turnkeep restore`: bring a sandbox back."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

from turnkeep.cli import printing, targets, words
from turnkeep.cli.run import JsonFlag, complete_sandbox, started
from turnkeep.client import RestoreResult
from turnkeep.codec import to_json
from turnkeep.errors import InvalidRequest


class Mode(enum.StrEnum):
    """How a sandbox that exists is brought back."""

    LIVE = "live"
    COLD = "cold"


class Reading(enum.StrEnum):
    """How much is read again to compare digests."""

    CHANGED = "changed"
    FULL = "full"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(restore)


def restore(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="SANDBOX@TURN, SANDBOX@NAME, or SANDBOX with --checkpoint.",
            autocompletion=complete_sandbox,
        ),
    ],
    checkpoint: Annotated[str | None, typer.Option(help="The checkpoint's id, shortened or not.")] = None,
    mode: Annotated[
        Mode | None, typer.Option(help="Without or with restarting the container; the daemon chooses.")
    ] = None,
    new: Annotated[
        str | None, typer.Option(metavar="NAME", help="Into a new container of this name.")
    ] = None,
    no_safety_checkpoint: Annotated[
        bool, typer.Option("--no-safety-checkpoint", help="Do not capture the present state first.")
    ] = False,
    verify: Annotated[Reading | None, typer.Option(help="Read everything again, or what changed.")] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Allow a new container of the same name, where its own processes come back only so.",
        ),
    ] = False,
    state_file: Annotated[
        Path | None, typer.Option(help="Write the turn's harness state to this file.", dir_okay=False)
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Bring a sandbox's files back to a turn or a checkpoint, and prove it by digest."""
    run = started(ctx, json=json)
    meant = _meant(target, checkpoint)
    if new and mode:
        raise InvalidRequest("--new and --mode exclude each other")
    with run.connect(acting=True) as tk, printing.progress_bar(run.err) as show:
        done = tk.sandbox(meant.sandbox).restore(
            turn=meant.turn,
            checkpoint=meant.checkpoint,
            mode="new" if new else mode.value if mode else None,
            new_name=new,
            skip_safety_checkpoint=no_safety_checkpoint,
            verify=verify.value if verify else None,
            replace=replace,
            on_progress=show,
        )
    if state_file is not None and done.harness_state is not None:
        state_file.write_bytes(done.harness_state)
    if json:
        printing.emit(_described(done))
    else:
        printing.fields(run.out, _pairs(done))


def _meant(target: str, checkpoint: str | None) -> targets.Target:
    if checkpoint is None:
        meant = targets.parse(target)
        if not meant.sandbox:
            raise InvalidRequest(
                f"{target!r} does not say which sandbox", hint="use SANDBOX@TURN or SANDBOX --checkpoint ID"
            )
        return meant
    if "@" in target:
        raise InvalidRequest("the target names a checkpoint already", hint="leave --checkpoint out")
    return targets.Target(sandbox=target, ref=checkpoint)


def _described(done: RestoreResult) -> dict[str, Any]:
    """Return the result for JSON; the harness state itself has its own way out, by file."""
    described: dict[str, Any] = to_json(done)
    state = described.pop("harness_state")
    return {**described, "harness_state_bytes": None if state is None else len(state)}


def _pairs(done: RestoreResult) -> printing.Pairs:
    what = f"turn {done.turn}" if done.turn else "checkpoint"
    wrote = f"{words.count(done.changed_paths, 'path')}, {words.size(done.written_bytes)}"
    took = words.duration(done.total_ns)
    read = "all" if done.verify == "full" else "what changed"
    if done.freeze_ns:
        took += f", frozen for {words.duration(done.freeze_ns)}"
    pairs: printing.Pairs = [
        ("restored", f"{done.sandbox.name} to {what} ({words.short(done.checkpoint_id)})"),
        ("mode", done.mode + (f": {done.mode_reason}" if done.mode_reason else "")),
        ("wrote", f"{wrote} in {took}"),
        ("digest", f"{words.short(done.actual_digest)}, equal to what was captured; read again: {read}"),
    ]
    if done.safety_checkpoint_id:
        undo = f"turnkeep restore {done.sandbox.name} --checkpoint {words.short(done.safety_checkpoint_id)}"
        pairs.append(("undo", undo))
    if done.stopped_processes:
        pairs.append(("stopped", list(done.stopped_processes)))
    if done.harness_state is not None:
        pairs.append(("harness state", words.size(len(done.harness_state))))
    if done.notes:
        pairs.append(("notes", [printing.styled(note, "yellow") for note in done.notes]))
    return pairs
