"""Identifiers of what a repository holds."""

from __future__ import annotations

from typing import NewType

from blake3 import blake3

ID_BYTES = 32
"""Length of every identifier and digest: BLAKE3's default output, in bytes."""

BlobId = NewType("BlobId", bytes)
"""BLAKE3 of a blob's uncompressed bytes."""

TreeId = NewType("TreeId", bytes)
"""The blob id of an encoded directory."""

Digest = NewType("Digest", bytes)
"""BLAKE3 of a tree in normal form (see `tree`): equal for equal restored states."""

SnapshotId = NewType("SnapshotId", str)
"""64 hexadecimal digits: BLAKE3 of the snapshot record's body."""


def blob_id(data: bytes | bytearray | memoryview) -> BlobId:
    """Return the identifier of `data`."""
    return BlobId(blake3(data).digest())
