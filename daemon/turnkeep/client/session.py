"""What one connection remembers, whichever flavour it has: address, patience, session token."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import grpc

from turnkeep.client.faults import Fault, socket_path
from turnkeep.config import DEFAULT_ADDRESS
from turnkeep.errors import (
    DaemonUnavailable,
    EngineUnavailable,
    GateTimeout,
    InternalError,
    InvalidRequest,
    ResourceExhausted,
    TurnkeepError,
)

OnError: TypeAlias = Literal["raise", "ignore"]

DEFAULT_RETRY_S = 5.0
TLS_SCHEME = "tls://"

_LONGEST_SOCKET_PATH = 107
_MESSAGE_BYTES = 80 * 1024 * 1024
_DOWN_RETRY_S = 0.15
_FIRST_DELAY_S = 0.05
_LONGEST_DELAY_S = 1.0

_IGNORED = (DaemonUnavailable, EngineUnavailable, GateTimeout, InternalError, ResourceExhausted)
"""Failures that are Turnkeep's or the host's. The caller's own mistakes are raised always."""

_log = logging.getLogger("turnkeep")

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A restore's answer holds up to 64 MiB of harness state.
    ("grpc.max_receive_message_length", _MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MESSAGE_BYTES),
    # The delays between attempts are ours: gRPC's own would let a restarted
    # daemon look dead for a second and longer.
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 20),
    # Each connection ends with its client; nobody else's state is shared.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files for a `tls://` address: who signed the daemon's certificate, and the client's own."""

    authority: str
    certificate: str
    key: str

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            InvalidRequest: one cannot be read.
        """
        try:
            contents = [Path(path).read_bytes() for path in (self.authority, self.key, self.certificate)]
        except OSError as error:
            raise InvalidRequest(f"a certificate cannot be read: {error}", object="TLS") from error
        return grpc.ssl_channel_credentials(*contents)


@dataclass(slots=True, kw_only=True)
class Session:
    """The state of one connection. `token` names the harness's run to the daemon."""

    address: str
    token: str
    retry_s: float
    on_error: OnError
    tls: Tls | None = None
    closed: bool = False
    _down: bool = field(default=False, repr=False)

    def patience(self, *, repeatable: bool = True) -> Patience:
        """Return how long one call may go on trying.

        While a harness goes on without checkpoints, waiting anew at every turn
        would slow it down for nothing: then it is just enough to connect again.
        """
        limit_s = min(_DOWN_RETRY_S, self.retry_s) if self._down else self.retry_s
        return Patience(limit_s if repeatable else 0.0)

    def tolerates(self, error: TurnkeepError) -> bool:
        """Return whether the harness goes on in spite of `error`; logs one line an outage."""
        if self.on_error == "raise" or not isinstance(error, _IGNORED):
            return False
        if not self._down:
            _log.warning("going on without checkpoints: %s (%s)", error.message, error.object)
        self._down = True
        return True

    def recovered(self) -> None:
        """Note that a call got through."""
        self._down = False

    def ensure_open(self) -> None:
        """Refuse calls on a closed connection."""
        if self.closed:
            raise InvalidRequest("this connection is closed", object=self.address, hint="connect again")


class Patience:
    """Delays between the attempts of one call: doubling, bounded in sum."""

    def __init__(self, limit_s: float) -> None:
        self._left_s = limit_s
        self._next_s = _FIRST_DELAY_S

    def delay_s(self, fault: Fault) -> float:
        """Return how long to wait before the next attempt.

        Raises:
            TurnkeepError: the fault's own, when it does not pass or the time is over.
        """
        if not fault.passing or self._left_s <= 0:
            raise fault.error from None
        delay = min(self._next_s, self._left_s)
        self._left_s -= delay
        self._next_s = min(self._next_s * 2, _LONGEST_DELAY_S)
        return delay


def open_session(
    address: str | None,
    *,
    on_error: OnError = "raise",
    retry_s: float = DEFAULT_RETRY_S,
    session: str | None = None,
    tls: Tls | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Session:
    """Settle the address (argument, TURNKEEP_ADDRESS, default) and draw the session token.

    Raises:
        InvalidRequest: the address is neither of a unix socket nor of TLS, or another argument is wrong.
    """
    if on_error not in ("raise", "ignore"):
        raise InvalidRequest(f"on_error cannot be {on_error!r}", hint='"raise" or "ignore"')
    address = address or environment.get("TURNKEEP_ADDRESS") or DEFAULT_ADDRESS
    is_tls = address.startswith(TLS_SCHEME)
    return Session(
        address=address if is_tls else _unix_address(address),
        tls=(tls or _tls_files(environment)) if is_tls else None,
        token=session or str(uuid.uuid4()),
        retry_s=retry_s,
        on_error=on_error,
    )


def _tls_files(environment: Mapping[str, str]) -> Tls:
    names = {name: f"TURNKEEP_TLS_{name.upper()}" for name in ("authority", "certificate", "key")}
    missing = [name for name in names.values() if not environment.get(name)]
    if missing:
        raise InvalidRequest(
            f"a tls:// address needs {', '.join(missing)}", hint="PEM files: docs/safety.md says how"
        )
    return Tls(**{name: environment[variable] for name, variable in names.items()})


def _unix_address(address: str) -> str:
    if address.startswith("/"):
        address = f"unix://{address}"
    if not address.startswith("unix:"):
        hint = "use unix:///path, or tls://HOST:PORT"
        raise InvalidRequest("the address is neither a unix socket nor TLS", object=address, hint=hint)
    if len(os.fsencode(socket_path(address))) > _LONGEST_SOCKET_PATH:
        hint = f"Linux allows {_LONGEST_SOCKET_PATH} bytes"
        raise InvalidRequest("the socket's path is too long", object=address, hint=hint)
    return address
