"""What the running kernel says of its own types (BTF): numbers of functions, places of structs' members.

See Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

KERNEL = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_TYPE = struct.Struct("=III")
_MEMBER = struct.Struct("=III")
_STRUCT, _FUNCTION = 4, 12
# What follows a type: bytes of its own, and bytes for each of its parts.
_TAILS: Mapping[int, tuple[int, int]] = {
    1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8),
    13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0), 19: (0, 12),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct: its size, and where its members begin, in bytes."""

    size: int
    members: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Types:
    """Some of the kernel's types."""

    functions: Mapping[str, int]
    structs: Mapping[str, Struct]


def read_types(functions: Collection[str], structs: Collection[str], path: Path = KERNEL) -> Types:
    """Look up functions and structs by name; those that there are none of are left out.

    Raises:
        OSError: the kernel does not describe its types.
        ValueError: the description is not one.
    """
    data = path.read_bytes()
    try:
        magic, _, _, header, type_offset, type_length, text_offset, text_length = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError("not BTF of this byte order")
        text = data[header + text_offset : header + text_offset + text_length]
        first = header + type_offset
        return _search(data, first, first + type_length, text, set(functions), set(structs))
    except struct.error as error:
        raise ValueError(f"BTF that ends too soon: {error}") from error


def _search(data: bytes, first: int, end: int, text: bytes, functions: set[str], structs: set[str]) -> Types:
    wanted = {_find(text, name): name for name in functions | structs}
    # At 0 is the empty name: it stands for those that are not there.
    wanted.pop(0, None)
    found_functions: dict[str, int] = {}
    found_structs: dict[str, Struct] = {}
    for number, (offset, name_offset, kind, parts, size) in enumerate(_types(data, first, end), 1):
        name = wanted.get(name_offset)
        if name is None:
            continue
        if kind == _FUNCTION and name in functions:
            found_functions[name] = number
        elif kind == _STRUCT and name in structs:
            found_structs[name] = Struct(size, dict(_members(data, offset, parts, text)))
    return Types(found_functions, found_structs)


def _types(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield each type: where its tail is, its name's place, kind, number of parts, size."""
    while offset < end:
        name_offset, info, size = _TYPE.unpack_from(data, offset)
        kind, parts = info >> 24 & 0x1F, info & 0xFFFF
        offset += _TYPE.size
        yield offset, name_offset, kind, parts, size
        own, each = _TAILS.get(kind, (0, 0))
        offset += own + each * parts


def _members(data: bytes, offset: int, parts: int, text: bytes) -> Iterator[tuple[str, int]]:
    for index in range(parts):
        name_offset, _, position = _MEMBER.unpack_from(data, offset + index * _MEMBER.size)
        # The upper byte is a bit field's size, if the struct has bit fields.
        yield text[name_offset : text.index(b"\0", name_offset)].decode(), (position & 0xFFFFFF) // 8


def _find(text: bytes, name: str) -> int:
    return text.find(b"\0" + name.encode() + b"\0") + 1
