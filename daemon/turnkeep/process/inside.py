"""What only a thread inside the sandbox's namespaces is told: its sockets' peers, its System V IPC.

The thread enters the network and the ipc namespace, nothing else, reads what the
kernel reports there, and ends. No file of the sandbox is opened by it.

See sock_diag(7), linux/unix_diag.h, sysvipc(7), mq_overview(7).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from turnkeep.errors import SandboxGone
from turnkeep.process.proc import GONE, Folder

MAX_SOCKETS = 65_536

_CLONE_NEWIPC, _CLONE_NEWNET = 0x08000000, 0x40000000
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SHOW_NAME, _SHOW_PEER, _SHOW_ICONS = 0x1, 0x4, 0x8
_UNIX_DIAG_NAME, _UNIX_DIAG_PEER, _UNIX_DIAG_ICONS = 0, 2, 3
_HEADER, _UNIX_REQUEST, _UNIX_ANSWER = (
    struct.Struct("=IHHII"),
    struct.Struct("=BBHIIIII"),
    struct.Struct("=4BIII"),
)
_ATTRIBUTE = struct.Struct("=HH")
_RECEIVE_BYTES = 65536
_TCP_LISTEN = 10
_MQUEUE_MAGIC = 0x19800202
_SYS_OPENAT2 = 437
_RESOLVE = 0x02 | 0x10
"""RESOLVE_NO_MAGICLINKS and RESOLVE_IN_ROOT."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixSocket:
    """A unix socket. `peer` is the inode of the other end, 0 if it has none that a process holds."""

    inode: int
    type: int
    listening: bool
    name: bytes
    peer: int
    waiting: tuple[int, ...]
    """Of a listening one: the inodes of those that wait to be accepted."""

    @property
    def datagram(self) -> bool:
        """Whether it may lose its peer and find it again by name."""
        return self.type == socket.SOCK_DGRAM


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """What the kernel reports inside a sandbox's namespaces.

    `queues` is None if message queues could not be looked at.
    """

    unix_sockets: dict[int, UnixSocket] = field(default_factory=dict)
    shared_segments: int = 0
    semaphores: int = 0
    message_queues: int = 0
    posix_queues: tuple[str, ...] | None = ()
    own_ipc: bool = True


def look_inside(init_pid: int, *, unix: bool) -> Inside:
    """Look at the namespaces of a sandbox's init; at its unix sockets only if asked.

    Raises:
        SandboxGone: it has no init any more.
        OverflowError: it has more than MAX_SOCKETS.
        OSError: the kernel does not tell.
    """
    results: list[Inside] = []
    problems: list[Exception] = []

    def work() -> None:
        try:
            results.append(_inside(init_pid, unix=unix))
        except Exception as error:
            problems.append(error)

    # A thread of its own: what has entered a namespace is not used for anything else.
    thread = threading.Thread(target=work, name=f"inside-{init_pid}")
    thread.start()
    thread.join()
    if problems and isinstance(problems[0], GONE):
        raise SandboxGone("its init has ended", object=f"process {init_pid}") from problems[0]
    if problems:
        raise problems[0]
    return results[0]


def _inside(init_pid: int, *, unix: bool) -> Inside:
    own_ipc = os.readlink(f"/proc/{init_pid}/ns/ipc") != os.readlink("/proc/self/ns/ipc")
    _enter(init_pid, "net", _CLONE_NEWNET)
    sockets = {each.inode: each for each in _unix_sockets()} if unix else {}
    if not own_ipc:
        return Inside(unix_sockets=sockets, own_ipc=False)
    _enter(init_pid, "ipc", _CLONE_NEWIPC)
    return Inside(
        unix_sockets=sockets,
        shared_segments=_lines("shm"),
        semaphores=_lines("sem"),
        message_queues=_lines("msg"),
        posix_queues=_posix_queues(init_pid),
    )


