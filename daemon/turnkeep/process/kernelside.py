"""What the kernel keeps for a process beside its memory and registers, as far as it can be told.

Two looks at a process that stands still are alike if nothing in them differs.
What they cannot show makes `CannotTell`: data that wait in a pipe, a socket or a
terminal may be others than before, and memory that is shared may be written by
anybody.

Not seen, and so not told: options of sockets (setsockopt) and of terminals in
other hands, timers that were set anew (what is left of a running one differs
anyway), kernel memory policies. A process changes these by system calls of its
own, and hardly without changing a byte of its memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import socket
import stat
import struct
import termios
from collections.abc import Iterator, Mapping

from turnkeep.process.descriptors import MASTER, SLAVES
from turnkeep.process.memory import CannotTell
from turnkeep.process.proc import GONE, Folder
from turnkeep.process.syscalls import Node, borrow, look_at

MAX_DESCRIPTORS = 4096

_SIZE = struct.Struct("=i")
_STATUS = re.compile(
    rb"^(?:Umask|PPid|TracerPid|Uid|Gid|Groups|NSpid|NSpgid|NSsid|Threads|SigIgn|SigCgt"
    rb"|NoNewPrivs|Seccomp|Seccomp_filters|Cpus_allowed|Mems_allowed):.*$",
    re.MULTILINE,
)
_THREAD_STATUS = re.compile(
    rb"^(?:Name|Uid|Gid|Groups|SigPnd|ShdPnd|SigBlk|CapInh|CapPrm|CapEff|CapBnd|CapAmb"
    rb"|NoNewPrivs|Seccomp|Seccomp_filters|Cpus_allowed):.*$",
    re.MULTILINE,
)
_PENDING = re.compile(rb"^(?:SigPnd|ShdPnd):\t0*[1-9a-f]", re.MULTILINE)
_FLAGS = re.compile(rb"^flags:\t([0-7]+)$", re.MULTILINE)
# What is left of a timer differs always, and is no state of the process's making.
_PASSING = re.compile(rb"^it_value:.*\n", re.MULTILINE)
_SHARED_WRITABLE = re.compile(rb"^\S+ .w.s .* (?:/.* \(deleted\)|\[anon_shmem.*)$", re.MULTILINE)
_MAX_WAITING = select.POLLIN | select.POLLPRI
_POLLED = _MAX_WAITING | select.POLLHUP | select.POLLERR | select.POLLRDHUP
_QUEUES = ("pipe:", "socket:", "anon_inode:inotify", "anon_inode:[fanotify]")


def process_state(folder: Folder) -> tuple[bytes, ...]:
    """Return what the kernel keeps for a process as a whole.

    Raises:
        CannotTell: it shares memory that it may write.
    """
    maps = folder.read("maps")
    if _SHARED_WRITABLE.search(maps):
        raise CannotTell(f"process {folder.pid} writes to shared memory")
    links = [os.fsencode(folder.link(name)) for name in ("cwd", "root", "exe")]
    status = b"\n".join(_STATUS.findall(folder.read("status")))
    return (maps, *links, status, folder.read("limits"), *_timers(folder))


def _timers(folder: Folder) -> Iterator[bytes]:
    # A kernel may be built without that file, and then without CRIU's means.
    with contextlib.suppress(*GONE):
        yield folder.read("timers")


def thread_state(folder: Folder, thread: int) -> tuple[bytes, ...]:
    """Return what the kernel keeps for one thread.

    Raises:
        CannotTell: signals wait for it.
    """
    status = folder.read(f"task/{thread}/status")
    if _PENDING.search(status):
        raise CannotTell(f"signals wait for thread {thread}")
    return b"\n".join(_THREAD_STATUS.findall(status)), folder.read(f"task/{thread}/children")


def descriptors(folder: Folder) -> Mapping[int, tuple[bytes, ...]]:
    """Return what each descriptor leads to, and how it is set.

    Raises:
        CannotTell: there are too many, data wait in one, or one is of a file that
            has no name and so is in no capture of files.
    """
    found: dict[int, tuple[bytes, ...]] = {}
    process = os.pidfd_open(folder.pid)
    fds = folder.open_folder("fd")
    try:
        with os.scandir(fds) as entries:
            for entry in entries:
                if len(found) >= MAX_DESCRIPTORS:
                    raise CannotTell(f"process {folder.pid} has more than {MAX_DESCRIPTORS} descriptors")
                fd = int(entry.name)
                link = os.readlink(entry.name, dir_fd=fds)
                queue = link.startswith(_QUEUES) or (
                    link.startswith("/") and _is_queue(look_at(fds, entry.name))
                )
                found[fd] = _descriptor(folder, process, fd, link, queue=queue)
    except OSError as error:
        raise CannotTell(f"the descriptors of process {folder.pid}: {error}") from error
    finally:
        os.close(fds)
        os.close(process)
    return found


def _is_queue(node: Node) -> bool:
    """Whether data may wait in a file: a named pipe, or a terminal."""
    terminal = node.special == MASTER or node.special[0] in SLAVES
    return node.type == stat.S_IFIFO or (node.type == stat.S_IFCHR and terminal)


def _descriptor(folder: Folder, process: int, fd: int, link: str, *, queue: bool) -> tuple[bytes, ...]:
    info = _PASSING.sub(b"", folder.read(f"fdinfo/{fd}"))
    flags = _FLAGS.search(info)
    writes = flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY
    if link.endswith(" (deleted)") and writes:
        raise CannotTell(f"process {folder.pid} may write to {link!r}")
    if not queue:
        return os.fsencode(link), info
    with borrow(process, fd) as ours:
        where = f"descriptor {fd} of process {folder.pid}"
        return os.fsencode(link), info, *_queue(ours, link, where)


def _queue(fd: int, link: str, where: str) -> Iterator[bytes]:
    """Look at something that data may wait in; nothing is taken from it."""
    poll = select.poll()
    poll.register(fd, _POLLED)
    events = next((event for _, event in poll.poll(0)), 0)
    ended = events & (select.POLLHUP | select.POLLERR | select.POLLRDHUP)
    if events & _MAX_WAITING and not ended:
        raise CannotTell(f"something waits in {where}")
    for request in (termios.FIONREAD, termios.TIOCOUTQ):
        with contextlib.suppress(OSError):
            (count,) = _SIZE.unpack(fcntl.ioctl(fd, request, _SIZE.pack(0)))
            if count:
                raise CannotTell(f"{count} bytes wait in {where}")
    yield str(events).encode()
    if link.startswith("socket:"):
        yield _socket(fd)
    elif link.startswith("/dev/"):
        with contextlib.suppress(termios.error, OSError):
            yield repr(termios.tcgetattr(fd)).encode()
            yield fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))


def _socket(fd: int) -> bytes:
    """Return a socket's names and state."""
    said: list[object] = []
    with socket.socket(fileno=os.dup(fd)) as ours:
        for ask in (ours.getsockname, ours.getpeername):
            try:
                said.append(ask())
            except OSError as error:
                said.append(error.errno)
        said += [ours.family, ours.type, ours.proto]
        said.append(ours.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        if ours.proto == socket.IPPROTO_TCP:
            said.append(ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))
    return repr(said).encode()
