"""The config: one small file that makes a directory a repository."""

from __future__ import annotations

import struct

from blake3 import blake3

from turnkeep_store.backend import Area, Backend
from turnkeep_store.errors import Damaged, UnsupportedFormat

FORMAT_VERSION = 1
ENCRYPTED_VERSION = 2
"""The format of version 1, encrypted."""
CONFIG_NAME = "repository"
CONFIG_BYTES = 60

_MAGIC = b"TURNREPO"
_CONFIG = struct.Struct("<8sI16s32s")


def exists(backend: Backend) -> bool:
    """Whether there is a config."""
    try:
        backend.read(Area.CONFIG, CONFIG_NAME, 0, 1)
    except FileNotFoundError:
        return False
    return True


def encode(repository_id: bytes, version: int = FORMAT_VERSION) -> bytes:
    """Return the bytes of a config."""
    bare = _CONFIG.pack(_MAGIC, version, repository_id, bytes(32))[:-32]
    return bare + blake3(bare).digest()


def decode(root: str, data: bytes) -> tuple[bytes, int]:
    """Return the repository's id and version.

    Raises:
        Damaged: the bytes are not what was written.
        UnsupportedFormat: a newer version wrote them.
    """
    if len(data) != _CONFIG.size or blake3(data[:-32]).digest() != data[-32:]:
        raise Damaged(f"{root}: its config is not what was written")
    magic, version, repository_id, _ = _CONFIG.unpack(data)
    if magic != _MAGIC:
        raise Damaged(f"{root}: its config does not begin as one")
    if version not in (FORMAT_VERSION, ENCRYPTED_VERSION):
        raise UnsupportedFormat(f"{root}: format {version}, this Turnkeep knows {ENCRYPTED_VERSION}; upgrade")
    return bytes(repository_id), version
