"""The words of Turnkeep as values: sandboxes, turns, decisions, checkpoints.

Everything here is immutable and knows nothing of Docker, gRPC or disks. The
journal keeps these values as JSON, the store's snapshot records carry
checkpoints; `to_json` and `from_json` are the only way in and out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NewType, Self, cast

from turnkeep.codec import from_json, to_json

SandboxId = NewType("SandboxId", str)
"""16 hexadecimal digits, drawn when a container is first attached."""

TurnNumber = NewType("TurnNumber", int)
"""From 1 for each sandbox, never used again. 0 stands for "none"."""

CheckpointId = NewType("CheckpointId", str)
"""The id of the snapshot record that holds the checkpoint: 64 hexadecimal digits."""

NO_TURN = TurnNumber(0)


class _Json:
    """JSON in and out for the dataclasses below."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return a value that `json.dumps` takes and `from_json` reads back."""
        return cast("dict[str, Any]", to_json(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned. Fields that are absent get their defaults.

        Raises:
            ValueError: a required field is absent or of the wrong type.
        """
        return cast("Self", from_json(cls, value))


class TurnClass(enum.StrEnum):
    """What a turn has to keep."""

    STATELESS = "STATELESS"
    FILESYSTEM = "FILESYSTEM"
    PROCESS = "PROCESS"
    FULL = "FULL"


class TurnState(enum.StrEnum):
    """Where a turn is on its way (docs/design.md draws it)."""

    OPEN = "OPEN"
    ENDED = "ENDED"
    ABANDONED = "ABANDONED"
    CLASSIFIED = "CLASSIFIED"
    CAPTURED = "CAPTURED"
    DURABLE = "DURABLE"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """Whether the turn will not change its state any more."""
        return self in (TurnState.DURABLE, TurnState.SKIPPED, TurnState.FAILED)

    def reaches(self, wanted: TurnState) -> bool:
        """Whether a turn in this state satisfies a wait for `wanted`.

        A skipped turn satisfies a wait for CAPTURED and DURABLE: its checkpoint
        is its parent's. A failed one satisfies only a wait for an earlier state.
        """
        if self is TurnState.SKIPPED:
            return True
        return self is wanted or _RANK[self] >= _RANK[wanted]


_RANK = {
    TurnState.OPEN: 0,
    TurnState.ENDED: 1,
    TurnState.ABANDONED: 1,
    TurnState.FAILED: 1,
    TurnState.CLASSIFIED: 2,
    TurnState.CAPTURED: 3,
    TurnState.DURABLE: 4,
    TurnState.SKIPPED: 4,
}


class ContainerState(enum.StrEnum):
    """How the container of a sandbox fares."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    GONE = "gone"


class Fidelity(enum.StrEnum):
    """What a restore of a checkpoint brings back."""

    COMPLETE = "complete"
    PARTIAL = "files and some processes"
    FILES_ONLY = "files only"


class Verdict(enum.StrEnum):
    """How it is with one thing that was looked at."""

    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"


class MountKind(enum.StrEnum):
    """What kind of place a sandbox can write to."""

    ROOTFS = "rootfs"
    VOLUME = "volume"
    TMPFS = "tmpfs"
    FILE = "file"
    BIND = "bind"


class Origin(enum.StrEnum):
    """Why a checkpoint was taken."""

    ATTACH = "attach"
    TURN = "turn"
    MANUAL = "manual"
    BEFORE_RESTORE = "before-restore"
    FORK = "fork"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount(_Json):
    """A place a sandbox can write to, and whether checkpoints hold it."""

    target: str
    kind: MountKind
    covered: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(_Json):
    """One thing that was looked at, for people. `fix` says what to do where it is not ok."""

    what: str
    verdict: Verdict
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(_Json):
    """The class of a turn and the evidence that speaks for it."""

    turn_class: TurnClass
    reason: str
    changed_paths: tuple[str, ...] = ()
    changed_path_count: int = 0
    cache_path_count: int = 0
    processes: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessLine(_Json):
    """One captured process; all numbers are those that hold inside the sandbox."""

    pid: int
    parent: int
    group: int
    session: int
    name: str
    threads: int = 1
    zombie: bool = False
    confinement: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTree(_Json):
    """One dump: the processes that descend from `root`.

    With kind "init" the root is the sandbox's own init, which a restore does not
    touch; with kind "exec" it was started from outside. `replaced` maps CRIU's
    names of files that lead out of the sandbox to what stands for them after a
    restore. `images` is the folder in the store.
    """

    kind: str
    root: int
    images: str
    processes: tuple[ProcessLine, ...]
    skipped: tuple[int, ...] = ()
    replaced: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    image_bytes: int = 0
    stopped_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessImage(_Json):
    """All processes of a sandbox at the instant of a checkpoint.

    `missing` says which could not be dumped, and why. `turn` is the one that took
    them; later ones reuse them as long as no process changes. `reason` says why an
    earlier dump would not do.
    """

    engine: str
    trees: tuple[ProcessTree, ...]
    criu: str
    boot_id: str
    turn: TurnNumber = NO_TURN
    reason: str = ""
    missing: tuple[str, ...] = ()
    image_bytes: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnMetadata(_Json):
    """What a harness says of a turn."""

    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tool_name: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTimings(_Json):
    """How long the parts of a turn took, in nanoseconds; 0 for what did not happen."""

    gate_ns: int = 0
    inspect_ns: int = 0
    freeze_ns: int = 0
    captured_ns: int = 0
    durable_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessState(_Json):
    """Where a turn's harness state lies in the store."""

    snapshot_id: str
    size: int
    blake3: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(_Json):
    """What an agent did between two LLM calls."""

    sandbox_id: SandboxId
    number: TurnNumber
    harness_turn_id: str
    session: str
    state: TurnState
    parent: TurnNumber
    began_at_ns: int
    ended_at_ns: int = 0
    abandoned: bool = False
    state_reason: str = ""
    label: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: TurnMetadata = field(default_factory=TurnMetadata)
    decision: Decision | None = None
    checkpoint_id: CheckpointId | None = None
    timings: TurnTimings = field(default_factory=TurnTimings)
    changed_files: int = 0
    changed_bytes: int = 0
    stored_bytes: int = 0
    harness_state: HarnessState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(_Json):
    """A restore point: what the store's snapshot record says of it."""

    id: CheckpointId
    sandbox_id: SandboxId
    parent_id: CheckpointId | None
    turn: TurnNumber
    origin: Origin
    created_at_ns: int
    digest: str
    tree: str
    fidelity: Fidelity
    decision: Decision
    mounts: tuple[Mount, ...]
    not_captured: tuple[str, ...] = ()
    name: str = ""
    tags: tuple[str, ...] = ()
    changed_files: int = 0
    changed_bytes: int = 0
    stored_bytes: int = 0
    image: str = ""
    image_id: str = ""
    layers: tuple[str, ...] = ()
    container: Mapping[str, Any] = field(default_factory=dict)
    processes: ProcessImage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRecord(_Json):
    """What the journal keeps of a sandbox."""

    id: SandboxId
    name: str
    container_id: str
    image: str
    image_id: str
    container_state: ContainerState
    attached: bool
    attached_at_ns: int
    last_turn: TurnNumber = NO_TURN
    head_turn: TurnNumber = NO_TURN
    head_checkpoint_id: CheckpointId | None = None
    mounts: tuple[Mount, ...] = ()
    note: str = ""
    owner: str = ""
    """The harness that its container's label names, if one does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(_Json):
    """One line of the journal."""

    sequence: int
    time_ns: int
    kind: str
    sandbox_id: SandboxId | None
    sandbox_name: str
    turn: TurnNumber
    message: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy(_Json):
    """What to keep; with no rule at all, everything."""

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_tags: tuple[str, ...] = ()
    max_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing may be deleted under this policy."""
        return self == RetentionPolicy()
