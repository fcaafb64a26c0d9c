"""`turnkeep doctor`: what this host has, what it lacks, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.text import Text

import turnkeep
from turnkeep.cli import printing, words
from turnkeep.cli.run import JsonFlag, complete_sandbox, started
from turnkeep.client import Client, HostStatus, TrackerFigures
from turnkeep.errors import DaemonUnavailable, ExitCode, Unsupported
from turnkeep.model import Finding, Verdict

_MIB = 1024 * 1024

Sandbox = Annotated[
    str,
    typer.Argument(
        metavar="[SANDBOX]",
        help="Look at this one as well; it is frozen for a moment.",
        show_default=False,
        autocompletion=complete_sandbox,
    ),
]
SelfTest = Annotated[
    bool,
    typer.Option(
        "--self-test", help="Dump and restore a process again, although the daemon has done so before."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    ctx: typer.Context, sandbox: Sandbox = "", self_test: SelfTest = False, json: JsonFlag = False
) -> None:
    """Look at the daemon and its host, and at what of a sandbox could not be captured.

    Exits with 1 when something is missing, 5 without a daemon.
    """
    run = started(ctx, json=json)
    code = ExitCode.OK
    try:
        with run.connect() as tk:
            findings = _all(tk, sandbox, self_test=self_test)
    except DaemonUnavailable as error:
        detail = f"{error.message} ({error.object})"
        findings = [Finding(what="daemon", verdict=Verdict.MISSING, detail=detail, fix=error.hint)]
        code = error.exit_code
    if code is ExitCode.OK and any(item.verdict is Verdict.MISSING for item in findings):
        code = ExitCode.FAILED
    if json:
        printing.emit(findings)
    else:
        width = max(len(item.what) for item in findings)
        for item in findings:
            run.out.print(_line(item, width), soft_wrap=True)
    raise typer.Exit(code)


def _line(item: Finding, width: int) -> Text:
    detail = f"{item.detail}; {item.fix}" if item.fix else item.detail
    return Text.assemble(
        printing.styled(f"{item.what:<{width}}  "),
        printing.styled(f"{item.verdict:<8}", printing.STYLES[item.verdict]),
        printing.styled(f"  {detail}"),
    )


def _all(tk: Client, sandbox: str, *, self_test: bool) -> list[Finding]:
    status = tk.status()
    try:
        examined = tk.examine(sandbox, self_test=self_test)
    except Unsupported as error:
        # An older daemon, which the first line says, too.
        examined = [Finding(what="host", verdict=Verdict.DEGRADED, detail=error.message, fix=error.hint)]
    said = {item.detail for item in examined}
    more = [
        Finding(what="host", verdict=Verdict.DEGRADED, detail=sentence)
        for sentence in status.degraded
        if sentence not in said
    ]
    return [*_examine(status), *more, *examined]


def _examine(status: HostStatus) -> Iterator[Finding]:
    yield _daemon(status)
    yield _present(
        "engine",
        status.engine_version,
        "Docker Engine {}",
        "start it: systemctl start docker (or: make host)",
    )
    yield _storage(status.storage_driver)
    groups = f"v{status.cgroup_version}" if status.cgroup_version in (1, 2) else None
    yield _present("cgroups", groups, "{}", "mount cgroup2 on /sys/fs/cgroup")
    yield _kernel(status.kernel)
    yield _space(status)
    yield _tracker(status.tracker)


def _daemon(status: HostStatus) -> Finding:
    usage = status.usage
    detail = (
        f"version {status.version}, pid {status.pid}, up {words.age(status.started_at_ns)};"
        f" {words.size(usage.resident_bytes)} of memory, {words.count(usage.descriptors, 'descriptor')},"
        f" {words.count(usage.threads, 'thread')}"
    )
    if status.version != turnkeep.__version__:
        detail += f"; this command is version {turnkeep.__version__}"
        return Finding(what="daemon", verdict=Verdict.DEGRADED, detail=detail, fix="restart the daemon")
    return Finding(what="daemon", verdict=Verdict.OK, detail=detail)


def _present(what: str, found: str | None, detail: str, fix: str) -> Finding:
    if found:
        return Finding(what=what, verdict=Verdict.OK, detail=detail.format(found))
    return Finding(what=what, verdict=Verdict.MISSING, detail="not there", fix=fix)


def _storage(driver: str) -> Finding:
    if driver in ("overlay2", "overlayfs"):
        return Finding(what="storage", verdict=Verdict.OK, detail=driver)
    fix = 'set "storage-driver": "overlay2" in /etc/docker/daemon.json'
    return Finding(what="storage", verdict=Verdict.MISSING, detail=driver or "not known", fix=fix)


def _kernel(release: str) -> Finding:
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) >= (5, 6):
        return Finding(what="kernel", verdict=Verdict.OK, detail=release)
    fix = "Linux 5.6 or newer is needed (openat2)"
    return Finding(what="kernel", verdict=Verdict.MISSING, detail=release or "not known", fix=fix)


def _space(status: HostStatus) -> Finding:
    free, used = words.size(status.free_bytes), words.size(status.stored_bytes)
    detail = f"{free} free under {status.state_dir}, {used} used"
    fix = "run turnkeep prune, or give it more room"
    if status.free_bytes < 100 * _MIB:
        return Finding(what="space", verdict=Verdict.MISSING, detail=detail, fix=fix)
    if status.free_bytes < 1024 * _MIB:
        return Finding(what="space", verdict=Verdict.DEGRADED, detail=detail, fix=fix)
    return Finding(what="space", verdict=Verdict.OK, detail=detail)


def _tracker(figures: TrackerFigures) -> Finding:
    if not figures.enabled:
        fix = "set tracker.enabled = true in the configuration, and start the daemon again"
        return Finding(what="tracker", verdict=Verdict.DEGRADED, detail="every turn scans all files", fix=fix)
    if figures.missed:
        detail = f"{words.count(figures.missed, 'change')} of files were not reported, and found by scans"
        fix = "a defect: please report it; until then set tracker.enabled = false"
        return Finding(what="tracker", verdict=Verdict.DEGRADED, detail=detail, fix=fix)
    looks = f"{words.count(figures.followed, 'look')} followed, {figures.scanned} scanned"
    detail = f"{looks}, {figures.audits} compared with a scan, {words.count(figures.overflows, 'overflow')}"
    return Finding(what="tracker", verdict=Verdict.OK, detail=detail)
