"""`turnkeep turn`: brackets for harnesses that are shell scripts."""

from __future__ import annotations

from typing import Annotated

import typer

from turnkeep.cli import printing
from turnkeep.cli.run import JsonFlag, Run, SandboxArgument, started
from turnkeep.client import Sandbox, TurnInfo
from turnkeep.codec import to_json
from turnkeep.errors import Conflict, InvalidRequest
from turnkeep.model import TurnMetadata

group = typer.Typer(help="Begin, end and wait for turns.", no_args_is_help=True, rich_markup_mode=None)

TurnArgument = Annotated[int | None, typer.Argument(metavar="[TURN]", min=1, help="The turn's number.")]


@group.command()
def begin(
    ctx: typer.Context,
    sandbox: SandboxArgument,
    label: Annotated[str, typer.Option(help="A short label, the command perhaps.")] = "",
    turn_id: Annotated[
        str | None, typer.Option("--id", help="Your own id: the same again gives the same turn.")
    ] = None,
    session: Annotated[
        str,
        typer.Option(envvar="TURNKEEP_SESSION", help="A token of your run."),
    ] = "cli",
    take_over: Annotated[bool, typer.Option("--take-over", help="Close another session's turn.")] = False,
    gate_timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="How long to wait at the gate.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Wait for the gate, begin a turn and print its number."""
    run = started(ctx, json=json)
    with run.connect(session=session, acting=True) as tk:
        turn = tk.sandbox(sandbox).turn(
            label, harness_turn_id=turn_id, take_over=take_over, gate_timeout_s=gate_timeout
        )
        turn.begin()
    if json:
        waited = {"gate_wait_ns": turn.gate_wait_ns, "abandoned_turn": turn.abandoned_turn}
        printing.emit({**to_json(turn.info), **waited})
    else:
        run.out.print(printing.styled(str(turn.number)))


@group.command()
def end(
    ctx: typer.Context,
    sandbox: SandboxArgument,
    number: TurnArgument = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label; may be given several times.")
    ] = None,
    model: Annotated[str, typer.Option(help="The LLM's name.")] = "",
    tool: Annotated[str, typer.Option(help="The tool that ran.")] = "",
    json: JsonFlag = False,
) -> None:
    """End a turn, the open one by default. The daemon captures afterwards."""
    run = started(ctx, json=json)
    labels = dict(_pair(item) for item in label or [])
    with run.connect(acting=True) as tk:
        box = tk.sandbox(sandbox)
        turn = box.adopt(number or _open_turn(box))
        turn.labels.update(labels)
        turn.metadata = TurnMetadata(model=model, tool_name=tool)
        turn.end()
    assert turn.info is not None
    _tell(run, turn.info)


@group.command()
def wait(
    ctx: typer.Context,
    sandbox: SandboxArgument,
    number: TurnArgument = None,
    state: Annotated[str, typer.Option(help="The state to wait for: captured, durable, …")] = "durable",
    timeout: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="At most so long.")] = None,
    json: JsonFlag = False,
) -> None:
    """Wait until a turn, the newest by default, has reached a state."""
    run = started(ctx, json=json)
    with run.connect(acting=True) as tk:
        _tell(run, tk.sandbox(sandbox).wait(number or 0, state, timeout_s=timeout))


def _tell(run: Run, turn: TurnInfo) -> None:
    if run.json:
        printing.emit(turn)
        return
    why = f": {turn.decision.reason}" if turn.decision else ""
    run.out.print(
        printing.styled(f"turn {turn.number} {turn.state}{why}", printing.STYLES.get(turn.state, ""))
    )


def _open_turn(box: Sandbox) -> int:
    if box.info.open_turn is None:
        raise Conflict("no turn is open", object=f"sandbox {box.name}", hint="name the turn's number")
    return box.info.open_turn


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidRequest(f"{text!r} is not KEY=VALUE")
    return key, value
