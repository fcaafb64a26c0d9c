"""The door: who connects is looked at before a byte of theirs reaches the gRPC server.

Python's gRPC tells a service neither the credentials of a unix socket's other end
nor lets it ask for TLS 1.3 or change certificates while it runs. So connections
come in here, by a unix socket or TLS, and are passed on to a socket that only the
daemon can open. Each is connected there from an address of
its own, an abstract name that nobody can guess, and that is what gRPC tells the
service as its peer: it stands for the caller.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from turnkeep.config import AccessSettings
from turnkeep.errors import Conflict, InvalidRequest
from turnkeep.server.callers import Caller, Policy

log = structlog.get_logger()

_SO_PEERGROUPS = 59
_CREDENTIALS = struct.Struct("3i")
_GROUPS_BYTES = 1024
"""The longest answer that Python takes from getsockopt(2): 256 groups."""
_HANDSHAKE_S = 10.0
_BACKLOG = 128
_RELOAD_S = 5.0
_PEER = "unix-abstract:"

Identify = Callable[[asyncio.Transport], Caller]


class Front:
    """Listens, admits, and passes on. Lives on the event loop."""

    def __init__(self, inner: Path, access: AccessSettings) -> None:
        self._inner = inner
        self._access = access
        self._policy = Policy(access)
        self._callers: dict[str, Caller] = {}
        self._servers: list[asyncio.Server] = []
        self._tls: asyncio.Server | None = None
        self._tls_socket: socket.socket | None = None
        self._connections: set[asyncio.Transport] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def caller(self, peer: str) -> Caller | None:
        """Return who stands behind a peer, as `ServicerContext.peer` names it."""
        return self._callers.get(peer.removeprefix(_PEER)) if peer.startswith(_PEER) else None

    async def listen_on_socket(self, listening: socket.socket) -> None:
        """Serve a unix socket that is bound, with its owner and mode set."""
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            lambda: _Outer(self, self._process), sock=listening, backlog=_BACKLOG
        )
        self._servers.append(server)

    async def listen_on_tcp(self) -> None:
        """Serve TLS 1.3 where the configuration says so; clients need a certificate.

        Raises:
            InvalidRequest: certificate, key or authority cannot be used.
            Conflict: the address is taken.
        """
        context = tls_context(self._access)
        host, _, port = self._access.listen.rpartition(":")
        try:
            self._tls_socket = socket.create_server(
                (host.strip("[]"), int(port)),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise Conflict(f"cannot listen: {error}", object=self._access.listen) from error
        await self._serve_tls(context)
        self._start(self._follow_certificates())

    @property
    def tcp_port(self) -> int:
        """The port that TLS is served on."""
        assert self._tls_socket is not None
        port: int = self._tls_socket.getsockname()[1]
        return port

    async def close(self) -> None:
        """Take no more connections, and end those that are left."""
        for task in tuple(self._tasks):
            task.cancel()
        for server in (*self._servers, *([self._tls] if self._tls is not None else [])):
            server.close()
        if self._tls_socket is not None:
            self._tls_socket.close()
        for transport in tuple(self._connections):
            transport.abort()

    async def _serve_tls(self, context: ssl.SSLContext) -> None:
        assert self._tls_socket is not None
        before = self._tls
        self._tls = await asyncio.get_running_loop().create_server(
            lambda: _Outer(self, self._holder),
            sock=self._tls_socket.dup(),
            ssl=context,
            ssl_handshake_timeout=_HANDSHAKE_S,
        )
        if before is not None:
            # Whoever waits to be accepted waits at the socket, which both share.
            before.close()

    async def _follow_certificates(self) -> None:
        """Serve new connections with new certificates when their files change."""
        known = _stamps(self._access)
        while True:
            await asyncio.sleep(_RELOAD_S)
            now = _stamps(self._access)
            if now == known:
                continue
            known = now
            try:
                await self._serve_tls(tls_context(self._access))
                log.info("certificates reloaded", listen=self._access.listen)
            except (InvalidRequest, OSError) as error:
                log.error("new certificates are not used", cause=str(error))

    def _process(self, transport: asyncio.Transport) -> Caller:
        end: socket.socket = transport.get_extra_info("socket")
        pid, uid, gid = _CREDENTIALS.unpack(
            end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        return self._policy.of_process(pid, uid, {gid, *_peer_groups(end)})

    def _holder(self, transport: asyncio.Transport) -> Caller:
        return self._policy.of_certificate(certificate_names(transport.get_extra_info("peercert") or {}))

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Pipe(asyncio.Protocol):
    """One end of a connection that is passed on: what it reads, the other end writes."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Pipe | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            with suppress(RuntimeError):
                self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            with suppress(RuntimeError):
                self.other.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Outer(_Pipe):
    """The end that a caller holds."""

    def __init__(self, front: Front, identify: Identify) -> None:
        super().__init__()
        self._front = front
        self._identify = identify
        self._name = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self._name = f"turnkeep-{secrets.token_hex(16)}"
        self._front._callers[self._name] = self._identify(self.transport)
        self._front._connections.add(self.transport)
        self._front._start(self._pass_on(self.transport))

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._front._callers.pop(self._name, None)
        if self.transport is not None:
            self._front._connections.discard(self.transport)

    async def _pass_on(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        inner = _Pipe()
        inner.other = self
        end = socket.socket(socket.AF_UNIX)
        try:
            end.setblocking(False)
            end.bind(f"\0{self._name}")
            await loop.sock_connect(end, str(self._front._inner))
            await loop.create_unix_connection(lambda: inner, sock=end)
        except OSError as error:
            log.error("a connection could not be passed on", cause=str(error))
            end.close()
            transport.abort()
            return
        self.other = inner
        if transport.is_closing():
            assert inner.transport is not None
            inner.transport.close()
            return
        transport.resume_reading()


def tls_context(access: AccessSettings) -> ssl.SSLContext:
    """Return what TLS connections are accepted with: version 1.3, and certificates on both sides.

    Raises:
        InvalidRequest: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(access.certificate, access.key)
        context.load_verify_locations(access.client_authority)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(
            f"the certificates cannot be used: {error}",
            object="access.certificate, access.key, access.client_authority",
        ) from error
    context.set_alpn_protocols(["h2"])
    return context


def certificate_names(certificate: dict[str, Any]) -> list[str]:
    """Return the names in a certificate that was verified: its alternative names, then its common name."""
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI")]
    for part in certificate.get("subject", ()):
        names += [value for kind, value in part if kind == "commonName"]
    return list(dict.fromkeys(names))


def _peer_groups(end: socket.socket) -> tuple[int, ...]:
    """Return the supplementary groups that the other end had when it connected (unix(7))."""
    try:
        packed = end.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return ()
    return struct.unpack(f"{len(packed) // 4}I", packed)


def _stamps(access: AccessSettings) -> tuple[tuple[int, int] | None, ...]:
    found: list[tuple[int, int] | None] = []
    for path in (access.certificate, access.key, access.client_authority):
        try:
            status = os.stat(path)
            found.append((status.st_ino, status.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)
