"""/proc/PID/mountinfo, as proc(5) and Documentation/filesystems/proc.rst describe it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from turnkeep.errors import SandboxGone

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line: a mount as seen from a process."""

    mount_id: int
    device: int
    root: bytes
    target: bytes
    options: frozenset[bytes]
    fs_type: bytes
    source: bytes
    super_options: tuple[bytes, ...]

    @property
    def writable(self) -> bool:
        """Whether both the mount and its file system are."""
        return b"rw" in self.options and b"ro" not in self.super_options

    def super_option(self, name: bytes) -> bytes | None:
        """Return the value of `name=value` among the file system's options."""
        prefix = name + b"="
        values = [option[len(prefix) :] for option in self.super_options if option.startswith(prefix)]
        return values[-1] if values else None


def read_mountinfo(pid: int | str) -> list[MountPoint]:
    """Return the mounts that a process sees, in the order in which they were made.

    Raises:
        SandboxGone: there is no such process.
    """
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            data = file.read()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise SandboxGone(f"process {pid} is gone", object=f"pid {pid}") from error
    return parse_mountinfo(data)


def parse_mountinfo(data: bytes) -> list[MountPoint]:
    """Parse the file's text. Lines that do not have its form are passed over."""
    return [mount for line in data.split(b"\n") if (mount := _parse(line)) is not None]


def _parse(line: bytes) -> MountPoint | None:
    left, separator, right = line.partition(b" - ")
    fields, rest = left.split(b" "), right.split(b" ")
    if not separator or len(fields) < 6 or len(rest) < 3:
        return None
    major, _, minor = fields[2].partition(b":")
    try:
        return MountPoint(
            mount_id=int(fields[0]),
            device=os.makedev(int(major), int(minor)),
            root=unescape(fields[3]),
            target=unescape(fields[4]),
            options=frozenset(fields[5].split(b",")),
            fs_type=rest[0],
            source=unescape(rest[1]),
            super_options=_split_options(rest[2]),
        )
    except (ValueError, OverflowError):
        return None


def unescape(text: bytes) -> bytes:
    """Undo the octal escapes of space, tab, newline and backslash."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), text)


def _split_options(text: bytes) -> tuple[bytes, ...]:
    """Split at commas; the kernel writes a comma inside a value as "\\,"."""
    parts = re.split(rb"(?<!\\),", text)
    return tuple(unescape(part.replace(b"\\,", b",")) for part in parts)


def split_layers(value: bytes) -> list[bytes]:
    """Split overlay's lowerdir value at colons; an escaped colon stays."""
    return [part.replace(b"\\:", b":") for part in re.split(rb"(?<!\\):+", value) if part]
