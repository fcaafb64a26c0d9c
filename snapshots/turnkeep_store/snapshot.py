"""The record of a snapshot: one small file that makes a tree a snapshot."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from blake3 import blake3

from turnkeep_store.errors import Damaged, LimitExceeded, UnsupportedFormat
from turnkeep_store.ids import ID_BYTES, Digest, SnapshotId, TreeId

Json: TypeAlias = "bool | int | float | str | list[Json] | Mapping[str, Json] | None"

VERSION = 1
MAX_METADATA_BYTES = 16 * 1024 * 1024
_MAGIC = b"TURNSNAP"
_FIELDS = struct.Struct(f"<8sI{ID_BYTES}s{ID_BYTES}sqB{ID_BYTES}sI")
MAX_RECORD_BYTES = _FIELDS.size + MAX_METADATA_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One file tree at one time, immutable.

    `tree` is the root directory and `digest` the digest of its state, as whoever
    committed it defined it. A parent may have been deleted since.
    """

    id: SnapshotId
    tree: TreeId
    digest: Digest
    created_ns: int
    parent: SnapshotId | None
    metadata: Mapping[str, Json]


def encode(
    *, tree: TreeId, digest: Digest, created_ns: int, parent: SnapshotId | None, metadata: Mapping[str, Json]
) -> bytes:
    """Return a record's bytes. Equal snapshots give equal bytes.

    Raises:
        LimitExceeded: the metadata is too long.
        ValueError: the metadata is no JSON, or an id has the wrong length.
    """
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(text) > MAX_METADATA_BYTES:
        raise LimitExceeded(f"metadata of {len(text)} bytes: the limit is {MAX_METADATA_BYTES}")
    parent_bytes = bytes.fromhex(parent) if parent is not None else bytes(ID_BYTES)
    if not len(tree) == len(digest) == len(parent_bytes) == ID_BYTES:
        raise ValueError("tree, digest and parent are 32 bytes long each")
    fields = _FIELDS.pack(
        _MAGIC, VERSION, tree, digest, created_ns, parent is not None, parent_bytes, len(text)
    )
    return fields + text


def identify(record: bytes) -> SnapshotId:
    """Return the id of a record's bytes."""
    return SnapshotId(blake3(record).hexdigest())


def decode(name: SnapshotId, record: bytes) -> Snapshot:
    """Read a record.

    Raises:
        Damaged: the bytes are not those of this snapshot.
        UnsupportedFormat: a newer version wrote them.
    """
    if len(record) < _FIELDS.size or identify(record) != name:
        raise Damaged(f"snapshot {name}: its record is not what was written; run check")
    magic, version, tree, digest, created_ns, has_parent, parent, length = _FIELDS.unpack_from(record)
    if magic != _MAGIC:
        raise Damaged(f"snapshot {name}: its record does not begin as one")
    if version != VERSION:
        raise UnsupportedFormat(f"snapshot {name}: format {version}, this Turnkeep reads {VERSION}; upgrade")
    text = record[_FIELDS.size :]
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"snapshot {name}: its metadata does not decode: {error}") from error
    if len(text) != length or not isinstance(metadata, dict):
        raise Damaged(f"snapshot {name}: its metadata is not what was written")
    return Snapshot(
        id=name,
        tree=TreeId(tree),
        digest=Digest(digest),
        created_ns=created_ns,
        parent=SnapshotId(parent.hex()) if has_parent else None,
        metadata=metadata,
    )


def is_snapshot_name(name: str) -> bool:
    """Whether a file of this name can be a record."""
    return len(name) == 2 * ID_BYTES and all(digit in "0123456789abcdef" for digit in name)
