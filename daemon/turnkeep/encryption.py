"""Encryption at rest: where the key comes from, and how keys are exchanged.

The key is named in the configuration and is never in it: a file, a systemd
credential, or what a command prints. Exchanging keys is done while no daemon has the
state open. Blocking.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from turnkeep_store import rotation
from turnkeep_store.errors import RepositoryLocked, RepositoryNotFound, WrongKey
from turnkeep_store.keys import Keyring, MasterKey
from turnkeep_store.repository import Repository

from turnkeep.config import JOURNAL_NAME, Config
from turnkeep.errors import Conflict, InvalidRequest
from turnkeep.journal import Journal

SOURCES = ("file", "credential", "command")
_COMMAND_S = 60.0
_MOST_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """What `rotate` did. As long as files are `damaged`, the old keys stay."""

    resealed: int
    dropped: int
    damaged: tuple[str, ...] = ()


def read_key(source: str, environment: Mapping[str, str] = os.environ) -> MasterKey | None:
    """Return the key that a source leads to; None without a source.

    A source is "file:PATH", "credential:NAME" (systemd's LoadCredential and its
    encrypted kind), or "command:WORDS", which is run without a shell and prints it.

    Raises:
        InvalidRequest: there is none, it is readable for others, or it is no key.
    """
    if not source:
        return None
    kind, _, rest = source.partition(":")
    hint = "encryption_key is file:PATH, credential:NAME or command:WORDS"
    if kind not in SOURCES or not rest:
        raise InvalidRequest(f"{source!r} names no key", object="encryption_key", hint=hint)
    if kind == "command":
        text = _said_by(rest)
    elif kind == "credential":
        folder = environment.get("CREDENTIALS_DIRECTORY", "")
        if not folder or "/" in rest:
            raise InvalidRequest(
                f"there is no credential {rest!r}",
                object="encryption_key",
                hint=f"systemd hands it over: LoadCredential={rest}:/path in the unit",
            )
        text = _read(Path(folder, rest))
    else:
        text = _read(Path(rest))
    try:
        return MasterKey.parse(text)
    except WrongKey as error:
        raise InvalidRequest(str(error), object=source) from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid not in (0, os.geteuid()):
                raise InvalidRequest(
                    "the key may be read or written by others",
                    object=str(path),
                    hint="chmod 0600, chown root",
                )
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise InvalidRequest(f"the key cannot be read: {error.strerror}", object=str(path)) from error


def _said_by(command: str) -> bytes:
    try:
        words = shlex.split(command)
        done = subprocess.run(
            words, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_COMMAND_S
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise InvalidRequest(f"the command for the key failed: {error}", object="encryption_key") from error
    if done.returncode:
        raise InvalidRequest(
            f"the command for the key ended with {done.returncode}", object="encryption_key", hint=command
        )
    return done.stdout[:_MOST_BYTES]


def journal_keys(keyring: Keyring | None) -> list[bytes]:
    """Return the keys that the journal of a state with this keyring may have, the current one first."""
    return keyring.for_database(JOURNAL_NAME) if keyring is not None else []


def change(config: Config, source: str) -> None:
    """Have a state opened with the key of another source from now on; nothing else is written.

    Raises:
        Conflict: a daemon has it open.
        InvalidRequest: one of the keys is missing or wrong, or nothing is encrypted.
    """
    new = read_key(source)
    if new is None:
        raise InvalidRequest("no new key was named", hint="--to file:PATH")
    with _opened(config, read_key(config.encryption_key)) as repository:
        rotation.change_master(repository, new)


def rotate(config: Config, *, rewrite: bool, progress: rotation.Progress) -> Rotated:
    """Give a state a new data key; with `rewrite` encrypt all with it, and forget the old ones.

    Cut off at any point, it is repeated. Raises as `change`.
    """
    master = read_key(config.encryption_key)
    with _opened(config, master) as repository:
        assert master is not None
        keyring = rotation.add_data_key(repository, master)
        if config.journal_path.exists():
            Journal(config.journal_path, journal_keys(keyring)).close()
        if not rewrite:
            return Rotated(resealed=0, dropped=0)
        done = rotation.reseal(repository, progress)
        dropped = 0 if done.damaged else rotation.drop_old_keys(repository, master)
    return Rotated(resealed=done.files, dropped=dropped, damaged=done.damaged)


def _opened(config: Config, master: MasterKey | None) -> Repository:
    path = config.store_path
    try:
        repository = Repository.open(path, master=master)
    except RepositoryNotFound as error:
        raise InvalidRequest(
            f"there is no state yet: {error}", object=str(path), hint="is it that of --config?"
        ) from error
    except RepositoryLocked as error:
        raise Conflict(
            f"a daemon has it open: {error}", object=str(path), hint="stop it; sandboxes run on meanwhile"
        ) from error
    if repository.keyring is None:
        repository.close()
        raise InvalidRequest(
            "this state is not encrypted, so there are no keys to exchange",
            object=str(path),
            hint="encryption_key in the configuration of a new state directory encrypts it",
        )
    return repository
