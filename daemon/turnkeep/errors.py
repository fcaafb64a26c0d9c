"""What can go wrong, as seen by harnesses and operators.

An error says what happened, to which object, and what to do about it. The
class fixes the gRPC status (`server.status`), the reason string that travels
with it, and the exit code of the CLI: one table, here.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class ExitCode(enum.IntEnum):
    """Exit codes of the CLI (docs/operations.md lists them)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    TIMEOUT = 6
    EXHAUSTED = 7
    DAMAGED = 8
    UNSUPPORTED = 9
    MISMATCH = 10
    NOT_ALLOWED = 11


class TurnkeepError(Exception):
    """Base of all errors that reach a caller.

    `object` names what it is about ("sandbox web", "turn 7"), `hint` says what
    to do. Both may be empty.
    """

    reason: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, message: str, *, object: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.object = object
        self.hint = hint


class InvalidRequest(TurnkeepError):
    """The request makes no sense, whatever the state."""

    reason = "INVALID_REQUEST"
    exit_code = ExitCode.USAGE


class SandboxNotFound(TurnkeepError):
    """No sandbox of this name or id is known."""

    reason = "SANDBOX_NOT_FOUND"
    exit_code = ExitCode.NOT_FOUND


class ContainerNotFound(TurnkeepError):
    """Docker knows no container of this name or id."""

    reason = "CONTAINER_NOT_FOUND"
    exit_code = ExitCode.NOT_FOUND


class TurnNotFound(TurnkeepError):
    """The sandbox has no such turn."""

    reason = "TURN_NOT_FOUND"
    exit_code = ExitCode.NOT_FOUND


class CheckpointNotFound(TurnkeepError):
    """No checkpoint has this id, name or turn."""

    reason = "CHECKPOINT_NOT_FOUND"
    exit_code = ExitCode.NOT_FOUND


class NotAuthenticated(TurnkeepError):
    """The daemon does not know who calls."""

    reason = "NOT_AUTHENTICATED"
    exit_code = ExitCode.NOT_ALLOWED


class NotAllowed(TurnkeepError):
    """The caller's role does not have this call."""

    reason = "NOT_ALLOWED"
    exit_code = ExitCode.NOT_ALLOWED


class Conflict(TurnkeepError):
    """The call contradicts what is: another turn is open, an id is taken, …"""

    reason = "CONFLICT"
    exit_code = ExitCode.CONFLICT


class ContainerNotRunning(TurnkeepError):
    """The container is stopped, paused or gone, and the call needs it running."""

    reason = "CONTAINER_NOT_RUNNING"
    exit_code = ExitCode.CONFLICT


class SandboxGone(ContainerNotRunning):
    """The container stopped or was removed in the middle of the work."""

    reason = "SANDBOX_GONE"


class Unsupported(TurnkeepError):
    """This container, host or image cannot be handled soundly."""

    reason = "UNSUPPORTED"
    exit_code = ExitCode.UNSUPPORTED


class EngineUnavailable(TurnkeepError):
    """The Docker Engine does not answer."""

    reason = "ENGINE_UNAVAILABLE"
    exit_code = ExitCode.UNAVAILABLE


class DaemonUnavailable(TurnkeepError):
    """The Turnkeep daemon does not answer. Raised by the client."""

    reason = "DAEMON_UNAVAILABLE"
    exit_code = ExitCode.UNAVAILABLE


class GateTimeout(TurnkeepError):
    """A capture was still in flight when the gate's time was over."""

    reason = "GATE_TIMEOUT"
    exit_code = ExitCode.TIMEOUT


class WaitTimeout(TurnkeepError):
    """What was waited for did not happen in time."""

    reason = "WAIT_TIMEOUT"
    exit_code = ExitCode.TIMEOUT


class ShellEnded(Conflict):
    """A sandbox's shell is not there any more; `output` is what its last command had printed."""

    reason = "SHELL_ENDED"
    output: str = ""


class ShellTimeout(WaitTimeout):
    """A command in a sandbox's shell took too long; `output` is what it had printed."""

    reason = "SHELL_TIMEOUT"
    output: str = ""


class TurnFailed(TurnkeepError):
    """The turn that was waited for failed."""

    reason = "TURN_FAILED"
    exit_code = ExitCode.FAILED


class ResourceExhausted(TurnkeepError):
    """Disk, memory or another limit is reached."""

    reason = "RESOURCE_EXHAUSTED"
    exit_code = ExitCode.EXHAUSTED


class CaptureFailed(TurnkeepError):
    """The sandbox's state could not be captured consistently."""

    reason = "CAPTURE_FAILED"
    exit_code = ExitCode.FAILED


class StoreDamaged(TurnkeepError):
    """Stored data are not what was written."""

    reason = "STORE_DAMAGED"
    exit_code = ExitCode.DAMAGED


class RestoreFailed(TurnkeepError):
    """A restore could not be finished; the message says what state was left."""

    reason = "RESTORE_FAILED"
    exit_code = ExitCode.FAILED


class PidsTaken(RestoreFailed):
    """Process ids that captured processes need belong to others. Nothing was changed."""

    reason = "PIDS_TAKEN"


class DigestMismatch(RestoreFailed):
    """What is there after a restore is not what was captured."""

    reason = "DIGEST_MISMATCH"
    exit_code = ExitCode.MISMATCH


class CriuFailed(TurnkeepError):
    """CRIU could not dump or restore processes; the message quotes its log."""

    reason = "CRIU_FAILED"
    exit_code = ExitCode.FAILED


class BadImages(TurnkeepError):
    """Process images are not what CRIU writes: damaged, forged, or of a version not known."""

    reason = "BAD_IMAGES"
    exit_code = ExitCode.DAMAGED


class ImagesRefused(TurnkeepError):
    """Process images ask for more than the container's configuration gives."""

    reason = "IMAGES_REFUSED"
    exit_code = ExitCode.UNSUPPORTED


class InternalError(TurnkeepError):
    """A defect of Turnkeep: the daemon's log has the details."""

    reason = "INTERNAL"


def error_classes() -> dict[str, type[TurnkeepError]]:
    """Return every error class by its reason, for rebuilding errors in the client."""
    found: dict[str, type[TurnkeepError]] = {}
    pending: list[type[TurnkeepError]] = [TurnkeepError]
    while pending:
        cls = pending.pop()
        found[cls.reason] = cls
        pending.extend(cls.__subclasses__())
    found[InternalError.reason] = InternalError
    return found
