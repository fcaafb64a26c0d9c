"""Protocol buffers without a schema: the wire format alone.

CRIU speaks it on its socket and in its images, of which only a few fields
matter here; all others are kept as they are.
See https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def message(fields: Iterable[tuple[int, int | bool | str | bytes]]) -> bytes:
    """Return a message of (number, value): numbers as varints, the rest as bytes."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(_varint(number << 3 | VARINT) + _varint(int(value) % 2**64))
        else:
            content = value.encode() if isinstance(value, str) else value
            parts.append(_varint(number << 3 | BYTES) + _varint(len(content)) + content)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of each field of a message, nested ones as bytes.

    Raises:
        ValueError: it is none.
    """
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == VARINT:
            value, position = _read_varint(data, position)
            yield key >> 3, value
            continue
        if kind == BYTES:
            length, position = _read_varint(data, position)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"no protocol buffer: wire type {kind}")
        if position + length > len(data):
            raise ValueError("no protocol buffer: it ends too early")
        yield key >> 3, data[position : position + length]
        position += length


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("no protocol buffer: a number does not end")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return result, position
