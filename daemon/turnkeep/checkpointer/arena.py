"""Where content goes that is too large to be held whole while a sandbox is frozen."""

from __future__ import annotations

from collections.abc import Iterable

from turnkeep_store.blobs import BlobSink
from turnkeep_store.chunks import write_file
from turnkeep_store.ids import BlobId, blob_id
from turnkeep_store.kinds import BlobKind
from turnkeep_store.tree import Extent

from turnkeep.errors import CaptureFailed


class ArenaFull(CaptureFailed):
    """More content changed inside one freeze than the arena holds."""


class CopyAhead:
    """Content copied before the freeze, and what changed again within it.

    Ahead of the freeze content goes straight to the sink. Within it, chunks that
    the sink was given before are recognised by their hash and dropped, and only
    new ones are held, in memory, until `settle` hands them over after the thaw.
    """

    def __init__(self, sink: BlobSink, capacity_bytes: int) -> None:
        self._sink = sink
        self._capacity = capacity_bytes
        self._known: set[BlobId] = set()
        self._held: dict[BlobId, tuple[bytes, BlobKind]] = {}
        self._held_bytes = 0
        self.frozen = False

    def store(self, segments: Iterable[tuple[int, bytes]], size: int) -> tuple[Extent, ...]:
        """Take a file's content; return what an entry says of it.

        Raises:
            ArenaFull: inside a freeze, and too much of it is new.
        """
        return write_file(self, segments, size)

    def account(self, held_bytes: int) -> None:
        """Count content that is held elsewhere in memory against the capacity.

        Raises:
            ArenaFull: inside a freeze, and there is no room for it.
        """
        self._held_bytes += held_bytes
        if self.frozen and self._held_bytes > self._capacity:
            raise ArenaFull(
                f"more than {self._capacity} bytes changed while the sandbox was frozen",
                hint="limits.arena_bytes bounds what is held in memory; it is tried again",
            )

    @property
    def room_bytes(self) -> int:
        """How much more fits."""
        return max(0, self._capacity - self._held_bytes)

    def put(self, data: bytes | bytearray | memoryview, kind: BlobKind) -> BlobId:
        """Take a chunk (`write_file` calls this)."""
        if not self.frozen:
            identifier = self._sink.put(data, kind)
            self._known.add(identifier)
            return identifier
        identifier = blob_id(data)
        if identifier not in self._known and identifier not in self._held:
            self.account(len(data))
            self._held[identifier] = (bytes(data), kind)
        return identifier

    def get(self, blob: BlobId) -> bytes:
        """Return a chunk."""
        held = self._held.get(blob)
        return held[0] if held is not None else self._sink.get(blob)

    def settle(self) -> None:
        """Hand what is held over to the sink."""
        self.frozen = False
        for identifier, (data, kind) in self._held.items():
            self._sink.put(data, kind)
            self._known.add(identifier)
        self._held.clear()
        self._held_bytes = 0
