"""Snapshots of file trees: content-addressed, deduplicated, verified, durable.

A library on its own: synchronous, without Docker or network. `Repository` is
the entrance; `docs/format.md` says what lies on the disk.
"""

from turnkeep_store.chunks import read_extents, write_file, write_stream
from turnkeep_store.kinds import BlobKind
from turnkeep_store.lease import Lease
from turnkeep_store.repository import Options, Repository, StoredSize
from turnkeep_store.snapshot import Snapshot
from turnkeep_store.writer import BlobWriter, HashOnlySink

__all__ = [
    "BlobKind",
    "BlobWriter",
    "HashOnlySink",
    "Lease",
    "Options",
    "Repository",
    "Snapshot",
    "StoredSize",
    "read_extents",
    "write_file",
    "write_stream",
]
