"""Where a repository's files lie."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Protocol

from turnkeep_store.durable import Bytes

ASIDE = ".damaged"
"""What is put behind the name of a file that is set aside."""


class Area(enum.StrEnum):
    """The folders of a repository. Their names are part of the format."""

    CONFIG = "config"
    PACKS = "packs"
    SNAPSHOTS = "snapshots"


class NewFile(Protocol):
    """A file that is being written and that nobody sees yet."""

    @property
    def size(self) -> int:
        """How many bytes were written."""
        ...

    def write(self, data: Bytes) -> None:
        """Append `data`. An error may surface later, at the latest in `publish`."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes written before."""
        ...

    def publish(self, name: str, *, replace: bool = False) -> None:
        """Make the file visible under `name`; on return it survives a power cut.

        With `replace`, another file may have that name: it leads to one of them at any time.
        """
        ...

    def discard(self) -> None:
        """Drop the file. After `publish` or a second time this does nothing that is seen."""
        ...


class Backend(Protocol):
    """Files by area and name. What files hold never changes once they are visible.

    Safe for use by many threads at once.

    Raises, in every method:
        StoreFull: no room is left.
        StoreIOError: reading or writing failed.
    """

    def list(self, area: Area) -> list[tuple[str, int]]:
        """Return name and size of the visible files, in no order."""
        ...

    def size(self, area: Area, name: str) -> int:
        """Return a file's length.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def read(self, area: Area, name: str, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer only where the file ends.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def create(self, area: Area) -> NewFile:
        """Begin a file."""
        ...

    def delete(self, area: Area, names: Iterable[str]) -> None:
        """Remove files; on return none comes back. Names that are not there are passed over."""
        ...

    def set_aside(self, area: Area, name: str) -> None:
        """Give a file a name that no reader takes; on return it has it for good. Its bytes stay.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def remove_leftovers(self) -> int:
        """Remove what a crash left half written; nothing else may be using the repository."""
        ...


def save(backend: Backend, area: Area, name: str, data: Bytes, *, replace: bool = False) -> None:
    """Publish one small file (see `NewFile.publish`)."""
    file = backend.create(area)
    try:
        file.write(data)
    except BaseException:
        file.discard()
        raise
    file.publish(name, replace=replace)
