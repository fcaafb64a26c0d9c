"""Sockets: the ends that separate dumps would tear apart, and the connections a restore closes."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence

from turnkeep.process.between import between, shared
from turnkeep.process.descriptors import Held, Survey
from turnkeep.process.findings import Blocks, Finding, Kind
from turnkeep.process.inside import Inside, UnixSocket
from turnkeep.process.proc import printable
from turnkeep.process.syscalls import borrowed
from turnkeep.process.trees import Tree

MAX_CONNECTIONS = 4096

# Protocols by the kernel's names for them, as CRIU 3.13 and later dump them.
_UNIX = ("UNIX", "UNIX-STREAM")
_TCP = ("TCP", "TCPv6")
_DATAGRAM = ("UDP", "UDPv6", "UDP-Lite", "UDPLITEv6", "PING", "PINGv6")
_DUMPED = frozenset({*_UNIX, *_TCP, *_DATAGRAM, "NETLINK", "PACKET", "RAW", "RAWv6"})
_CLOSED, _LISTEN = 7, 10
_TCP_INFO_BYTES, _WAITING = 104, struct.Struct("=24xI")
"""Of a listening socket, tcpi_unacked counts the connections that nobody has accepted."""


def socket_findings(survey: Survey, trees: Sequence[Tree], inside: Inside) -> Iterator[Finding]:
    """Find sockets in several trees, and unix sockets whose other end is elsewhere."""
    listeners = {
        waiting: listener.inode for listener in inside.unix_sockets.values() for waiting in listener.waiting
    }
    for key, holds in list(survey.holders.items()):
        if key[0] != "socket":
            continue
        if shared(holds, trees):
            yield between(Kind.SOCKET, "a socket", holds, trees)
        known = inside.unix_sockets.get(_inode(key[1]))
        if known is not None and any(trees[held.tree].to_dump for held in holds):
            yield from _peer(known, holds, survey, trees, listeners)


def _inode(value: object) -> int:
    assert isinstance(value, int)
    return value


def _peer(
    known: UnixSocket,
    holds: list[Held],
    survey: Survey,
    trees: Sequence[Tree],
    listeners: dict[int, int],
) -> Iterator[Finding]:
    peer = known.peer or listeners.get(known.inode, 0)
    if not peer:
        return
    others = survey.holders.get(("socket", peer), [])
    if not others:
        if not known.listening:
            yield _to_outside(known, holds, trees)
        return
    # Told once: by the end with the smaller number, unless only this end knows of the other.
    if shared([*holds, *others], trees) and (known.inode < peer or not known.peer):
        yield between(Kind.SOCKET, "a unix connection", [*holds, *others], trees)


def _to_outside(known: UnixSocket, holds: list[Held], trees: Sequence[Tree]) -> Finding:
    held = next(held for held in holds if trees[held.tree].to_dump)
    return Finding(
        kind=Kind.OUTSIDE_SOCKET,
        what=f"{held} is connected to a unix socket outside of the sandbox",
        trees=(trees[held.tree].root_pid,),
        pids=(held.process.pid,),
        blocks=Blocks.NONE if known.datagram else Blocks.BOTH,
        hint="" if known.datagram else "close the connection before the turn ends",
    )


def connection_findings(survey: Survey, trees: Sequence[Tree]) -> Iterator[Finding]:
    """Find protocols that CRIU does not dump, and TCP connections, which a restore closes."""
    connections: dict[int, list[tuple[Held, str]]] = {}
    left = MAX_CONNECTIONS
    for key, holds in survey.holders.items():
        held = next((held for held in holds if trees[held.tree].to_dump), None)
        if key[0] != "socket" or held is None:
            continue
        protocol = _protocol(held)
        if protocol and protocol not in _DUMPED:
            yield _undumpable(held, protocol, trees)
        elif protocol in _TCP and left:
            left -= 1
            state = _connection(held)
            if state:
                connections.setdefault(held.tree, []).append((held, state))
    for number, found in connections.items():
        yield _closed(number, found, trees)


def _protocol(held: Held) -> str:
    """Return the kernel's name of a socket's protocol, empty if it is gone."""
    with contextlib.suppress(OSError):
        name = os.getxattr(f"/proc/{held.process.pid}/fd/{held.fd}", "system.sockprotoname")
        return name.rstrip(b"\0").decode("ascii", "replace")
    return ""


def _undumpable(held: Held, protocol: str, trees: Sequence[Tree]) -> Finding:
    return Finding(
        kind=Kind.PROTOCOL,
        what=f"{held} has a {printable(protocol)} socket, which CRIU does not dump",
        trees=(trees[held.tree].root_pid,),
        pids=(held.process.pid,),
        hint="GODEBUG=multipathtcp=0 keeps Go programs from it" if protocol.startswith("MPTCP") else "",
    )


def _connection(held: Held) -> str:
    """Return the two ends of an established TCP connection, or who waits to be accepted; else nothing."""
    try:
        with borrowed(held.process.pid, held.fd) as fd, socket.socket(fileno=os.dup(fd)) as ours:
            info = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            here = ours.getsockname()
            if info[0] == _LISTEN:
                (waiting,) = _WAITING.unpack_from(info)
                return f"{waiting} not accepted yet at {here[0]}:{here[1]}" if waiting else ""
            if info[0] == _CLOSED:
                return ""
            there = ours.getpeername()
            return f"{here[0]}:{here[1]} to {there[0]}:{there[1]}"
    except (OSError, struct.error):
        return ""


def _closed(number: int, found: list[tuple[Held, str]], trees: Sequence[Tree]) -> Finding:
    shown = ", ".join(f"{held.process} {ends}" for held, ends in found[:4])
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    return Finding(
        kind=Kind.CONNECTION,
        what=f"TCP connections are closed at a restore: {shown}{more}",
        trees=(trees[number].root_pid,),
        pids=tuple(held.process.pid for held, _ in found[:4]),
        blocks=Blocks.NONE,
    )
