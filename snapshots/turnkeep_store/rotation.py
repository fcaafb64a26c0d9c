"""Exchanging the keys of an encrypted repository that nobody else has open.

Each step leaves the repository readable with the keys that it names, so what was
cut off is simply done again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from turnkeep_store.backend import Area
from turnkeep_store.backend_sealed import SealedBackend
from turnkeep_store.errors import Damaged, WrongKey
from turnkeep_store.keys import Keyring, MasterKey
from turnkeep_store.repository import Repository, save_keyring

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resealed:
    """What `reseal` did. `damaged` are files that cannot be read; as long as there are any, no key goes."""

    files: int
    damaged: tuple[str, ...]


def change_master(repo: Repository, master: MasterKey) -> None:
    """Have a repository opened with another master key from now on. Nothing else changes."""
    backend = _sealed(repo)
    save_keyring(backend.inner, backend.keyring, master)


def add_data_key(repo: Repository, master: MasterKey) -> Keyring:
    """Give a repository a new data key, with which all is encrypted that is written from now on."""
    backend = _sealed(repo)
    keyring = backend.keyring.rotated()
    save_keyring(backend.inner, keyring, master)
    backend.keyring = keyring
    return keyring


def reseal(repo: Repository, progress: Progress = lambda done, total: None) -> Resealed:
    """Encrypt everything with the current data key that was not.

    `progress` is told how many files were looked at, and of how many.
    """
    backend = _sealed(repo)
    found = [(area, name) for area in (Area.PACKS, Area.SNAPSHOTS) for name, _ in backend.list(area)]
    files, damaged = 0, []
    for done, (area, name) in enumerate(found):
        progress(done, len(found))
        try:
            with contextlib.suppress(FileNotFoundError):
                files += backend.reseal(area, name)
        except Damaged as error:
            damaged.append(str(error))
    return Resealed(files=files, damaged=tuple(damaged))


def drop_old_keys(repo: Repository, master: MasterKey) -> int:
    """Forget all data keys but the current one; return how many those were.

    Only for who has encrypted everything with that, databases too.
    """
    backend = _sealed(repo)
    keyring = backend.keyring.alone()
    save_keyring(backend.inner, keyring, master)
    dropped = len(backend.keyring.keys) - 1
    backend.keyring = keyring
    return dropped


def _sealed(repo: Repository) -> SealedBackend:
    if not isinstance(repo.backend, SealedBackend):
        raise WrongKey("the repository is not encrypted, so there are no keys to exchange")
    return repo.backend
