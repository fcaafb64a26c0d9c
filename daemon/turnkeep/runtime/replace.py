"""Replacing a file at once and durably, with the owner, mode and label that it had."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from turnkeep_store.durable import TEMPORARY, DiskFile, OsDisk, remove_durably, write_file_durably
from turnkeep_store.errors import StoreError

from turnkeep.errors import Conflict, TurnkeepError

_LABEL = "security.selinux"


class _SameOwner(OsDisk):
    """A disk whose new files look like one that is there, or have a mode of their own."""

    def __init__(self, like: Path, mode: int) -> None:
        self._like, self._mode = like, mode

    def create(self, path: str) -> DiskFile:
        file = super().create(path)
        try:
            status = os.stat(self._like)
        except FileNotFoundError:
            os.chmod(path, self._mode)
            return file
        os.chown(path, status.st_uid, status.st_gid)
        os.chmod(path, status.st_mode & 0o7777)
        with contextlib.suppress(OSError):  # no label, or a file system without any
            os.setxattr(path, _LABEL, os.getxattr(self._like, _LABEL))
        return file

    def unlink(self, path: str) -> None:
        # A name that could not be made durable is not taken back: the old file
        # is gone already, and no file at all is worse than either.
        if os.path.basename(path).startswith(TEMPORARY):
            super().unlink(path)


def replace_file(path: Path, content: bytes, *, expected: bytes | None, mode: int = 0o644) -> None:
    """Give a file new content; a crash leaves either the old or the new.

    `expected` is what the caller has read there, None for no file. A new one
    gets `mode`. `path` is no symlink.

    Raises:
        Conflict: the file is not what was expected any more; it is untouched.
        TurnkeepError: it cannot be written; it is untouched.
    """
    with _errors(path):
        if read_file(path) != expected:
            raise Conflict("somebody changed it meanwhile", object=str(path), hint="try again")
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        write_file_durably(_SameOwner(path, mode), str(path.parent), path.name, [content])


def remove_file(path: Path) -> None:
    """Remove a file. Does nothing if it is gone.

    Raises:
        TurnkeepError: it cannot be removed.
    """
    with _errors(path):
        if path.parent.is_dir():
            remove_durably(OsDisk(), str(path.parent), [path.name])


def read_file(path: Path) -> bytes | None:
    """Return a file's content; None if there is none.

    Raises:
        TurnkeepError: it cannot be read.
    """
    with _errors(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, StoreError) as error:
        hint = "" if os.geteuid() == 0 else "run this as root"
        raise TurnkeepError(f"cannot change it: {error}", object=str(path), hint=hint) from error
