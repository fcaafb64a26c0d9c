"""Starts CRIU inside a sandbox's namespaces, so that nothing of the sandbox decides what runs.

A process of its own, started with this file as its script and without the
package: small, single-threaded (a thread cannot enter a mount namespace for its
process), and quick to fork. The daemon sends one request a datagram over a
SOCK_SEQPACKET socket, JSON with descriptors beside it:

    {"id": 7, "argv": [...], "environment": {...}, "freezer": FOLDER or null,
     "images": FOLDER or null, "join": [FILE, ...], "avoid": [[FIRST, LAST], ...]}
    descriptors: pidfd of the sandbox's init, images, log, more to hand down

and gets `{"id": 7, "status": N}` when that has ended: its exit code, 125 if it
could not be started, 128 if a signal ended it. What is started

- works in a folder that no path leads to, with its program and libraries in
  `tools`, its images in `images` (a detached mount, or a folder), and the cgroup
  to freeze in `freezer`: no path of the sandbox is resolved to start it, and when
  it has ended nothing is left behind;
- is in the sandbox's mount, pid, network, ipc, uts and cgroup namespaces, in a
  session of its own, and in the cgroups whose `cgroup.procs` are given to join;
- has a pid that is not among those to avoid, and that none of them follows soon, so
  that what it forks itself has not either;
- has standard output and error on the log, what was to be handed down from
  descriptor 3 on, and nothing else.

When the daemon dies, nobody is killed: a dump that is torn off in the middle
could leave its victims broken. This process waits for what runs, thaws what was
frozen for it, and ends.

See open_tree(2), move_mount(2), setns(2) with a pidfd (Linux 5.8),
mount_setattr(2) (5.12).
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import sys
from typing import Any

SYS_MOVE_MOUNT, SYS_OPEN_TREE = 429, 428
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
AT_RECURSIVE, AT_EMPTY_PATH = 0x8000, 0x1000
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MS_REC, MS_PRIVATE, MS_BIND = 0x4000, 0x40000, 0x1000
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000
NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET

CANNOT_START, KILLED = 125, 128
_PID_IS_NEEDED = 124
_OWN_PIDS = 32
"""CRIU forks less for itself."""
_MAX_REQUEST = 65536
_MAX_FDS = 16

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Serve requests from standard input until it ends and nothing runs any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    requests = socket.socket(fileno=0)
    stage, tools = sys.argv[1], int(sys.argv[2])
    _prepare(stage, tools)
    running: dict[int, tuple[dict[str, Any], int]] = {}
    connected = True
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while connected or running:
        for fd, _ in poll.poll():
            if fd in running:
                poll.unregister(fd)
                _answer(requests, *running.pop(fd))
                os.close(fd)
                continue
            request, fds = _receive(requests)
            if request is None:
                connected = False
                poll.unregister(fd)
                continue
            pid = _start(request, fds, stage)
            pidfd = os.pidfd_open(pid)
            running[pidfd] = (request, pid)
            poll.register(pidfd, select.POLLIN)
            for each in fds:
                os.close(each)
    return 0


def _receive(requests: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    fds = array.array("i")
    data, ancillary, _, _ = requests.recvmsg(_MAX_REQUEST, socket.CMSG_LEN(_MAX_FDS * fds.itemsize))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return (json.loads(data) if data else None), list(fds)


def _answer(requests: socket.socket, request: dict[str, Any], pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else KILLED
    try:
        requests.send(json.dumps({"id": request["id"], "status": code}).encode())
    except OSError:
        # The daemon is gone. CRIU leaves a cgroup as it found it: frozen, for good.
        if request["freezer"] is not None:
            _thaw(request["freezer"])


def _thaw(folder: str) -> None:
    for name, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError), open(f"{folder}/{name}", "r+") as control:
            control.write(text)


def _start(request: dict[str, Any], fds: list[int], stage: str) -> int:
    """Fork the process that enters the sandbox; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _enter_and_run(request, fds, stage)
    except BaseException as error:
        with contextlib.suppress(OSError, IndexError):
            os.write(fds[2], f"Error (launcher): {error}\n".encode())
    os._exit(CANNOT_START)


def _enter_and_run(request: dict[str, Any], fds: list[int], stage: str) -> None:
    sandbox, images, log, *handed_down = fds
    tree = _set_stage(stage, request["images"] or images, request["freezer"])
    groups = [os.open(path, os.O_WRONLY) for path in request["join"]]
    _call("setns", sandbox, NAMESPACES)
    os.fchdir(tree)
    while child := os.fork():
        _, status = os.waitpid(child, 0)
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else KILLED
        if code != _PID_IS_NEEDED:
            os._exit(code)
    # Pids are given in their order: with each that is let go, the next is higher.
    pid = os.getpid()
    if any(first <= pid + _OWN_PIDS and pid <= last for first, last in request["avoid"]):
        os._exit(_PID_IS_NEEDED)
    for group in groups:
        os.write(group, b"0")
    os.setsid()
    _arrange([os.open("tools/null", os.O_RDWR), log, log, *handed_down])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    os.execve(request["argv"][0], request["argv"], request["environment"])


def _arrange(fds: list[int]) -> None:
    """Make these the descriptors 0, 1, 2, …, and close all others."""
    # First out of the way: a later target may be an earlier source.
    above = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
    for target, fd in enumerate(above):
        os.dup2(fd, target)
    os.closerange(len(above), 1 << 20)


def _prepare(stage: str, tools: int) -> None:
    """Set the stage, in a mount namespace of our own: a folder for each part."""
    _call("unshare", CLONE_NEWNS)
    _mount(b"none", b"/", None, MS_REC | MS_PRIVATE)
    _mount(b"tmpfs", os.fsencode(stage), b"tmpfs", 0)
    for name in ("tools", "images", "freezer"):
        os.mkdir(f"{stage}/{name}", 0o700)
    _move(tools, f"{stage}/tools")


def _set_stage(stage: str, images: int | str, freezer: str | None) -> int:
    """Put what one run needs beside the tools; return a descriptor of it all, detached."""
    _call("unshare", CLONE_NEWNS)
    if isinstance(images, int):
        _move(images, f"{stage}/images")
    else:
        _bind(images, f"{stage}/images")
    if freezer is not None:
        _bind(freezer, f"{stage}/freezer")
    return _clone(os.open(stage, os.O_PATH), AT_RECURSIVE)


def _clone(fd: int, flags: int) -> int:
    return _syscall(SYS_OPEN_TREE, fd, b"", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | flags)


def _move(fd: int, target: str) -> None:
    _syscall(SYS_MOVE_MOUNT, fd, b"", -100, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)


def _bind(folder: str, target: str) -> None:
    _mount(os.fsencode(folder), os.fsencode(target), None, MS_BIND)


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), None)


def _call(name: str, *arguments: object) -> int:
    return _checked(getattr(_libc, name)(*arguments), name)


def _syscall(number: int, *arguments: object) -> int:
    return _checked(_libc.syscall(number, *arguments), f"system call {number}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
