"""A repository in memory: for tests and for trying things out."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from turnkeep_store.backend import ASIDE, Area, NewFile
from turnkeep_store.durable import Bytes


class MemoryBackend:
    """Files of a repository in a dict. Nothing survives the process."""

    def __init__(self) -> None:
        self.files: dict[tuple[Area, str], bytes] = {}
        self.lock = threading.Lock()

    def list(self, area: Area) -> list[tuple[str, int]]:
        with self.lock:
            return [(name, len(data)) for (where, name), data in self.files.items() if where is area]

    def size(self, area: Area, name: str) -> int:
        return len(self._content(area, name))

    def read(self, area: Area, name: str, offset: int, length: int) -> bytes:
        return self._content(area, name)[offset : offset + length]

    def create(self, area: Area) -> NewFile:
        return _MemoryFile(self, area)

    def delete(self, area: Area, names: Iterable[str]) -> None:
        with self.lock:
            for name in names:
                self.files.pop((area, name), None)

    def set_aside(self, area: Area, name: str) -> None:
        data = self._content(area, name)
        with self.lock:
            self.files[area, name + ASIDE] = data
            del self.files[area, name]

    def remove_leftovers(self) -> int:
        return 0

    def _content(self, area: Area, name: str) -> bytes:
        try:
            return self.files[area, name]
        except KeyError:
            raise FileNotFoundError(f"{area}/{name}") from None


class _MemoryFile:
    def __init__(self, backend: MemoryBackend, area: Area) -> None:
        self._backend = backend
        self._area = area
        self._data = bytearray()

    @property
    def size(self) -> int:
        return len(self._data)

    def write(self, data: Bytes) -> None:
        self._data += data

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def publish(self, name: str, *, replace: bool = False) -> None:
        with self._backend.lock:
            self._backend.files[self._area, name] = bytes(self._data)

    def discard(self) -> None:
        self._data = bytearray()
