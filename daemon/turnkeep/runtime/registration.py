"""Making the OCI runtime `turnkeep` known to the engine, and taking it away again.

The shim is copied to a folder that outlives this installation's virtual
environment, for containers keep its path. The engine learns of it from its
configuration file, which it reads again without a restart, and is asked
afterwards whether it did. Blocking.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnkeep.errors import Conflict, EngineUnavailable, InvalidRequest, TurnkeepError, Unsupported
from turnkeep.runtime import daemon_json, orders, shim
from turnkeep.runtime.daemon_json import add_runtime, read_daemon_json, remove_runtime, require_free, tidy
from turnkeep.runtime.dockerd import Dockerd, find_dockerd, reload
from turnkeep.runtime.engine import Engine
from turnkeep.runtime.replace import read_file, remove_file, replace_file

NAME = "turnkeep"
FOLDER = Path("/usr/local/lib/turnkeep")
CRIU_BIN = Path("/opt/turnkeep/criu/bin")
_PROGRAM, _SCRIPT = "turnkeep-runtime", "carry_out.py"
_FILES = {_PROGRAM: 0o755, _SCRIPT: 0o644, "at-stage": 0o755, "put_right.py": 0o644}
"""What is installed, in the order in which it is removed: what leads to others goes first."""
_RELOAD_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where things are. `daemon_json` is that of the running engine unless given."""

    folder: Path = FOLDER
    orders: Path = orders.DEFAULT_DIR
    criu_bin: Path = CRIU_BIN
    daemon_json: Path | None = None

    @property
    def program(self) -> Path:
        """The runtime, as the engine is told."""
        return self.folder / _PROGRAM

    @property
    def entry(self) -> dict[str, Any]:
        """What stands in the engine's configuration."""
        return {"path": str(self.program)}


class RuntimeEngine(Engine):
    """An engine that is asked who uses a runtime."""

    def users(self, runtime: str) -> list[str]:
        """Return the names of all containers, stopped ones included, that use a runtime."""
        api = self._client.api
        found = [self.inspect(each["Id"]) for each in api.containers(all=True)]
        return sorted(each["Name"].lstrip("/") for each in found if _runtime(each) == runtime)


def _runtime(inspected: Mapping[str, Any]) -> str:
    return str(inspected["HostConfig"].get("Runtime", ""))


def register(engine: RuntimeEngine, host: str, settings: Settings) -> list[str]:
    """Install the runtime, and have the engine know it. Returns what was done, in sentences.

    Doing it again changes nothing, or brings the shim up to date. When this
    raises, the engine's configuration is what it was.

    Raises:
        Conflict: another runtime has the name, or the engine reads another file.
        InvalidRequest: the engine's configuration is damaged.
        Unsupported: there is no runc, or the engine is told its runtimes otherwise.
        EngineUnavailable: the engine did not take it.
    """
    dockerd = find_dockerd(host)
    path = _config_file(settings, dockerd)
    require_free(read_daemon_json(path), NAME, settings.entry)
    refuse_flags(dockerd)
    said = []
    if _write_shim(settings, dockerd):
        said.append(f"wrote {settings.program}")
    added = add_runtime(path, NAME, settings.entry)
    if added:
        said.append(f"added the runtime {NAME!r} to {path}")
    try:
        said += _make_known(engine, dockerd, path, settings)
    except BaseException:
        if added:
            remove_runtime(path, NAME, settings.entry)
            tidy(path)
        raise
    return said or [f"the engine knows the runtime {NAME!r}; nothing to do"]


def _make_known(engine: RuntimeEngine, dockerd: Dockerd | None, path: Path, settings: Settings) -> list[str]:
    try:
        if is_known(engine, settings):
            return []
    except EngineUnavailable:
        if dockerd is None:
            return ["no engine runs here; it will know the runtime when it starts"]
        raise
    if dockerd is None:
        return ["the engine's process was not found: have it read the file (systemctl reload docker)"]
    if not reload(dockerd, lambda: is_known(engine, settings), _RELOAD_S):
        raise EngineUnavailable(
            f"the engine did not take the runtime from {path}; the file is what it was",
            object=f"dockerd, pid {dockerd.pid}",
            hint="its log says why (journalctl -u docker)",
        )
    return [f"the engine knows the runtime {NAME!r} now"]


def unregister(engine: RuntimeEngine, host: str, settings: Settings, *, force: bool = False) -> list[str]:
    """Take the runtime away from the engine, and remove it. Returns what was done, in sentences.

    With `force` also while containers use it; the program then stays where it
    is, because running ones cannot even be stopped without it.

    Raises:
        Conflict: containers use it, or the entry of this name is not ours.
        EngineUnavailable: who uses it cannot be found out.
    """
    dockerd = find_dockerd(host)
    path = _config_file(settings, dockerd)
    users = _users(engine, dockerd, force=force)
    if users and not force:
        raise Conflict(
            f"containers use the runtime {NAME!r}: {', '.join(users)}",
            object=str(path),
            hint="remove them first; with --force they stay, and cannot be started again",
        )
    said = []
    if remove_runtime(path, NAME, settings.entry):
        said.append(f"removed the runtime {NAME!r} from {path}")
        said += _make_forgotten(engine, dockerd, settings)
        tidy(path)
    if users:
        return [*said, f"{settings.program} stays, for {', '.join(users)}"]
    if _remove_shim(settings):
        said.append(f"removed {settings.program}")
    return said or [f"the runtime {NAME!r} is not installed; nothing to do"]


