"""Errors as gRPC statuses: the one place where the two meet."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from turnkeep_store import errors as store

from turnkeep.errors import (
    BadImages,
    CaptureFailed,
    CheckpointNotFound,
    Conflict,
    ContainerNotFound,
    ContainerNotRunning,
    CriuFailed,
    DaemonUnavailable,
    DigestMismatch,
    EngineUnavailable,
    GateTimeout,
    ImagesRefused,
    InternalError,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    ResourceExhausted,
    RestoreFailed,
    SandboxNotFound,
    StoreDamaged,
    TurnFailed,
    TurnkeepError,
    TurnNotFound,
    Unsupported,
    WaitTimeout,
)

DOMAIN = "turnkeep"

_CODES: dict[type[TurnkeepError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    SandboxNotFound: grpc.StatusCode.NOT_FOUND,
    ContainerNotFound: grpc.StatusCode.NOT_FOUND,
    TurnNotFound: grpc.StatusCode.NOT_FOUND,
    CheckpointNotFound: grpc.StatusCode.NOT_FOUND,
    NotAuthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    ContainerNotRunning: grpc.StatusCode.FAILED_PRECONDITION,
    Unsupported: grpc.StatusCode.FAILED_PRECONDITION,
    EngineUnavailable: grpc.StatusCode.UNAVAILABLE,
    DaemonUnavailable: grpc.StatusCode.UNAVAILABLE,
    GateTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    WaitTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TurnFailed: grpc.StatusCode.ABORTED,
    CaptureFailed: grpc.StatusCode.ABORTED,
    RestoreFailed: grpc.StatusCode.ABORTED,
    CriuFailed: grpc.StatusCode.ABORTED,
    DigestMismatch: grpc.StatusCode.DATA_LOSS,
    BadImages: grpc.StatusCode.DATA_LOSS,
    ImagesRefused: grpc.StatusCode.FAILED_PRECONDITION,
    StoreDamaged: grpc.StatusCode.DATA_LOSS,
    TurnkeepError: grpc.StatusCode.INTERNAL,
}

_MAX_TEXT = 2000
"""Characters of each text: a status travels in HTTP/2 metadata, of which 8 KiB are safe."""


def translate(error: BaseException) -> TurnkeepError:
    """Return the error as callers are to see it. Our own stay as they are."""
    match error:
        case TurnkeepError():
            return error
        case store.StoreFull():
            return ResourceExhausted(
                str(error), object="store", hint="make room under the state directory, or prune"
            )
        case store.Damaged() | store.BlobNotFound():
            return StoreDamaged(str(error), object="store", hint="turnkeep check says what is affected")
        case store.WrongKey():
            return InvalidRequest(
                str(error), object="encryption_key", hint="docs/safety.md, Encryption at rest"
            )
        case store.LimitExceeded():
            return ResourceExhausted(str(error), object="store")
        case store.SnapshotNotFound():
            return CheckpointNotFound(str(error))
        case store.UnsafePath():
            return RestoreFailed(str(error), hint="something moves folders about in the sandbox")
        case store.RestoreMismatch():
            return RestoreFailed(str(error), hint="a cold restore (--mode cold) replaces such files")
        case store.StoreError():
            return StoreDamaged(str(error), object="store", hint="is the disk in order?")
        case _:
            return InternalError(
                f"unexpected {type(error).__name__}",
                hint="a defect of Turnkeep: the daemon's log has the details",
            )


def rich_status(error: TurnkeepError) -> grpc.Status:
    """Return the status to abort a call with: code, message, and google.rpc details."""
    code = next(_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={"object": _text(error.object), "hint": _text(error.hint)},
    )
    detail = AnyMessage()
    detail.Pack(info)
    message = status_pb2.Status(code=code.value[0], message=_text(error.message), details=[detail])
    made: grpc.Status = rpc_status.to_status(message)
    return made


def _text(value: str) -> str:
    """Return a text that a status can carry: UTF-8, and not too long."""
    text = value.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"
