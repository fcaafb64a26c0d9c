"""`turnkeep install` and `turnkeep uninstall`: the systemd unit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import typer

from turnkeep.cli import printing
from turnkeep.cli.run import started
from turnkeep.errors import TurnkeepError, Unsupported

NAME = "turnkeep.service"
INSTALLED = Path("/etc/systemd/system") / NAME
_HOST_RUNS_SYSTEMD = Path("/run/systemd/system")


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(install)
    app.command()(uninstall)


def install(ctx: typer.Context) -> None:
    """Install the systemd unit and start the daemon, now and at every boot."""
    run = started(ctx)
    _require_systemd()
    text = _for_this_program(_shipped().read_text())
    try:
        INSTALLED.write_text(text)
    except OSError as error:
        raise _refused(error) from error
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", NAME)
    run.out.print(printing.styled(f"installed {INSTALLED}; the daemon runs"))


def uninstall(ctx: typer.Context) -> None:
    """Stop the daemon and remove the systemd unit. State and checkpoints stay."""
    run = started(ctx)
    _require_systemd()
    if not INSTALLED.exists():
        run.out.print(printing.styled("the unit is not installed; nothing to do"))
        return
    _systemctl("disable", "--now", NAME)
    try:
        INSTALLED.unlink()
    except OSError as error:
        raise _refused(error) from error
    _systemctl("daemon-reload")
    run.out.print(printing.styled(f"removed {INSTALLED}; the state stays where it is"))


def _shipped() -> Path:
    """Return the unit beside the package (a wheel) or in the source tree."""
    package = Path(__file__).resolve().parent.parent
    for path in (package / NAME, package.parent.parent / "scripts" / NAME):
        if path.is_file():
            return path
    raise Unsupported("this installation holds no systemd unit", hint="write one that runs: turnkeep serve")


def _for_this_program(unit: str) -> str:
    """Return the unit with the path of the program that runs now."""
    program = shutil.which(sys.argv[0]) or str(Path(sys.argv[0]).resolve())
    lines = [
        f"ExecStart={program} serve" if line.startswith("ExecStart=") else line for line in unit.splitlines()
    ]
    return "\n".join(lines) + "\n"


def _require_systemd() -> None:
    if not _HOST_RUNS_SYSTEMD.is_dir():
        raise Unsupported("this host does not run systemd", hint="start the daemon with: turnkeep serve")


def _systemctl(*words: str) -> None:
    done = subprocess.run(["systemctl", *words], check=False, capture_output=True, text=True)
    if done.returncode:
        raise TurnkeepError(
            f"systemctl {words[0]} failed: {done.stderr.strip()}", hint=f"see: journalctl -u {NAME}"
        )


def _refused(error: OSError) -> TurnkeepError:
    return TurnkeepError(
        f"cannot change it: {error.strerror}", object=str(INSTALLED), hint="run this as root"
    )
