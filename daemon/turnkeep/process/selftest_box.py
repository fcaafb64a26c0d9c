"""A small sandbox for the self-test: an init in namespaces of its own, and servers under it.

A process of its own, started with this file as its script and without the package.
It shows the host's files, has its own processes, network and IPC, and is spoken to
over a SOCK_SEQPACKET socket, its standard input, in JSON:

    {"start": UID}   starts a server as this user     {"pid": N}, its number inside
    {"ask": PORT}    asks the server                  {"said": N}, how often it was asked
    {"end": PID}     kills it, waits for its end      {}

First of all it says {"init": PID}, its init's number on the host. An answer with
"error" says what went wrong. When the other end is closed everything in it ends, so
that nothing is left of it whatever happens to the daemon.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_REC, MS_SLAVE = 0x4000, 0x80000
PR_SET_DUMPABLE = 4
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

ANSWER_S = 10.0
_MAX_REQUEST = 4096
_SERVER_FD = 3

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Be the box, or, with a user's number as the argument, the server in it."""
    if len(sys.argv) > 1:
        _serve(int(sys.argv[1]))
    channel = socket.socket(fileno=0)
    try:
        _call("unshare", CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET)
    except OSError as error:
        _say(channel, {"error": str(error)})
        return 1
    init = os.fork()
    if init:
        _say(channel, {"init": init})
        channel.close()
        os.waitpid(init, 0)
        return 0
    try:
        _set_up()
    except OSError as error:
        _say(channel, {"error": f"setting up the self-test's namespaces: {error}"})
        return 1
    _answer_all(channel)
    return 0


def _set_up() -> None:
    # What the host unmounts is unmounted here, too: a container that stops must
    # not find its files still in use.
    _call("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None)
    _call("mount", b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None)
    with socket.socket() as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("16xH", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _answer_all(channel: socket.socket) -> None:
    while request := channel.recv(_MAX_REQUEST):
        try:
            answer = _answer(json.loads(request))
        except (OSError, ValueError) as error:
            answer = {"error": str(error)}
        _say(channel, answer)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "start" in request:
        return _start(request["start"])
    if "ask" in request:
        address = ("127.0.0.1", request["ask"])
        with socket.create_connection(address, timeout=ANSWER_S) as connection:
            return {"said": int(connection.recv(64) or b"0")}
    os.kill(request["end"], signal.SIGKILL)
    # Also one that was restored: it became a child of this init.
    os.waitpid(request["end"], 0)
    return {}


def _start(uid: int) -> dict[str, Any]:
    """Start a server; it is reached before it runs, for it is given the listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pid = os.fork()
        if pid:
            return {"pid": pid, "port": server.getsockname()[1]}
        with contextlib.suppress(OSError):
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(server.fileno(), 9)
            for stream in range(3):
                os.dup2(null, stream)
            os.dup2(9, _SERVER_FD)
            os.closerange(_SERVER_FD + 1, 1 << 16)
            os.execve(sys.executable, [sys.executable, "-I", "-S", __file__, str(uid)], {})
        os._exit(1)


def _serve(uid: int) -> None:
    """Say to everyone who connects how many did so."""
    server = socket.socket(fileno=_SERVER_FD)
    if uid:
        # Here, not before: the interpreter may lie where only root may look.
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        _call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0)
    count = 0
    while True:
        connection, _ = server.accept()
        count += 1
        with connection:
            connection.sendall(b"%d" % count)


def _say(channel: socket.socket, answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        channel.send(json.dumps(answer).encode())


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


if __name__ == "__main__":
    raise SystemExit(main())
