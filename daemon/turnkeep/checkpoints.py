"""Checkpoints as the store keeps them: a snapshot record whose metadata is the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from turnkeep_store.snapshot import Snapshot

from turnkeep.model import Checkpoint, CheckpointId

KIND = "checkpoint"
STATE_KIND = "turn-state"
_ANCESTORS = 64
_KNOWN_LATER = (*("id", "digest", "tree", "processes", "changed_files", "changed_bytes", "stored_bytes"),)


def metadata_of(checkpoint: Checkpoint, ancestors: Sequence[CheckpointId]) -> dict[str, Any]:
    """Return what to store of a checkpoint that is not committed yet.

    Its nearest ancestors are named, so that one whose parent was deleted still
    finds the next when the journal has to be made anew.
    """
    value = checkpoint.to_json()
    for known_later in _KNOWN_LATER:
        value.pop(known_later)
    return {"kind": KIND, "checkpoint": value, "ancestors": list(ancestors[:_ANCESTORS])}


def checkpoint_of(
    snapshot: Snapshot, exists: Mapping[str, Any] | set[str] | None = None
) -> Checkpoint | None:
    """Return the checkpoint that a snapshot record holds; None if it holds something else.

    With `exists`, a parent that is not in it is replaced by the nearest ancestor
    that is.

    Raises:
        ValueError: the record says it is a checkpoint and is not a sound one.
    """
    metadata = snapshot.metadata
    if metadata.get("kind") != KIND or not isinstance(metadata.get("checkpoint"), Mapping):
        return None
    value = dict(metadata["checkpoint"])  # type: ignore[arg-type]
    ancestors = metadata.get("ancestors") or []
    if exists is not None and value.get("parent_id") not in exists:
        value["parent_id"] = next((each for each in ancestors if each in exists), None)  # type: ignore[union-attr]
    figures = {key: metadata.get(key, 0) for key in ("changed_files", "changed_bytes", "stored_bytes")}
    # With processes the snapshot's root holds them beside the files.
    tree = metadata.get("files") or snapshot.tree.hex()
    return Checkpoint.from_json(
        {
            **value,
            **figures,
            "id": snapshot.id,
            "digest": snapshot.digest.hex(),
            "tree": tree,
            "processes": metadata.get("processes"),
        }
    )
