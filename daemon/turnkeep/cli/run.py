"""What every command is given: where the daemon is, how to speak, and the options they share."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Console

from turnkeep.cli import printing
from turnkeep.client import Client, connect
from turnkeep.client.session import DEFAULT_RETRY_S, OnError
from turnkeep.errors import TurnkeepError

_READING_RETRY_S = 1.0
"""Enough for a daemon that restarts, not so long that its absence looks like a hang."""


@dataclass(slots=True, kw_only=True)
class Run:
    """One run of the command line."""

    address: str | None = None
    retry_s: float | None = None
    """How long to wait for a daemon that is not there; as the command needs unless given."""
    json: bool = False
    """Whether the command was asked for JSON; errors are then JSON as well."""
    out: Console = field(default_factory=printing.console)
    err: Console = field(default_factory=lambda: printing.console(stderr=True))

    def connect(
        self, *, session: str | None = None, on_error: OnError = "raise", acting: bool = False
    ) -> Client:
        """Return a client. What acts is repeated for longer than what only looks."""
        patience_s = DEFAULT_RETRY_S if acting else _READING_RETRY_S
        if self.retry_s is not None:
            patience_s = self.retry_s
        return connect(self.address, session=session, on_error=on_error, retry_s=patience_s)


def started(ctx: typer.Context, *, json: bool = False) -> Run:
    """Return the run, knowing now whether it has to speak JSON."""
    run = ctx.find_root().obj
    assert isinstance(run, Run)
    run.json = json
    return run


def complete_sandbox(ctx: typer.Context, incomplete: str) -> list[str]:
    """Offer the names of the sandboxes that begin so. Never fails: a shell is waiting."""
    found: list[str] = []
    address = ctx.find_root().params.get("address")
    with contextlib.suppress(TurnkeepError), connect(address, retry_s=0) as tk:
        found = [
            item.name for item in tk.sandboxes(include_detached=True) if item.name.startswith(incomplete)
        ]
    return found


JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SandboxArgument = Annotated[
    str,
    typer.Argument(
        metavar="SANDBOX", help="Container name or id, or sandbox id.", autocompletion=complete_sandbox
    ),
]
TargetArgument = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="SANDBOX@TURN, SANDBOX@NAME, or a checkpoint's id (shortened or not).",
        autocompletion=complete_sandbox,
    ),
]
