"""`turnkeep serve`: the daemon itself."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from turnkeep import config
from turnkeep.cli.run import started


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    ctx: typer.Context,
    config_file: Annotated[
        str | None, typer.Option("--config", help=f"Configuration; {config.DEFAULT_CONFIG} by default.")
    ] = None,
    state_dir: Annotated[str | None, typer.Option(help="Where the state is kept.")] = None,
    log_format: Annotated[str | None, typer.Option(help="auto, console or json.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    read = config.load(config_file)
    settings = dataclasses.replace(
        read,
        address=started(ctx).address or read.address,
        state_dir=state_dir or read.state_dir,
        log_format=log_format or read.log_format,
        log_level=log_level or read.log_level,
    )
    # Only here: every other command does without Docker, the store and the rest.
    from turnkeep import app

    raise typer.Exit(app.run(settings))
