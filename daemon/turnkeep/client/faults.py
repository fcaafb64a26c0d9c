"""From what gRPC raises to the errors of Turnkeep."""

from __future__ import annotations

import os
from typing import NamedTuple, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from turnkeep.errors import (
    DaemonUnavailable,
    InternalError,
    InvalidRequest,
    ResourceExhausted,
    TurnkeepError,
    Unsupported,
    error_classes,
)

START_HINT = "start it: systemctl start turnkeep, or as root: turnkeep serve"


class Fault(NamedTuple):
    """An error, and whether the same call may succeed in a moment."""

    error: TurnkeepError
    passing: bool


def from_rpc(failure: grpc.RpcError, address: str) -> Fault:
    """Return the error that a failed call stands for.

    A daemon's own error is rebuilt from its details. Everything else is the
    connection's: no daemon, no permission, a hang, or a defect.
    """
    # Both flavours of gRPC raise something that is an RpcError and a Call.
    call = cast("grpc.Call", failure)
    sent = _sent_by_daemon(call)
    if sent is not None:
        return Fault(sent, passing=False)
    code, text = call.code(), call.details() or "no details"
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return _unreachable(address, text)
    return Fault(_without_details(code, text, address), passing=False)


def is_over(failure: grpc.RpcError) -> bool:
    """Return whether a call ended because its time was over."""
    return cast("grpc.Call", failure).code() is grpc.StatusCode.DEADLINE_EXCEEDED


def _sent_by_daemon(call: grpc.Call) -> TurnkeepError | None:
    try:
        status = rpc_status.from_call(call)
    except ValueError:
        return None
    if status is None:
        return None
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == "turnkeep":
            # A reason that is not known here comes from a newer daemon.
            cls = error_classes().get(info.reason, TurnkeepError)
            return cls(
                status.message, object=info.metadata.get("object", ""), hint=info.metadata.get("hint", "")
            )
    return None


def _unreachable(address: str, text: str) -> Fault:
    if not address.startswith("unix:"):
        hint = "is it up, and are the certificates right? docs/safety.md"
        error = DaemonUnavailable(f"no connection to the Turnkeep daemon: {text}", object=address, hint=hint)
        return Fault(error, passing=True)
    path = socket_path(address)
    if not os.path.exists(path) and os.access(os.path.dirname(path) or ".", os.X_OK):
        error = DaemonUnavailable("no Turnkeep daemon listens there", object=address, hint=START_HINT)
        return Fault(error, passing=True)
    if not os.access(path, os.W_OK):
        hint = "run this as root, or join the socket's group (socket_group in turnkeep.toml)"
        return Fault(
            DaemonUnavailable("you may not open the socket", object=address, hint=hint), passing=False
        )
    error = DaemonUnavailable(f"the Turnkeep daemon does not answer: {text}", object=address, hint=START_HINT)
    return Fault(error, passing=True)


def _without_details(code: grpc.StatusCode, text: str, address: str) -> TurnkeepError:
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        hint = "see whether it hangs: journalctl -u turnkeep"
        return DaemonUnavailable("the Turnkeep daemon did not answer in time", object=address, hint=hint)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        hint = "update the daemon to this client's version"
        return Unsupported("the daemon does not know this call", object=address, hint=hint)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhausted(text, object=address)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest(text, object=address)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return DaemonUnavailable(f"the daemon refuses this client: {text}", object=address)
    name = code.name if isinstance(code, grpc.StatusCode) else str(code)
    return InternalError(f"{name}: {text}", object=address, hint="the daemon's log has the details")


def socket_path(address: str) -> str:
    """Return the path in a unix address."""
    rest = address.removeprefix("unix:")
    return rest[2:] if rest.startswith("//") else rest
