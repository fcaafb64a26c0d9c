"""The client: what a harness imports, and what the CLI is built on.

`sync` and `aio` are two thin flavours of one thing: `calls` says what is sent
and how answers are read, `link` and `aio_link` carry calls out and repeat them,
`handles` keeps the books of sandboxes and turns, `faults` makes the errors.
"""

from __future__ import annotations

from turnkeep.client.session import Tls
from turnkeep.client.sync import Client, Sandbox, Turn, connect
from turnkeep.client.values import (
    Change,
    Checkpoint,
    CheckResult,
    DeletedCheckpoint,
    Event,
    ForkResult,
    HostStatus,
    JournalLine,
    Progress,
    PruneResult,
    RestoreResult,
    SandboxInfo,
    StoredState,
    TrackerFigures,
    TurnInfo,
    Usage,
)

__all__ = [
    "Change",
    "CheckResult",
    "Checkpoint",
    "Client",
    "DeletedCheckpoint",
    "Event",
    "ForkResult",
    "HostStatus",
    "JournalLine",
    "Progress",
    "PruneResult",
    "RestoreResult",
    "Sandbox",
    "SandboxInfo",
    "StoredState",
    "Tls",
    "TrackerFigures",
    "Turn",
    "TurnInfo",
    "Usage",
    "connect",
]
