"""`turnkeep key`: the keys of an encrypted state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.progress import Progress

from turnkeep import config
from turnkeep.cli.run import started
from turnkeep.errors import ExitCode

group = typer.Typer(
    help="The keys of a state that is encrypted (encryption_key in the configuration).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ConfigFile = Annotated[
    str | None, typer.Option("--config", help=f"Configuration; {config.DEFAULT_CONFIG} by default.")
]


@group.command()
def new() -> None:
    """Print a new key. Keep a copy where this host's disk is not needed: without it nothing comes back."""
    from turnkeep_store.keys import MasterKey

    typer.echo(str(MasterKey.new()))


@group.command()
def change(
    ctx: typer.Context,
    to: Annotated[
        str, typer.Option("--to", metavar="SOURCE", help="file:PATH, credential:NAME or command:WORDS.")
    ],
    config_file: ConfigFile = None,
) -> None:
    """Have the state opened with another key from now on; the daemon must not run.

    Takes a moment: only the file of data keys is encrypted anew. Write the new source into the
    configuration afterwards.
    """
    run = started(ctx)
    from turnkeep import encryption

    with _understood():
        encryption.change(config.load(config_file), to)
    run.err.print(f'changed; now set encryption_key = "{to}"', soft_wrap=True, highlight=False)


@group.command()
def rotate(
    ctx: typer.Context,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Encrypt all that is there with it, and forget the old keys.")
    ] = False,
    config_file: ConfigFile = None,
) -> None:
    """Encrypt with a new data key from now on; the daemon must not run.

    Exits with 8 when files are damaged, and old keys therefore stay.
    """
    run = started(ctx)
    from turnkeep import encryption

    with Progress(console=run.err, transient=True) as shown, _understood():
        bar = shown.add_task("encrypting")
        done = encryption.rotate(
            config.load(config_file),
            rewrite=rewrite,
            progress=lambda at, total: shown.update(bar, completed=at, total=total),
        )
    run.err.print("a new data key is in use")
    if rewrite:
        run.err.print(f"{done.resealed} files encrypted anew, {done.dropped} old keys forgotten")
    for each in done.damaged:
        run.err.print(each, style="red", soft_wrap=True, highlight=False)
    if done.damaged:
        raise typer.Exit(ExitCode.DAMAGED)


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Turn the store's errors into those that the command line knows."""
    from turnkeep_store.errors import StoreError

    from turnkeep.server.status import translate

    try:
        yield
    except StoreError as error:
        raise translate(error) from error
