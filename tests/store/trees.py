"""Trees as plain dicts: what the tests compare a repository with."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

from turnkeep_store.blobs import BlobSink
from turnkeep_store.chunks import read_extents, write_file
from turnkeep_store.diff import walk
from turnkeep_store.ids import Digest, SnapshotId, TreeId
from turnkeep_store.kinds import BlobKind
from turnkeep_store.lease import Lease
from turnkeep_store.repository import Options, Repository
from turnkeep_store.snapshot import Snapshot
from turnkeep_store.tree import Directory, Entry, NodeType
from turnkeep_store.writer import BlobWriter

NOISE = random.Random(1)

Files = Mapping[bytes, bytes]
"""Path to content. Folders are those that paths lead through."""

FEW: Files = {b"a": NOISE.randbytes(40), b"d/b": b"compressible " * 20, b"d/c": NOISE.randbytes(30)}
"""So little that a test can try every byte of what is stored of it."""

SMALL = Options(pack_bytes=2048, pack_blobs=6)
"""Limits so small that a few short files meet them."""

IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where thousands of indexes are made whose syncs nobody asks about. None: where all temporary files are."""


def put_tree(sink: BlobSink, files: Files) -> tuple[TreeId, Digest]:
    """Store a tree."""
    entries: dict[bytes, Entry] = {}
    folders: dict[bytes, dict[bytes, bytes]] = {}
    for path, content in files.items():
        first, _, rest = path.partition(b"/")
        if rest:
            folders.setdefault(first, {})[rest] = content
        else:
            extents = write_file(sink, [(0, content)] if content else [], len(content))
            entries[first] = Entry(name=first, type=NodeType.FILE, size=len(content), content=extents)
    for name, below in folders.items():
        tree, digest = put_tree(sink, below)
        entries[name] = Entry(name=name, type=NodeType.DIRECTORY, subtree=tree, digest=digest)
    directory = Directory(entries)
    return TreeId(sink.put(directory.encode(), BlobKind.TREE)), directory.digest()


def get_tree(repo: Repository, tree: TreeId) -> dict[bytes, bytes]:
    """Read a tree back, every byte."""
    files = {}
    for path, entry in walk(repo, tree):
        if entry.type is NodeType.FILE:
            content = bytearray(entry.size)
            for offset, data in read_extents(repo, entry.content):
                content[offset : offset + len(data)] = data
            files[path] = bytes(content)
    return files


def commit(
    repo: Repository,
    files: Files,
    *,
    writer: BlobWriter | None = None,
    lease: Lease | None = None,
    parent: SnapshotId | None = None,
) -> Snapshot:
    """Commit a tree under a lease of its own, or under the one given."""
    if lease is None:
        with repo.lease("test") as lease:
            return commit(repo, files, lease=lease, parent=parent)
    writer = writer or repo.writer(lease)
    tree, digest = put_tree(writer, files)
    return repo.commit(writer, tree=tree, digest=digest, parent=parent, metadata={"files": len(files)})
