"""Before a call does anything: may this caller make it, and how often. After it: a line in the audit log."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from turnkeep.config import Quota
from turnkeep.errors import NotAllowed, NotAuthenticated, ResourceExhausted
from turnkeep.server.callers import Caller, Role, acting_for
from turnkeep.server.interceptor import wrapped
from turnkeep.server.status import translate

log = structlog.get_logger()

_LOOKING = frozenset(
    {
        "DiffCheckpoints",
        "GetCheckpoint",
        "GetHostStatus",
        "GetSandbox",
        "ListCheckpoints",
        "ListSandboxes",
        "ListTurns",
        "WaitTurn",
        "WatchEvents",
    }
)
_OWN = _LOOKING | {
    "AttachSandbox",
    "BeginTurn",
    "CreateCheckpoint",
    "DeleteCheckpoint",
    "DetachSandbox",
    "EndTurn",
    "ForkSandbox",
    "GetTurnState",
    "PutTurnState",
    "RestoreSandbox",
}
ALLOWED = {Role.NOBODY: frozenset[str](), Role.VIEWER: _LOOKING, Role.HARNESS: _OWN}
"""The calls that each role may make; an operator may make all."""

_AUDIT_BYTES = 16 * 1024 * 1024
_AUDIT_FILES = 8
_PACKAGE = "/turnkeep."


class _AuditFile(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Say that a call is missing. The calls themselves go on."""
        log.error("a call is not in the audit log", cause=str(sys.exc_info()[1]), call=record.getMessage())


class AuditLog:
    """Who called what, about which sandbox, and how it ended: lines of JSON in a file that is rotated."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        path.chmod(0o600)
        self._handler = _AuditFile(path, maxBytes=_AUDIT_BYTES, backupCount=_AUDIT_FILES)
        self._handler.setFormatter(logging.Formatter("%(message)s"))

    def write(self, caller: Caller, method: str, sandbox: str, outcome: str, seconds: float) -> None:
        """Add a call."""
        line = json.dumps(
            {
                "time_ns": time.time_ns(),
                "caller": caller.name,
                "role": caller.role.value,
                "pid": caller.pid,
                "call": method,
                "sandbox": sandbox,
                "outcome": outcome,
                "seconds": round(seconds, 6),
            }
        )
        self._handler.emit(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class _Calls:
    """How many calls a caller has in flight, and how many it may still begin now (a token bucket)."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self.in_flight = 0
        self._tokens = float(quota.calls_per_s)
        self._filled_s = time.monotonic()

    def begin(self) -> None:
        """Count a call in.

        Raises:
            ResourceExhausted: there are too many.
        """
        quota = self._quota
        now_s = time.monotonic()
        most = max(1.0, quota.calls_per_s)
        self._tokens = min(most, self._tokens + (now_s - self._filled_s) * quota.calls_per_s)
        self._filled_s = now_s
        if quota.calls_per_s and self._tokens < 1:
            raise ResourceExhausted(
                f"more than {quota.calls_per_s:g} calls a second",
                object="access.quota.calls_per_s",
                hint="call less often",
            )
        if quota.calls_in_flight and self.in_flight >= quota.calls_in_flight:
            raise ResourceExhausted(
                f"{self.in_flight} calls are in flight",
                object="access.quota.calls_in_flight",
                hint="wait for one of them",
            )
        self._tokens -= 1
        self.in_flight += 1


class Gatekeeper(grpc.aio.ServerInterceptor):
    """Lets callers make the calls that their role has, within their quota, and writes down every one."""

    def __init__(self, who: Callable[[str], Caller | None], quota: Quota, audit: AuditLog) -> None:
        self._who = who
        self._audit = audit
        self._calls: defaultdict[str, _Calls] = defaultdict(lambda: _Calls(quota))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_PACKAGE):
            return handler
        return wrapped(handler, method.rpartition("/")[2], self._unary, self._stream)

    def _unary(self, behaviour: Any, method: str) -> Any:
        @functools.wraps(behaviour)
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            with _Visit(self, method, request, context).admitted() as admitted:
                return await behaviour(admitted, context)

        return call

    def _stream(self, behaviour: Any, method: str) -> Any:
        @functools.wraps(behaviour)
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            visit = _Visit(self, method, request, context)
            with visit.admitted() as admitted:
                async for message in behaviour(admitted, context):
                    # Whoever has the result may hang up, or read the log.
                    if _is_result(message):
                        visit.write()
                    yield message

        return call

    def caller(self, peer: str) -> Caller:
        """Return who stands behind a peer.

        Raises:
            NotAuthenticated: nobody that came in by the door.
        """
        found = self._who(peer)
        if found is None:
            raise NotAuthenticated("this connection was not admitted", object="connection")
        return found


def _is_result(message: Any) -> bool:
    if not isinstance(message, Message) or "result" not in message.DESCRIPTOR.fields_by_name:
        return False
    return message.HasField("result")


def _check(caller: Caller, method: str) -> None:
    """Refuse a call that a caller's role does not have.

    Raises:
        NotAllowed: it has not.
    """
    if caller.role is Role.NOBODY:
        raise NotAllowed(
            f"{caller.name} is in none of the access lists",
            object=caller.name,
            hint="the configuration's section access says who may call",
        )
    allowed = ALLOWED.get(caller.role)
    if allowed is not None and method not in allowed:
        raise NotAllowed(f"a {caller.role} may not call {method}", object=caller.name, hint="ask an operator")


class _Visit:
    """One call, from its admission to its line in the log."""

    def __init__(
        self,
        keeper: Gatekeeper,
        method: str,
        request: Any,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        self._keeper = keeper
        self._method = method
        self._context = context
        self._began_s = time.monotonic()
        self._caller = Caller("", Role.NOBODY)
        self._sandbox = ""
        self._written = False
        self.request = request
        if hasattr(request, "__aiter__"):
            self.request = self._looked_at(request)
        else:
            self._look_at(request)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[Any]:
        """Admit the call for a `with` block, and write down how it ended; yields its request.

        Raises:
            NotAuthenticated, NotAllowed, ResourceExhausted: it is not admitted.
        """
        calls = None
        try:
            self._caller = self._keeper.caller(self._context.peer())
            _check(self._caller, self._method)
            if self._caller.role is Role.HARNESS:
                self._keeper._calls[self._caller.name].begin()
                calls = self._keeper._calls[self._caller.name]
            with acting_for(self._caller):
                yield self.request
        except BaseException as error:
            self.write(error)
            raise
        else:
            self.write()
        finally:
            if calls is not None:
                calls.in_flight -= 1

    def write(self, error: BaseException | None = None) -> None:
        """Write down how the call ended; what comes after its end is not written."""
        if self._written:
            return
        self._written = True
        outcome = "ok"
        if isinstance(error, Exception):
            outcome = translate(error).reason
        elif error is not None:
            outcome = "CANCELLED"
        seconds = time.monotonic() - self._began_s
        self._keeper._audit.write(self._caller, self._method, self._sandbox, outcome, seconds)

    def _look_at(self, request: Any) -> None:
        for name in ("sandbox", "container", "live_sandbox"):
            self._sandbox = self._sandbox or str(getattr(request, name, ""))

    async def _looked_at(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            self._look_at(request)
            yield request