def _enter(pid: int, name: str, kind: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(fd, kind):
            code = ctypes.get_errno()
            raise OSError(code, f"setns: {os.strerror(code)}")
    finally:
        os.close(fd)


def _lines(name: str) -> int:
    """Return how many objects of System V IPC there are in this thread's namespace."""
    try:
        return len(Path("/proc/sysvipc", name).read_bytes().splitlines()) - 1
    except FileNotFoundError:
        return 0


def _posix_queues(init_pid: int) -> tuple[str, ...] | None:
    """Return the names of the POSIX message queues, None if none can be seen.

    They are seen in a file system that the engine mounts in the sandbox. The way
    there is the sandbox's, so it is walked inside its root and nothing is opened
    that does not turn out to be that file system.
    """
    root = os.open(f"/proc/{init_pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = struct.pack("=QQQ", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE)
        folder = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_long(root), b"dev/mqueue", how, ctypes.c_size_t(len(how))
        )
    finally:
        os.close(root)
    if folder < 0:
        return None
    try:
        if _magic(folder) != _MQUEUE_MAGIC:
            return None
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            return tuple(os.listdir(opened))
        finally:
            os.close(opened)
    finally:
        os.close(folder)


def _magic(fd: int) -> int:
    """Return the type of the file system, the first number of `struct statfs`."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        return 0
    (magic,) = struct.unpack_from("@l", buffer)
    return int(magic) & 0xFFFFFFFF


def _unix_sockets() -> Iterator[UnixSocket]:
    """Ask for all unix sockets of this thread's network namespace."""
    request = _UNIX_REQUEST.pack(
        socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW_NAME | _SHOW_PEER | _SHOW_ICONS, 0xFFFFFFFF, 0xFFFFFFFF
    )
    length = _HEADER.size + len(request)
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    ) as channel:
        channel.sendall(header + request)
        for count, message in enumerate(_messages(channel)):
            if count >= MAX_SOCKETS:
                raise OverflowError(f"more than {MAX_SOCKETS} unix sockets")
            yield _unix_socket(message)


def _messages(channel: socket.socket) -> Iterator[bytes]:
    while True:
        data = channel.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
            if kind == _NLMSG_DONE:
                return
            body = data[offset + _HEADER.size : offset + length]
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code, f"sock_diag: {os.strerror(code)}")
            yield body
            offset += (length + 3) & ~3


def _unix_socket(message: bytes) -> UnixSocket:
    _, kind, state, _, inode, _, _ = _UNIX_ANSWER.unpack_from(message)
    attributes: dict[int, bytes] = {}
    offset = _UNIX_ANSWER.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, number = _ATTRIBUTE.unpack_from(message, offset)
        attributes[number] = message[offset + _ATTRIBUTE.size : offset + length]
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
    peer = attributes.get(_UNIX_DIAG_PEER, b"")
    waiting = attributes.get(_UNIX_DIAG_ICONS, b"")
    return UnixSocket(
        inode=inode,
        type=kind,
        listening=state == _TCP_LISTEN,
        name=attributes.get(_UNIX_DIAG_NAME, b""),
        peer=struct.unpack("=I", peer)[0] if peer else 0,
        waiting=struct.unpack(f"={len(waiting) // 4}I", waiting),
    )


@dataclass(frozen=True, slots=True)
class Mounts:
    """What is mounted where init is: the mounts' ids, and the devices of the message queues."""

    ids: frozenset[int] = frozenset()
    queues: frozenset[tuple[int, int]] = frozenset()


def read_mounts(init_pid: int) -> Mounts:
    """Look at what a sandbox's init has mounted.

    Raises:
        SandboxGone: it has no init any more.
    """
    try:
        with Folder(init_pid) as folder:
            lines = folder.read("mountinfo").splitlines()
    except GONE as error:
        raise SandboxGone("its init has ended", object=f"process {init_pid}") from error
    ids, queues = set(), set()
    for line in lines:
        fields, _, rest = line.partition(b" - ")
        identifier, _, device, _ = fields.split(b" ", 3)
        ids.add(int(identifier))
        if rest.startswith(b"mqueue "):
            major, _, minor = device.partition(b":")
            queues.add((int(major), int(minor)))
    return Mounts(frozenset(ids), frozenset(queues))
