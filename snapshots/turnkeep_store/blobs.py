"""What code that reads and writes blobs needs of a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from turnkeep_store.ids import BlobId
from turnkeep_store.kinds import BlobKind


class BlobSource(Protocol):
    """Where blobs come from."""

    def get(self, blob: BlobId) -> bytes:
        """Return the blob's bytes, verified against its id.

        Raises:
            BlobNotFound: there is no such blob here.
            Damaged: what is stored is not what was written.
        """
        ...


class BulkSource(BlobSource, Protocol):
    """Where blobs are read, also many at one go."""

    def get_many(self, blobs: Iterable[BlobId], room: int | None = None) -> dict[BlobId, bytes]:
        """Return many blobs, verified, at most `room` bytes of them.

        What is left out is to be asked for alone, which says why.
        """
        ...


class BlobSink(BlobSource, Protocol):
    """Where blobs go. What was put can be got back at once."""

    def put(self, data: bytes | bytearray | memoryview, kind: BlobKind) -> BlobId:
        """Take `data` in and return its id. Equal data is kept once."""
        ...
