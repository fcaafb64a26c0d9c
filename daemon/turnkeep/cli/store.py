"""`turnkeep prune` and `turnkeep check`: the care of the store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from turnkeep.cli import printing, words
from turnkeep.cli.run import JsonFlag, Run, started
from turnkeep.client import CheckResult, PruneResult
from turnkeep.errors import ExitCode, InvalidRequest
from turnkeep.model import RetentionPolicy

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(prune)
    app.command()(check)


def prune(
    ctx: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, change nothing.")
    ] = False,
    keep_last: Annotated[int, typer.Option(min=0, help="The newest so many of each sandbox.")] = 0,
    keep_hourly: Annotated[int, typer.Option(min=0, help="One an hour, for so many hours.")] = 0,
    keep_daily: Annotated[int, typer.Option(min=0, help="One a day, for so many days.")] = 0,
    keep_tag: Annotated[list[str] | None, typer.Option(help='Those with this tag; "*" for any.')] = None,
    max_bytes: Annotated[str, typer.Option(metavar="SIZE", help="No more than this on disk: 20GiB.")] = "0",
    json: JsonFlag = False,
) -> None:
    """Apply the retention policy, the configured one unless rules are given, and free the space."""
    run = started(ctx, json=json)
    policy = RetentionPolicy(
        keep_last=keep_last,
        keep_hourly=keep_hourly,
        keep_daily=keep_daily,
        keep_tags=tuple(keep_tag or ()),
        max_bytes=_bytes(max_bytes),
    )
    with run.connect(acting=True) as tk, printing.progress_bar(run.err) as show:
        done = tk.prune(None if policy.is_empty else policy, dry_run=dry_run, on_progress=show)
    if json:
        printing.emit(done)
    else:
        printing.fields(run.out, _pruned(done))


def check(
    ctx: typer.Context,
    skip_data: Annotated[bool, typer.Option("--skip-data", help="Do not read file content.")] = False,
    rebuild_index: Annotated[
        bool, typer.Option("--rebuild-index", help="First make the index anew from the packs.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First save what is sound of damaged packs, and delete checkpoints whose record is damaged.",
        ),
    ] = False,
    live: Annotated[
        str,
        typer.Option(
            metavar="SANDBOX",
            help="Instead, compare what was reported of a sandbox's changes with a scan of its files.",
        ),
    ] = "",
    journal: Annotated[
        bool, typer.Option("--journal", help="Instead, verify the journal, the trail of what happened.")
    ] = False,
    head: Annotated[
        str,
        typer.Option(
            metavar="NUMBER:HASH",
            help="With --journal: what `turnkeep journal head` printed once; @FILE reads it from a file.",
        ),
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Verify everything in the store. Exits with 8 when something is damaged."""
    if (live or journal) and (skip_data or rebuild_index or repair or (live and journal)):
        raise InvalidRequest("--live and --journal look at no store", hint="leave out the other options")
    if head and not journal:
        raise InvalidRequest("--head is for --journal", hint="add --journal")
    kept = _read_head(head)
    run = started(ctx, json=json)
    with run.connect(acting=True) as tk, printing.progress_bar(run.err) as show:
        found = tk.check(
            skip_data=skip_data,
            rebuild_index=rebuild_index,
            repair=repair,
            live=live,
            journal=journal,
            head=kept,
            on_progress=show,
        )
    if json:
        printing.emit(found)
    else:
        for sentence in found.repaired:
            run.out.print(f"repaired: {sentence}", soft_wrap=True, highlight=False)
        for problem in found.problems:
            run.out.print(printing.styled(problem, "red"), soft_wrap=True)
        _verdict(run, found, live)
    if not found.ok:
        raise typer.Exit(ExitCode.DAMAGED)


def _verdict(run: Run, found: CheckResult, live: str) -> None:
    verdict = "all is well" if found.ok else f"{words.count(len(found.problems), 'problem')} found"
    if live and found.followed:
        said = f"{verdict}: what was reported of {', '.join(found.followed)} is what a scan finds"
        if not found.ok:
            said = f"{verdict}: changes that nobody told of; this is a defect, please report it"
    elif found.journal_head:
        said = f"{verdict}: the journal ends with {found.journal_head}"
    elif live:
        said = f"nothing to compare: the files of {live} are scanned, not followed (turnkeep doctor {live})"
    else:
        rebuilt = "; the index was made anew from the packs" if found.index_rebuilt else ""
        read = f"{words.count(found.checkpoints, 'checkpoint')}, {words.count(found.blobs, 'blob')}"
        said = f"{verdict}: {read}, {words.size(found.bytes)} read{rebuilt}"
    run.out.print(printing.styled(said, "" if found.ok else "red"), soft_wrap=True)


def _read_head(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"the head cannot be read: {error}", object=text[1:]) from error


def _pruned(done: PruneResult) -> printing.Pairs:
    would = "would be " if done.dry_run else ""
    ids: list[printing.Cell] = [words.short(item) for item in done.deleted_checkpoints]
    notes: list[printing.Cell] = [printing.styled(note, "yellow") for note in done.notes]
    pairs: printing.Pairs = [
        ("pruned", f"{words.count(len(ids), 'checkpoint')} {would}deleted, {done.kept_checkpoints} kept"),
        ("space", f"{words.size(done.freed_bytes)} {would}freed, {words.size(done.stored_bytes)} left"),
    ]
    return pairs + [(name, items) for name, items in (("deleted", ids), ("notes", notes)) if items]


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidRequest(f"{text!r} is not a size", hint="use a number with KiB, MiB, GiB or TiB")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))
