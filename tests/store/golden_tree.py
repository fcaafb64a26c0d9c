"""The tree in `golden/`: repositories as versions 1 and 2 wrote it.

`python -m tests.store.golden_tree <folder>` writes one anew; only a new format
version is a reason to, and the old one then stays as a second fixture.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from turnkeep_store.chunks import write_file
from turnkeep_store.ids import SnapshotId, TreeId
from turnkeep_store.keys import MasterKey
from turnkeep_store.kinds import BlobKind
from turnkeep_store.repository import Repository
from turnkeep_store.snapshot import Json, Snapshot
from turnkeep_store.tree import Directory, Entry, NodeType
from turnkeep_store.writer import BlobWriter

STEP = 2 * 128 * 1024
SPARSE_SIZE = 70 * STEP + 5
SPARSE = {number * STEP: b"chunk %d" % number for number in range(1, 70)}
TEXT = b"as the page says, " * 100
METADATA: Mapping[str, Json] = {"turn": 7, "words": ["a", None, True, 1.5], "umlaut": "ü"}
PARENT = SnapshotId("ab" * 32)


def _write(writer: BlobWriter) -> Directory:
    kinds = [
        Entry(name=b"fifo", type=NodeType.FIFO, mode=0o600),
        Entry(name=b"hard", type=NodeType.HARDLINK, target=b"text"),
        Entry(name=b"link", type=NodeType.SYMLINK, mode=0o777, target=b"/nowhere/\xff"),
        Entry(name=b"null", type=NodeType.CHAR_DEVICE, mode=0o666, rdev=0x103),
        Entry(name=b"gone", type=NodeType.WHITEOUT),
    ]
    below = Directory({entry.name: entry for entry in kinds})
    tree = TreeId(writer.put(below.encode(), BlobKind.TREE))
    entries = [
        Entry(
            name=b"folder",
            type=NodeType.DIRECTORY,
            mode=0o755,
            mtime_ns=-1,
            subtree=tree,
            digest=below.digest(),
        ),
        Entry(
            name=b"sparse \xfe",
            type=NodeType.FILE,
            mode=0o4755,
            uid=1000,
            gid=2**32 - 1,
            mtime_ns=1_700_000_000_123_456_789,
            size=SPARSE_SIZE,
            content=write_file(writer, SPARSE.items(), SPARSE_SIZE),
        ),
        Entry(
            name=b"text",
            type=NodeType.FILE,
            mode=0o644,
            size=len(TEXT),
            xattrs=((b"user.a", b"\0\1"),),
            content=write_file(writer, [(0, TEXT)], len(TEXT)),
        ),
    ]
    return Directory({entry.name: entry for entry in entries})


def commit_golden(repo: Repository) -> Snapshot:
    """Commit the tree."""
    with repo.lease("golden") as lease:
        writer = repo.writer(lease)
        root = _write(writer)
        tree = TreeId(writer.put(root.encode(), BlobKind.TREE))
        return repo.commit(writer, tree=tree, digest=root.digest(), parent=PARENT, metadata=METADATA)


GOLDEN_KEY = MasterKey(bytes(range(32)))
"""What the encrypted one was made with."""

if __name__ == "__main__":
    # PATH, and "encrypted" for version 2
    with Repository.create(sys.argv[1], master=GOLDEN_KEY if sys.argv[2:] else None) as made:
        print(commit_golden(made).id)
