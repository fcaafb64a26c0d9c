"""What was found out about trees before they are dumped: values for people and for the engines."""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass

Trees = tuple[int, ...]
"""Trees by the pids of their roots on the host."""


class Kind(enum.StrEnum):
    """What a finding is about."""

    # Between trees.
    PIPE = "pipe"
    SOCKET = "socket"
    SHARED_MEMORY = "shared memory"
    DELETED_FILE = "deleted file"
    OPEN_FILE = "open file"
    TERMINAL = "terminal"
    SESSION = "session"
    WATCHED = "watched process"
    ADDRESS_SPACE = "address space"
    # To the outside.
    OUTSIDE_SOCKET = "socket to the outside"
    OUTSIDE_FILE = "file of the outside"
    CONNECTION = "TCP connection"
    # What cannot be dumped by nature.
    IO_URING = "io_uring"
    USERFAULTFD = "userfaultfd"
    DEVICE = "device"
    GPU = "GPU"
    DESCRIPTOR = "descriptor"
    PROTOCOL = "socket protocol"
    SYSV_IPC = "System V IPC"
    MESSAGE_QUEUE = "POSIX message queue"
    NAMESPACE = "namespace"
    TRACED = "traced process"
    STOPPED = "stopped process"
    SHAPE = "shape of the tree"
    ADDRESS_SIZE = "32-bit process"
    # What could not be looked at.
    UNKNOWN = "cannot be told"


class Blocks(enum.StrEnum):
    """Which engine cannot take the trees of a finding soundly.

    What ties two trees together blocks both: the whole-container engine takes
    only init's tree, and would cut the tie all the same. Leaving one of the trees
    out, and saying so, is the way on.
    """

    NONE = "none"
    IN_SANDBOX = "in the sandbox"
    WHOLE = "the whole container"
    BOTH = "both"

    @property
    def in_sandbox(self) -> bool:
        """Whether dumps in the sandbox are out."""
        return self in (Blocks.IN_SANDBOX, Blocks.BOTH)

    @property
    def whole(self) -> bool:
        """Whether a dump of the whole container is out."""
        return self in (Blocks.WHOLE, Blocks.BOTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a dump would cut, leave out, or fail at.

    `what` is one line for people. `trees` are those concerned that hold state,
    `pids` the processes on the host, at most a few of them. What is `passing`
    goes away by itself: thaw, and look again.
    """

    kind: Kind
    what: str
    trees: Trees
    pids: tuple[int, ...] = ()
    blocks: Blocks = Blocks.BOTH
    hint: str = ""
    passing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """Descriptors of one tree that lead out of what is dumped: stdio of an exec, mostly.

    `inherit` is CRIU's name of the file, for replacing it at the restore;
    `external` the name that the dump has to be told, where it has to. `init_fd`
    is the descriptor of the sandbox's init for the same thing, if it has one;
    `null` says that it is /dev/null, for which the sandbox's own may stand.
    """

    kind: Kind
    tree: int
    descriptors: tuple[tuple[int, int], ...]
    inherit: str
    external: str = ""
    reads: bool = False
    writes: bool = False
    init_fd: int | None = None
    null: bool = False

    @property
    def what(self) -> str:
        """One line for people."""
        pid, fd = self.descriptors[0]
        more = f" and {len(self.descriptors) - 1} more" if len(self.descriptors) > 1 else ""
        return f"descriptor {fd} of process {pid}{more}: {self.inherit} leads out of the sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that was found, the trees concerned by the pids of their roots on the host."""

    findings: tuple[Finding, ...] = ()
    ties: tuple[Tie, ...] = ()

    def blocking_in_sandbox(self, trees: Collection[int] | None = None) -> tuple[Finding, ...]:
        """Return what keeps these trees (all, if none are given) from being dumped one by one.

        What ties a given tree to one that is not given counts, too.
        """
        return tuple(
            finding for finding in self.findings if finding.blocks.in_sandbox and _concerns(finding, trees)
        )

    def blocking_whole(self) -> tuple[Finding, ...]:
        """Return what keeps the whole container from being dumped."""
        return tuple(finding for finding in self.findings if finding.blocks.whole)

    def of(self, *kinds: Kind) -> tuple[Finding, ...]:
        """Return the findings of some kinds."""
        return tuple(finding for finding in self.findings if finding.kind in kinds)

    def ties_of(self, tree: int) -> tuple[Tie, ...]:
        """Return one tree's ties to the outside."""
        return tuple(tie for tie in self.ties if tie.tree == tree)


def _concerns(finding: Finding, trees: Collection[int] | None) -> bool:
    # A finding about the sandbox as a whole names no tree.
    return trees is None or not finding.trees or any(tree in trees for tree in finding.trees)
