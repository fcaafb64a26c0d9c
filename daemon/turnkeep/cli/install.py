"""`turnkeep install` and `turnkeep uninstall`: the systemd unit and the OCI runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turnkeep import config
from turnkeep.cli import printing
from turnkeep.cli.run import Run, started
from turnkeep.errors import TurnkeepError, Unsupported

if TYPE_CHECKING:
    from turnkeep.runtime.registration import RuntimeEngine, Settings

NAME = "turnkeep.service"
INSTALLED = Path("/etc/systemd/system") / NAME
FILES_ONLY = "turnkeep-files-only.conf"
_DROP_IN = INSTALLED.with_name(f"{NAME}.d") / "files-only.conf"
_HOST_RUNS_SYSTEMD = Path("/run/systemd/system")
_HINT = "start the daemon with: turnkeep serve"

NoUnit = Annotated[bool, typer.Option("--no-unit", help="Leave the systemd unit alone.")]
NoRuntime = Annotated[bool, typer.Option("--no-runtime", help="Leave the OCI runtime alone.")]
DaemonJson = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="The engine's configuration; the running engine's by default."),
]
RuntimeDir = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Where the runtime is put; /usr/local/lib/turnkeep.")
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(install)
    app.command()(uninstall)


def install(
    ctx: typer.Context,
    no_unit: NoUnit = False,
    no_runtime: NoRuntime = False,
    daemon_json: DaemonJson = None,
    runtime_dir: RuntimeDir = None,
) -> None:
    """Install the systemd unit and the OCI runtime, and start the daemon.

    Doing it again brings both up to date. Without systemd only the runtime is installed.
    """
    run = started(ctx)
    if not no_runtime:
        from turnkeep.runtime import registration

        settings = _settings(daemon_json, runtime_dir)
        engine, host = _engine()
        try:
            _say(run, registration.register(engine, host, settings))
        finally:
            engine.close()
    if not no_unit and _has_systemd(run, None if no_runtime else f"no unit was installed; {_HINT}"):
        _install_unit(run)


def uninstall(
    ctx: typer.Context,
    no_unit: NoUnit = False,
    no_runtime: NoRuntime = False,
    daemon_json: DaemonJson = None,
    runtime_dir: RuntimeDir = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take the runtime away although containers use it.")
    ] = False,
) -> None:
    """Stop the daemon, remove the systemd unit and the OCI runtime. State and checkpoints stay."""
    run = started(ctx)
    if not no_runtime:
        from turnkeep.runtime import registration

        settings = _settings(daemon_json, runtime_dir)
        engine, host = _engine()
        try:
            _say(run, registration.unregister(engine, host, settings, force=force))
        finally:
            engine.close()
    if not no_unit and _has_systemd(run, None if no_runtime else "there is no unit to remove"):
        _uninstall_unit(run)


def _settings(daemon_json: Path | None, runtime_dir: Path | None) -> Settings:
    # Only here: every other command does without Docker and the store.
    from turnkeep.runtime.registration import CRIU_BIN, FOLDER, Settings

    criu = os.environ.get("TURNKEEP_CRIU_ROOT")
    return Settings(
        folder=(runtime_dir or FOLDER).absolute(),
        criu_bin=Path(criu, "bin").absolute() if criu else CRIU_BIN,
        daemon_json=daemon_json.absolute() if daemon_json else None,
    )


def _engine() -> tuple[RuntimeEngine, str]:
    from turnkeep.runtime.registration import RuntimeEngine

    host = config.load().docker_host
    return RuntimeEngine(host), host


def _has_systemd(run: Run, otherwise: str | None) -> bool:
    """Whether there is a systemd. If not, say what that means, or refuse where nothing else was done."""
    if _HOST_RUNS_SYSTEMD.is_dir():
        return True
    if otherwise is None:
        raise Unsupported("this host does not run systemd", hint=_HINT)
    _say(run, [f"this host does not run systemd: {otherwise}"])
    return False


def _install_unit(run: Run) -> None:
    text = _for_this_program(_shipped(NAME).read_text())
    try:
        INSTALLED.write_text(text)
        if config.load().process.enabled:
            _DROP_IN.unlink(missing_ok=True)
        else:
            _DROP_IN.parent.mkdir(exist_ok=True)
            _DROP_IN.write_text(_shipped(FILES_ONLY).read_text())
    except OSError as error:
        raise _refused(error) from error
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", NAME)
    _say(run, [f"installed {INSTALLED}; the daemon runs"])


def _uninstall_unit(run: Run) -> None:
    if not INSTALLED.exists():
        _say(run, ["the unit is not installed; nothing to do"])
        return
    _systemctl("disable", "--now", NAME)
    try:
        INSTALLED.unlink()
        _DROP_IN.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(error) from error
    _systemctl("daemon-reload")
    _say(run, [f"removed {INSTALLED}; the state stays where it is"])


def _say(run: Run, sentences: list[str]) -> None:
    for sentence in sentences:
        run.out.print(printing.styled(sentence), soft_wrap=True)


def _shipped(name: str) -> Path:
    """Return a file for systemd beside the package (a wheel) or in the source tree."""
    package = Path(__file__).resolve().parent.parent
    for path in (package / name, package.parent.parent / "scripts" / name):
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
