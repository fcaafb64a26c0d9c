"""A repository in a directory. Folders are 0700, files 0600."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from turnkeep_store.backend import ASIDE, Area, NewFile
from turnkeep_store.durable import (
    TEMPORARY,
    Disk,
    DurableFile,
    disk_errors,
    make_directory_durably,
    remove_durably,
    remove_leftovers,
)


class LocalBackend:
    """Files of a repository below `path`, one folder an area."""

    def __init__(self, path: str, disk: Disk) -> None:
        self._path = path
        self._disk = disk

    def make_folders(self) -> None:
        """Create what is missing of the folders."""
        make_directory_durably(self._disk, self._path)
        for area in Area:
            make_directory_durably(self._disk, self._folder(area))

    def list(self, area: Area) -> list[tuple[str, int]]:
        folder = self._folder(area)
        with disk_errors("list", folder):
            return [each for each in self._disk.list(folder) if not each[0].startswith(TEMPORARY)]

    def size(self, area: Area, name: str) -> int:
        path = os.path.join(self._folder(area), name)
        with _doing("read", path):
            return self._disk.size(path)

    def read(self, area: Area, name: str, offset: int, length: int) -> bytes:
        path = os.path.join(self._folder(area), name)
        with _doing("read", path):
            return self._disk.read(path, offset, length)

    def create(self, area: Area) -> NewFile:
        return DurableFile(self._disk, self._folder(area))

    def delete(self, area: Area, names: Iterable[str]) -> None:
        remove_durably(self._disk, self._folder(area), names)

    def set_aside(self, area: Area, name: str) -> None:
        path = os.path.join(self._folder(area), name)
        with _doing("rename", path):
            self._disk.rename(path, path + ASIDE)
            self._disk.sync_directory(self._folder(area))

    def remove_leftovers(self) -> int:
        return sum(remove_leftovers(self._disk, self._folder(area)) for area in Area)

    def _folder(self, area: Area) -> str:
        return os.path.join(self._path, area.value)


@contextlib.contextmanager
def _doing(action: str, path: str) -> Iterator[None]:
    """Turn an OSError of the block into the backend's errors."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError:
        with disk_errors(action, path):
            raise
