"""Harness states: opaque bytes that belong to a turn, kept in the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3
from turnkeep_store.chunks import read_extents, write_stream
from turnkeep_store.errors import Damaged
from turnkeep_store.ids import SnapshotId, TreeId
from turnkeep_store.kinds import BlobKind
from turnkeep_store.repository import Repository
from turnkeep_store.snapshot import Snapshot
from turnkeep_store.tree import Directory, Entry, NodeType

from turnkeep.checkpoints import STATE_KIND
from turnkeep.errors import ResourceExhausted
from turnkeep.model import HarnessState, SandboxId, TurnNumber

_NAME = b"state"


def store_state(
    repository: Repository, sandbox_id: SandboxId, turn: TurnNumber, pieces: Iterable[bytes], limit_bytes: int
) -> tuple[HarnessState, int]:
    """Store a state; return where it lies, and how many bytes that added. Durable on return.

    Raises:
        ResourceExhausted: it is longer than `limit_bytes`; nothing is kept.
    """
    hasher = blake3()
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for piece in pieces:
            size += len(piece)
            if size > limit_bytes:
                raise ResourceExhausted(
                    f"the harness state is longer than {limit_bytes} bytes",
                    object=f"turn {turn}",
                    hint="limits.harness_state_bytes bounds it",
                )
            hasher.update(piece)
            yield piece

    with repository.lease("harness state") as lease:
        writer = repository.writer(lease)
        content = write_stream(writer, counted())
        entry = Entry(name=_NAME, type=NodeType.FILE, mode=0o600, size=size, content=content)
        directory = Directory({_NAME: entry})
        tree = TreeId(writer.put(directory.encode(), BlobKind.TREE))
        snapshot = repository.commit(
            writer,
            tree=tree,
            digest=directory.digest(),
            metadata={"kind": STATE_KIND, "sandbox": sandbox_id, "turn": int(turn)},
        )
        stored = writer.stats.stored_bytes
    return HarnessState(snapshot_id=snapshot.id, size=size, blake3=hasher.hexdigest()), stored


def read_state(repository: Repository, state: HarnessState) -> Iterator[bytes]:
    """Yield a state's bytes.

    Raises:
        Damaged: what is stored is not what was given.
    """
    with repository.lease("harness state"):
        tree = repository.snapshot(SnapshotId(state.snapshot_id)).tree
        entry = repository.read_directory(tree).entries[_NAME]
        position = 0
        for offset, data in read_extents(repository, entry.content):
            if offset > position:
                yield from _zeros(offset - position)
            yield data
            position = offset + len(data)
        if position < entry.size:
            yield from _zeros(entry.size - position)
        if entry.size != state.size:
            raise Damaged(f"harness state {state.snapshot_id[:12]}: {entry.size} bytes, not {state.size}")


def state_of(repository: Repository, snapshot: Snapshot) -> HarnessState:
    """Return what a turn records of a state that is in the store."""
    entry = repository.read_directory(snapshot.tree).entries[_NAME]
    hasher = blake3()
    for piece in read_state(repository, HarnessState(snapshot_id=snapshot.id, size=entry.size, blake3="")):
        hasher.update(piece)
    return HarnessState(snapshot_id=snapshot.id, size=entry.size, blake3=hasher.hexdigest())


def _zeros(count: int) -> Iterator[bytes]:
    while count:
        length = min(count, 1024 * 1024)
        yield bytes(length)
        count -= length
