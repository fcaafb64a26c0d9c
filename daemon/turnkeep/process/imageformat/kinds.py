"""The files of a folder of images that Turnkeep lets through.

Others that CRIU would read, such as those of namespaces, mounts, firewalls,
AppArmor policies or BPF maps, and those of CRIU's older formats, are not in this
table and so are refused wherever it is used.
See https://criu.org/Images.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from turnkeep.process.imageformat import criu_pb2 as pb

COMMON_MAGIC = 0x54564319
_NUMBER = r"(0|[1-9][0-9]{0,19})"
_HEX_NUMBER = r"(0|[1-9a-f][0-9a-f]{0,7})"


class Framing(enum.Enum):
    """How messages lie in a file: each has its length before it."""

    ONE = "one message"
    MANY = "any number of messages"
    HEADED = "a message of another type, then any number"
    PAYLOADS = "messages, each with bytes after it"
    TAIL = "one message, then bytes to the end"
    OPAQUE = "bytes that nobody looks into"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of image file. `pattern` has a group where names hold a number."""

    name: str
    pattern: re.Pattern[str]
    magic: int
    framing: Framing
    message: type[Message] = Message
    head: type[Message] | None = None
    payload_bytes: Callable[[Any], int] = lambda _: 0
    base: int = 10


def _kind(
    name: str, magic: int, message: type[Message], framing: Framing = Framing.MANY, **more: Any
) -> Kind:
    return Kind(
        name=name,
        pattern=_pattern(name),
        magic=magic,
        message=message,
        framing=framing,
        base=_base(name),
        **more,
    )


def _pattern(name: str) -> re.Pattern[str]:
    escaped = re.escape(name).replace("%u", _NUMBER).replace("%x", _HEX_NUMBER)
    return re.compile(f"{escaped}\\.img")


def _base(name: str) -> int:
    return 16 if "%x" in name else 10


_ONE, _HEADED, _PAYLOADS, _TAIL = Framing.ONE, Framing.HEADED, Framing.PAYLOADS, Framing.TAIL
_OPAQUE = Framing.OPAQUE

_TABLE = (
    _kind("inventory", 0x58313116, pb.Inventory, _ONE),
    _kind("pstree", 0x50273030, pb.TreeEntry),
    _kind("core-%u", 0x55053847, pb.Core, _ONE),
    _kind("ids-%u", 0x54432030, pb.KernelIds, _ONE),
    _kind("mm-%u", 0x57492820, pb.Mm, _ONE),
    _kind("fs-%u", 0x51403912, pb.Fs, _ONE),
    _kind("fdinfo-%u", 0x56213732, pb.Descriptor),
    _kind("files", 0x56303138, pb.File),
    _kind("pagemap-%u", 0x56084025, pb.PagemapEntry, _HEADED, head=pb.PagemapHead),
    _kind("pagemap-shmem-%u", 0x56084025, pb.PagemapEntry, _HEADED, head=pb.PagemapHead),
    _kind("pages-%u", 0, Message, _OPAQUE),
    _kind("seccomp", 0x64413049, pb.Seccomp, _ONE),
    _kind("cgroup", 0x59383330, pb.Cgroups, _ONE),
    _kind("timens-%u", 0x43114433, pb.TimeOffsets, _ONE),
    _kind("remap-fpath", 0x59133954, pb.Remap),
    _kind("ghost-file-%x", 0x52583605, pb.Ghost, _TAIL),
    _kind("memfd", 0x48453499, pb.MemFdInode),
    _kind("filelocks", 0x54323616, pb.FileLock),
    _kind("tty-info", 0x59453036, pb.TtyInfo),
    _kind("tty-data", 0x59413026, pb.TtyData),
    _kind("pipes-data", 0x56453709, pb.PipeData, _PAYLOADS, payload_bytes=lambda data: data.bytes),
    _kind("fifo-data", 0x59333054, pb.PipeData, _PAYLOADS, payload_bytes=lambda data: data.bytes),
    _kind("sk-queues", 0x56264026, pb.SocketPacket, _PAYLOADS, payload_bytes=lambda packet: packet.length),
    _kind("tcp-stream-%x", 0x51465506, Message, _OPAQUE),
)

KINDS = {kind.name: kind for kind in _TABLE}


def kind_of(name: str) -> tuple[Kind, int] | None:
    """Return the kind of a file by its name, and the number in it (0 if it has none)."""
    for kind in _TABLE:
        found = kind.pattern.fullmatch(name)
        if found:
            return kind, int(found[1], kind.base) if found.groups() else 0
    return None


def name_of(kind: Kind, number: int = 0) -> str:
    """Return the name of the file of a kind with this number."""
    return kind.name.replace("%u", str(number)).replace("%x", f"{number:x}") + ".img"
