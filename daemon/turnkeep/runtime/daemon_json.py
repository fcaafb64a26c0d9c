"""The engine's configuration file, as far as `runtimes` is concerned.

The file belongs to somebody else. One that cannot be parsed is not touched;
what is written differs from what was there by our entry alone; a copy of what
was there lies beside it (`BACKUP`) for as long as our entry does. Symlinks are
followed: the file that they lead to is replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnkeep.errors import Conflict, InternalError, InvalidRequest
from turnkeep.runtime.json_text import keys, with_member, without_member
from turnkeep.runtime.replace import read_file, remove_file, replace_file

DEFAULT = Path("/etc/docker/daemon.json")
BACKUP = ".before-turnkeep"
_KEY = "runtimes"


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonJson:
    """The file as it was read. `content` is None if there is none."""

    path: Path
    content: bytes | None
    values: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What it says; an empty file says nothing, which the engine takes for an empty object."""
        text = (self.content or b"").decode()
        return text if text.strip() else "{}\n"

    @property
    def backup(self) -> Path:
        """Where what was there before us is kept."""
        return self.path.with_name(self.path.name + BACKUP)

    def runtime(self, name: str) -> Mapping[str, Any] | None:
        """Return the entry of a runtime."""
        entry: Mapping[str, Any] | None = self.values.get(_KEY, {}).get(name)
        return entry


def read_daemon_json(path: Path) -> DaemonJson:
    """Read the file, and make sure that it can be changed soundly.

    Raises:
        InvalidRequest: it is not what the engine could read either.
        TurnkeepError: it cannot be read at all.
    """
    real = path.resolve()
    content = read_file(real)
    made = DaemonJson(path=real, content=content, values={})
    try:
        values = json.loads(made.text)
        names = keys(made.text)
        twice = [name for name in names if name.lower() == _KEY] not in ([], [_KEY])
        if twice or not isinstance(values.get(_KEY, {}), dict):
            raise ValueError(f'"{_KEY}" has to be there once at most, as an object')
        if any(not isinstance(entry, dict) for entry in values.get(_KEY, {}).values()):
            raise ValueError(f'an entry of "{_KEY}" is no object')
    except ValueError as error:
        raise InvalidRequest(
            f"this is no configuration of an engine's: {error}",
            object=str(path),
            hint="it was left as it is; correct it first",
        ) from error
    return DaemonJson(path=real, content=content, values=values)


def add_runtime(path: Path, name: str, entry: Mapping[str, Any]) -> bool:
    """Add a runtime to the file; return whether that changed it. A missing file is made.

    Raises:
        Conflict: there is another runtime of this name.
        InvalidRequest: the file is damaged; it is untouched.
    """
    found = read_daemon_json(path)
    require_free(found, name, entry)
    if found.runtime(name) is not None:
        return False
    if _KEY in found.values:
        text = with_member(found.text, (_KEY,), name, entry)
    else:
        text = with_member(found.text, (), _KEY, {name: entry})
    runtimes = {**found.values.get(_KEY, {}), name: dict(entry)}
    _check(text, {**found.values, _KEY: runtimes})
    if found.content is not None:
        replace_file(found.backup, found.content, expected=read_file(found.backup), mode=0o600)
    replace_file(found.path, text.encode(), expected=found.content)
    return True


def require_free(found: DaemonJson, name: str, entry: Mapping[str, Any]) -> None:
    """Make sure that a name is free, or ours.

    Raises:
        Conflict: it is not.
    """
    there = found.runtime(name)
    if there is not None and there != entry:
        raise Conflict(
            f"there is another runtime {name!r}: {json.dumps(there)}",
            object=str(found.path),
            hint="remove that entry if nothing uses it, and try again",
        )


def remove_runtime(path: Path, name: str, entry: Mapping[str, Any]) -> bool:
    """Remove our runtime from the file; return whether that changed it.

    What is left of the file may hold an empty `runtimes`: engines overlook that
    one is gone as long as they do not read that there are none. `tidy` removes it.

    Raises:
        Conflict: the entry is not ours; the file is untouched.
        InvalidRequest: the file is damaged; it is untouched.
    """
    found = read_daemon_json(path)
    require_free(found, name, entry)
    if found.runtime(name) is None:
        return False
    text = without_member(found.text, (_KEY,), name)
    kept = {key: value for key, value in found.values[_KEY].items() if key != name}
    _check(text, {**found.values, _KEY: kept})
    replace_file(found.path, text.encode(), expected=found.content)
    return True


def tidy(path: Path) -> None:
    """Remove what is left of us: an empty `runtimes`, the copy, the file itself if we made it.

    If nobody else changed the file, it is what it was before us, to the byte.

    Raises:
        InvalidRequest: the file is damaged; it is untouched.
    """
    found = read_daemon_json(path)
    text, wanted = found.text, dict(found.values)
    if wanted.get(_KEY) == {}:
        text = without_member(text, (), _KEY)
        del wanted[_KEY]
    _check(text, wanted)
    before = read_file(found.backup)
    if before is None and not wanted:
        remove_file(found.path)
        return
    as_before = _as_before(before, wanted)
    content = text.encode() if as_before is None else as_before
    if content != found.content:
        replace_file(found.path, content, expected=found.content)
    remove_file(found.backup)


def _as_before(before: bytes | None, wanted: Mapping[str, Any]) -> bytes | None:
    """Return what was there before us, if it says what is wanted now; an empty `runtimes` is none."""
    try:
        values = json.loads(before) if before and before.strip() else {}
    except ValueError:
        return None
    if isinstance(values, dict) and values.get(_KEY) == {}:
        del values[_KEY]
    return before if values == wanted else None


def _check(text: str, wanted: Mapping[str, Any]) -> None:
    # The last door before somebody's file is written.
    if json.loads(text) != wanted:
        raise InternalError("changing the configuration went wrong; it was left as it is")
