"""Compression of single blobs.

A blob that does not get smaller is stored as it is. Decompression never
allocates more than the length that was recorded when the blob was written, and
that length has a limit of its own, so that no stored byte can exhaust memory.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Sequence

import zstandard

from turnkeep_store.errors import Damaged, LimitExceeded

MAX_RAW_BYTES = 256 * 1024 * 1024
"""Longest blob, uncompressed."""

Bytes = bytes | bytearray | memoryview


class Codec(enum.IntEnum):
    """How a blob's bytes are stored. The numbers are part of the format."""

    RAW = 0
    ZSTD = 1


def check_length(data: Bytes) -> None:
    """Refuse what is too long for a blob.

    Raises:
        LimitExceeded: it is.
    """
    if len(data) > MAX_RAW_BYTES:
        raise LimitExceeded(f"blob of {len(data)} bytes: the limit is {MAX_RAW_BYTES}")


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
        check_length(data)
        return _smaller(data, self._context().compress(data))

    def compress_all(self, blobs: Sequence[bytes]) -> list[tuple[Codec, Bytes]]:
        """Do what `compress` does with many blobs, in one call without the interpreter's lock.

        To take that lock again after each small blob would cost more than to compress it.
        """
        if len(blobs) < 2 or not all(blobs):  # the library refuses a list of nothing
            return [self.compress(data) for data in blobs]
        packed = self._context().multi_compress_to_buffer(list(blobs))
        return [_smaller(data, packed[number].tobytes()) for number, data in enumerate(blobs)]

    def _context(self) -> zstandard.ZstdCompressor:
        context: zstandard.ZstdCompressor | None = getattr(self._contexts, "compressor", None)
        if context is None:
            context = zstandard.ZstdCompressor(level=self._level, write_content_size=True)
            self._contexts.compressor = context
        return context


def _smaller(data: Bytes, packed: bytes) -> tuple[Codec, Bytes]:
    return (Codec.RAW, data) if len(packed) >= len(data) else (Codec.ZSTD, packed)


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
    try:
        _check_claim(stored, raw_length)
        data: bytes = _decompressor().decompress(stored, max_output_size=raw_length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"blob of {len(stored)} bytes does not decompress: {error}") from error
    if len(data) != raw_length:
        raise Damaged(f"blob of {len(data)} bytes where {raw_length} were recorded")
    return data


def decompress_all(packed: Sequence[tuple[Bytes, int]]) -> list[bytes]:
    """Do what `decompress` does with many compressed blobs, in one call without the interpreter's lock.

    Raises:
        Damaged: one of them does not hold exactly so many bytes.
    """
    if not packed:
        return []
    try:
        for stored, raw_length in packed:
            _check_claim(stored, raw_length)
        unpacked = _decompressor().multi_decompress_to_buffer([stored for stored, _ in packed])
    except (zstandard.ZstdError, ValueError) as error:
        raise Damaged(f"one of {len(packed)} blobs does not decompress: {error}") from error
    return [unpacked[number].tobytes() for number in range(len(packed))]


def _decompressor() -> zstandard.ZstdDecompressor:
    context: zstandard.ZstdDecompressor | None = getattr(_contexts, "decompressor", None)
    if context is None:
        context = _contexts.decompressor = zstandard.ZstdDecompressor()
    return context


def _check_claim(stored: Bytes, raw_length: int) -> None:
    # The library allocates what the frame claims, whatever limit it is given.
    claimed = zstandard.get_frame_parameters(stored).content_size
    if claimed != raw_length or raw_length > MAX_RAW_BYTES:
        raise Damaged(f"compressed blob claims {claimed} bytes where {raw_length} were recorded")