def _make_forgotten(engine: RuntimeEngine, dockerd: Dockerd | None, settings: Settings) -> list[str]:
    # Nothing depends on it: without the entry it is gone after the next start.
    if dockerd is None:
        return ["an engine that runs forgets it when it starts the next time"]
    if reload(dockerd, lambda: not is_known(engine, settings), _RELOAD_S):
        return ["the engine does not know it any more"]
    return ["the engine forgets it when it starts the next time"]


def _config_file(settings: Settings, dockerd: Dockerd | None) -> Path:
    reads = (dockerd.config_file if dockerd is not None else None) or daemon_json.DEFAULT
    if settings.daemon_json is None:
        return reads
    if dockerd is not None and settings.daemon_json.resolve() != reads.resolve():
        raise Conflict(f"the running engine reads another file, {reads}", object=str(settings.daemon_json))
    return settings.daemon_json


def refuse_flags(dockerd: Dockerd | None) -> None:
    """Refuse an engine whose flags name runtimes: with a file that does, too, it would not start.

    Raises:
        Unsupported: its flags do.
    """
    if dockerd is not None and dockerd.added_runtimes:
        raise Unsupported(
            f"the engine is told its runtimes by flags: {', '.join(dockerd.added_runtimes)}",
            object=f"dockerd, pid {dockerd.pid}",
            hint="move these from --add-runtime to the file; it refuses to start with both",
        )


def _users(engine: RuntimeEngine, dockerd: Dockerd | None, *, force: bool) -> list[str]:
    try:
        return engine.users(NAME)
    except EngineUnavailable as error:
        if force and dockerd is None:
            return []
        hint = "start it, or use --force where there is none any more"
        raise EngineUnavailable(
            f"the engine cannot be asked which containers use the runtime: {error.message}",
            object=error.object,
            hint=hint,
        ) from error


def is_known(engine: Engine, settings: Settings) -> bool:
    """Whether an engine knows the runtime, as it was installed with these settings."""
    runtimes = engine.info().get("Runtimes") or {}
    return bool(runtimes.get(NAME, {}).get("path") == str(settings.program))


def _write_shim(settings: Settings, dockerd: Dockerd | None) -> bool:
    """Write the shim and its scripts where they differ from what is there; return whether they did."""
    source = Path(shim.__file__).parent
    runc = _find_runc(dockerd)
    values = {
        "runc": runc,
        "criu": str(settings.criu_bin),
        "orders": str(settings.orders),
        "python": _python(),
        "carry_out": str(settings.folder / _SCRIPT),
        "exec_waits": "yes" if _can_ignore_pauses(runc) else "",
    }
    changed = False
    for name, mode in reversed(_FILES.items()):
        content = (source / name).read_bytes()
        if name == _PROGRAM:
            content = fill_in(content.decode(), values).encode()
        changed |= _write(settings.folder / name, content, mode)
    return changed


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Return the shim with these settings."""
    for name, value in values.items():
        line = f"{name}={shlex.quote(value) if value else ''}"
        text, found = re.subn(rf"(?m)^{name}=.*$", lambda _, line=line: line, text, count=1)  # type: ignore[misc]
        if not found:
            raise InvalidRequest(f"the shim has no setting {name!r}")
    return text


def _write(path: Path, content: bytes, mode: int) -> bool:
    there = read_file(path)
    if there == content:
        return False
    replace_file(path, content, expected=there, mode=mode)
    return True


def _remove_shim(settings: Settings) -> bool:
    paths = [path for path in (settings.folder / name for name in _FILES) if path.exists()]
    for path in paths:
        remove_file(path)
    if settings.folder.is_dir() and not any(settings.folder.iterdir()):
        settings.folder.rmdir()
    return bool(paths)


def _find_runc(dockerd: Dockerd | None) -> str:
    """Return the runc that the engine itself would start."""
    path = dockerd.path if dockerd is not None else os.environ.get("PATH", os.defpath)
    found = shutil.which("runc", path=path)
    if found is None:
        raise Unsupported("there is no runc in the engine's PATH", object=path, hint="install runc")
    return os.path.abspath(found)


def _can_ignore_pauses(runc: str) -> bool:
    done = subprocess.run([runc, "exec", "--help"], check=False, capture_output=True, text=True)
    return "--ignore-paused" in done.stdout


def _python() -> str:
    """Return an interpreter that outlives this virtual environment, for the restore path."""
    for candidate in ("/usr/bin/python3", os.path.realpath(sys.executable)):
        command = [candidate, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 10))"]
        if os.path.exists(candidate) and not subprocess.run(command, check=False).returncode:
            return candidate
    raise TurnkeepError("no Python starts without its virtual environment", hint="install python3")
