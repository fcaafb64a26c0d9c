"""From a file's bytes to messages, and back.

What is read is only accepted if writing it again gives the same bytes. So two
readers cannot understand one file in two ways, whatever fields it repeats,
leaves out of order or encodes oddly, and it holds no field that is not in
criu.proto: nothing that CRIU acts on escapes who looks at the messages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError, Message

from turnkeep.errors import BadImages
from turnkeep.process.imageformat.kinds import COMMON_MAGIC, Framing, Kind

_U32 = struct.Struct("<I")
_INVENTORY = "inventory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a folder of images may hold. Files of pages are counted, not read."""

    files: int = 200_000
    file_bytes: int = 64 * 1024 * 1024
    total_bytes: int = 512 * 1024 * 1024
    message_bytes: int = 16 * 1024 * 1024
    messages: int = 2_000_000
    pages_bytes: int = 1024 * 1024 * 1024 * 1024


def decode(kind: Kind, name: str, data: bytes, limits: Limits) -> tuple[Message, ...]:
    """Return the messages in the file `name`. Payloads and tails are passed over.

    Raises:
        BadImages: it is not as CRIU writes it, or over a limit.
    """
    messages = []
    for message in _messages(kind, name, data, limits):
        messages.append(message)
        if len(messages) > limits.messages:
            raise bad(name, f"more than {limits.messages} messages")
    if kind.framing in (Framing.ONE, Framing.TAIL, Framing.HEADED) and not messages:
        raise bad(name, "it is empty")
    return tuple(messages)


def _messages(kind: Kind, name: str, data: bytes, limits: Limits) -> Iterator[Message]:
    position = _after_magic(kind, name, data)
    cls = kind.head or kind.message
    while position < len(data):
        length = _number(name, data, position)
        position += _U32.size
        if length > limits.message_bytes:
            raise bad(name, f"a message of {length} bytes")
        content = data[position : position + length]
        if len(content) < length:
            raise bad(name, "it ends too early")
        message = _message(cls, name, content)
        yield message
        position += length
        cls = kind.message
        match kind.framing:
            case Framing.TAIL:
                return
            case Framing.ONE if position < len(data):
                raise bad(name, "something follows its message")
            case Framing.PAYLOADS:
                position += kind.payload_bytes(message)
                if position > len(data):
                    raise bad(name, "it ends too early")


def _message(cls: type[Message], name: str, content: bytes) -> Message:
    message = cls()
    try:
        message.ParseFromString(content)
    except DecodeError as error:
        raise bad(name, "no message of its kind") from error
    if not message.IsInitialized():
        raise bad(name, "a required field is absent")
    message.DiscardUnknownFields()
    if message.SerializeToString() != content:
        raise bad(
            name,
            "a field that Turnkeep does not know, or not encoded as CRIU does",
            hint="were the images written by a version of CRIU that is newer than this Turnkeep?",
        )
    return message


def _after_magic(kind: Kind, name: str, data: bytes) -> int:
    expected = (kind.magic,) if kind.name == _INVENTORY else (COMMON_MAGIC, kind.magic)
    for index, magic in enumerate(expected):
        if _number(name, data, index * _U32.size) != magic:
            raise bad(name, "its first bytes are not those of its kind")
    return len(expected) * _U32.size


def _number(name: str, data: bytes, position: int) -> int:
    if position + _U32.size > len(data):
        raise bad(name, "it ends too early")
    value: int = _U32.unpack_from(data, position)[0]
    return value


def encode(kind: Kind, messages: Iterable[Message]) -> bytes:
    """Return the bytes of a file of these messages: what `decode` reads, and CRIU."""
    magics = (kind.magic,) if kind.name == _INVENTORY else (COMMON_MAGIC, kind.magic)
    parts = [_U32.pack(magic) for magic in magics]
    for message in messages:
        content = message.SerializeToString()
        parts += (_U32.pack(len(content)), content)
    return b"".join(parts)


def bad(name: str, why: str, *, hint: str = "") -> BadImages:
    """Return the error that the image `name` is malformed."""
    return BadImages(f"process image {name}: {why}", object=name, hint=hint)
