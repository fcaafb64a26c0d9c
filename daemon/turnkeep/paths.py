"""Paths of a snapshot as people read them."""

from __future__ import annotations

from urllib.parse import quote_from_bytes, unquote_to_bytes

from blake3 import blake3

_MAX_NAME = 255
ROOTFS = b"rootfs"
"""The slot of the root file system."""


def slot_name(target: bytes) -> bytes:
    """Return the name under which the mount at `target` stands in a snapshot."""
    name = quote_from_bytes(target, safe="").encode()
    if len(name) <= _MAX_NAME:
        return name
    # Too long for a name: cut, and told apart by a hash.
    return name[: _MAX_NAME - 33] + b"~" + blake3(target).hexdigest()[:32].encode()


def inside(path: bytes) -> bytes:
    """Return the path inside the container of a path in a snapshot."""
    slot, _, rest = path.partition(b"/")
    prefix = b"" if slot == ROOTFS else unquote_to_bytes(slot.decode("ascii", "replace"))
    return prefix + (b"/" + rest if rest else b"") or b"/"


def display(path: bytes) -> str:
    """Return the path inside the container as text; what is not UTF-8 becomes \\xNN."""
    return inside(path).decode("utf-8", "backslashreplace")
