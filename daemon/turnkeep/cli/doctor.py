"""`turnkeep doctor`: what this host has, what it lacks, and what to do about it."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

import typer
from rich.text import Text

import turnkeep
from turnkeep.cli import printing, words
from turnkeep.cli.run import JsonFlag, started
from turnkeep.client import HostStatus
from turnkeep.errors import DaemonUnavailable, ExitCode

_MIB = 1024 * 1024


class Verdict(enum.StrEnum):
    """How it is with one thing."""

    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `fix` says what to do where it is not ok."""

    what: str
    verdict: Verdict
    detail: str
    fix: str = ""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(ctx: typer.Context, json: JsonFlag = False) -> None:
    """Look at the daemon and its host.

    Exits with 1 when something is missing, 5 without a daemon.
    """
    run = started(ctx, json=json)
    code = ExitCode.OK
    try:
        with run.connect() as tk:
            findings = list(_examine(tk.status()))
    except DaemonUnavailable as error:
        detail = f"{error.message} ({error.object})"
        findings = [Finding(what="daemon", verdict=Verdict.MISSING, detail=detail, fix=error.hint)]
        code = error.exit_code
    if code is ExitCode.OK and any(item.verdict is Verdict.MISSING for item in findings):
        code = ExitCode.FAILED
    if json:
        printing.emit(findings)
    else:
        for item in findings:
            run.out.print(_line(item), soft_wrap=True)
    raise typer.Exit(code)


def _line(item: Finding) -> Text:
    detail = f"{item.detail}; {item.fix}" if item.fix else item.detail
    return Text.assemble(
        printing.styled(f"{item.what:<8} "),
        printing.styled(f"{item.verdict:<9}", printing.STYLES[item.verdict]),
        printing.styled(detail),
    )


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
    for sentence in status.degraded:
        yield Finding(what="host", verdict=Verdict.DEGRADED, detail=sentence)


def _daemon(status: HostStatus) -> Finding:
    detail = f"version {status.version}, pid {status.pid}, up {words.age(status.started_at_ns)}"
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
