"""What the client hands out: immutable values in plain Python types.

Mounts, decisions, metadata and timings are the model's own. "None" always
stands for "there is none", where the wire says 0, -1 or "".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from turnkeep.model import (
    ContainerState,
    Decision,
    Fidelity,
    Mount,
    TurnMetadata,
    TurnState,
    TurnTimings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnCounts:
    """Numbers of turns by outcome; those on their way are only in `total`."""

    total: int = 0
    durable: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInfo:
    """A container that Turnkeep watches, as the daemon last described it."""

    id: str
    """Turnkeep's own, stable across renames and new containers."""
    name: str
    container_id: str
    image_id: str
    container_state: ContainerState | None
    """None while the daemon does not know it."""
    attached: bool
    attached_at_ns: int
    last_turn: int | None
    open_turn: int | None
    head_checkpoint_id: str | None
    head_turn: int | None
    """The turn that its present state descends from."""
    """The checkpoint that the present state descends from."""
    mounts: tuple[Mount, ...]
    turns: TurnCounts
    stored_bytes: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnInfo:
    """What an agent did between two LLM calls, as the daemon last described it."""

    sandbox_id: str
    number: int
    harness_turn_id: str
    session: str
    state: TurnState
    state_reason: str
    parent: int | None
    """The turn whose state this one started from."""
    label: str
    labels: Mapping[str, str]
    metadata: TurnMetadata
    decision: Decision | None
    """None until the turn is classified."""
    checkpoint_id: str | None
    """The checkpoint that holds its state; its parent's for a skipped turn."""
    began_at_ns: int
    ended_at_ns: int | None
    timings: TurnTimings
    changed_files: int
    changed_bytes: int
    stored_bytes: int
    harness_state_bytes: int | None
    abandoned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnBegun:
    """The answer to the begin of a turn."""

    turn: TurnInfo
    gate_wait_ns: int
    abandoned_turn: int | None
    """A turn that was left open and that this call closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """A harness state that is durable now."""

    turn: int
    size: int
    blake3: str
    stored_bytes: int
    """What it added to the store; little where it repeats an earlier state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLine:
    """One captured process; the numbers are those inside the sandbox."""

    pid: int
    parent: int
    name: str
    threads: int
    zombie: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTree:
    """One dump: processes that descend from one."""

    kind: str
    root: int
    processes: tuple[ProcessLine, ...]
    notes: tuple[str, ...]
    image_bytes: int
    stopped_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessImage:
    """The processes that a checkpoint holds, and the turn that dumped them."""

    engine: str
    trees: tuple[ProcessTree, ...]
    turn: int
    image_bytes: int
    stored_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A restore point."""

    id: str
    sandbox_id: str
    parent_id: str | None
    turn: int | None
    """None for one by hand and for the first."""
    name: str
    tags: tuple[str, ...]
    created_at_ns: int
    digest: str
    """Of the captured state in normal form, in hexadecimal."""
    fidelity: Fidelity | None
    decision: Decision | None
    mounts: tuple[Mount, ...]
    not_captured: tuple[str, ...]
    """What it could not hold, in sentences."""
    changed_files: int
    changed_bytes: int
    stored_bytes: int
    origin: str
    """Why it was taken: "attach", "turn", "manual", "before-restore", …"""
    is_head: bool
    image: str
    processes: ProcessImage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far long work has come."""

    phase: str
    done: int
    total: int | None
    """None while it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkResult:
    """The copies that a fork made, attached and running."""

    sandboxes: tuple[SandboxInfo, ...]
    checkpoint_id: str
    notes: tuple[str, ...]
    total_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What a restore did. The digests are equal: a difference is raised as DigestMismatch."""

    sandbox: SandboxInfo
    checkpoint_id: str
    turn: int | None
    mode: str
    """How it was done: "live", "cold" or "new"; `mode_reason` says why so."""
    mode_reason: str
    safety_checkpoint_id: str | None
    """Holds the state before the restore: restoring to it undoes the restore."""
    expected_digest: str
    actual_digest: str
    verify: str
    """How much was read again: "changed" or "full"."""
    changed_paths: int
    written_bytes: int
    freeze_ns: int
    total_ns: int
    notes: tuple[str, ...]
    stopped_processes: tuple[str, ...]
    harness_state: bytes | None = field(repr=False)
    """What `put_state` stored with the restored turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A path that differs between two checkpoints."""

    path: str
    """Inside the container; bytes that are not UTF-8 are escaped as \\xNN."""
    change: str
    """"added", "removed", "changed", "type" or "metadata"."""
    before_type: str | None
    after_type: str | None
    before_size: int
    after_size: int
    before_mode: int
    after_mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, with its ascending number."""

    sequence: int
    time_ns: int
    kind: str
    sandbox_id: str | None
    sandbox_name: str
    turn: int | None
    message: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """What a prune did, or with `dry_run` would do."""

    deleted_checkpoints: tuple[str, ...]
    kept_checkpoints: int
    freed_bytes: int
    stored_bytes: int
    dry_run: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a check of the store found."""

    ok: bool
    problems: tuple[str, ...]
    checkpoints: int
    blobs: int
    bytes: int
    index_rebuilt: bool
    followed: tuple[str, ...] = ()
    """With a live sandbox: the mounts that are followed, and so were compared."""
    journal_head: str = ""
    """With the journal: its last event, NUMBER:HASH, to be kept elsewhere."""
    repaired: tuple[str, ...] = ()
    """With a repair: what was done. What is lost for good is among the problems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLine:
    """An event of the journal as it is stored, as a line of JSON with its hash."""

    sequence: int
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletedCheckpoint:
    """A checkpoint that is gone, and how many were given its parent."""

    checkpoint_id: str
    reparented: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerFigures:
    """Following changes by events of the kernel, counted since the daemon's start."""

    enabled: bool
    followed: int
    """Looks at a folder that went by what was reported."""
    scanned: int
    """Looks at a folder that scanned it."""
    events: int
    overflows: int
    audits: int
    """Looks that were compared with a scan."""
    missed: int
    """Paths of whose change nobody told, found by such a comparison: a defect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the daemon's process takes up at a moment; that of its children is not in it."""

    resident_bytes: int
    descriptors: int
    threads: int
    processor_ns: int
    """Processor time since its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """The daemon, its host and its store."""

    version: str
    pid: int
    started_at_ns: int
    engine_version: str | None
    """None while the Docker Engine does not answer."""
    storage_driver: str
    cgroup_version: int
    kernel: str
    state_dir: str
    stored_bytes: int
    free_bytes: int
    checkpoints: int
    sandboxes: int
    recovery: tuple[str, ...]
    """What the start-up recovery did, a sentence each."""
    degraded: tuple[str, ...]
    """What works less than well, a sentence each."""
    tracker: TrackerFigures
    usage: Usage
