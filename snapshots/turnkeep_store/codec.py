"""Compression of single blobs.

A blob that does not get smaller is stored as it is. Decompression never
allocates more than the length that was recorded when the blob was written, and
that length has a limit of its own, so that no stored byte can exhaust memory.
"""

from __future__ import annotations

import enum
import threading

import zstandard

from turnkeep_store.errors import Damaged, LimitExceeded

MAX_RAW_BYTES = 256 * 1024 * 1024
"""Longest blob, uncompressed."""

Bytes = bytes | bytearray | memoryview


class Codec(enum.IntEnum):
    """How a blob's bytes are stored. The numbers are part of the format."""

    RAW = 0
    ZSTD = 1


class Compressor:
    """Compresses at one level. Safe for use by many threads at once."""

    def __init__(self, level: int = 3) -> None:
        self._level = level
        # Creating a context costs more than compressing a small blob with it.
        self._contexts = threading.local()

    def compress(self, data: Bytes) -> tuple[Codec, Bytes]:
        """Return the codec chosen and the bytes to store.

        Raises:
            LimitExceeded: `data` is longer than a blob may be.
        """
        if len(data) > MAX_RAW_BYTES:
            raise LimitExceeded(f"blob of {len(data)} bytes: the limit is {MAX_RAW_BYTES}")
        context = getattr(self._contexts, "compressor", None)
        if context is None:
            context = zstandard.ZstdCompressor(level=self._level, write_content_size=True)
            self._contexts.compressor = context
        packed: bytes = context.compress(data)
        if len(packed) >= len(data):
            return Codec.RAW, data
        return Codec.ZSTD, packed


_contexts = threading.local()


def decompress(codec: Codec, stored: bytes, raw_length: int) -> bytes:
    """Return the bytes that were compressed.

    Raises:
        Damaged: `stored` does not hold exactly `raw_length` bytes in this codec.
    """
    if raw_length > MAX_RAW_BYTES:
        raise Damaged(f"blob claims {raw_length} bytes: the limit is {MAX_RAW_BYTES}")
    if codec is Codec.RAW:
        if len(stored) != raw_length:
            raise Damaged(f"blob of {len(stored)} bytes where {raw_length} were recorded")
        return stored
    context = getattr(_contexts, "decompressor", None)
    if context is None:
        context = _contexts.decompressor = zstandard.ZstdDecompressor()
    try:
        # The library allocates what the frame claims, whatever limit it is given.
        claimed = zstandard.get_frame_parameters(stored).content_size
        if claimed != raw_length:
            raise Damaged(f"compressed blob claims {claimed} bytes where {raw_length} were recorded")
        data: bytes = context.decompress(stored, max_output_size=raw_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"blob of {len(stored)} bytes does not decompress: {error}") from error
    if len(data) != raw_length:
        raise Damaged(f"blob of {len(data)} bytes where {raw_length} were recorded")
    return data
