"""Rules for open files and what stands for them. See `vet` for what they are for."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping
from typing import Any

from turnkeep.process.allowance import Allowance, require, shown
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import FileType, Images
from turnkeep.process.vet_paths import vet_open_flags, vet_path, vet_regular
from turnkeep.process.vet_sockets import vet_inet, vet_netlink, vet_packets, vet_unix
from turnkeep.process.vet_tree import live_tasks, name_of

_FIELDS = {
    FileType.REG: "reg",
    FileType.PIPE: "pipe",
    FileType.FIFO: "fifo",
    FileType.INETSK: "isk",
    FileType.UNIXSK: "usk",
    FileType.EVENTFD: "efd",
    FileType.EVENTPOLL: "epfd",
    FileType.INOTIFY: "ify",
    FileType.SIGNALFD: "sgfd",
    FileType.TTY: "tty",
    FileType.NETLINKSK: "nlsk",
    FileType.TIMERFD: "tfd",
    FileType.MEMFD: "memfd",
    FileType.PIDFD: "pidfd",
}
"""The types that stay inside a sandbox, and the field of each."""

_CLOSE_ON_EXEC = 1
_MAX_DESCRIPTOR = 1 << 24
_MAX_SIGNAL, _MAX_OWNER_TYPE = 64, 2
_CLOCKS, _ALARM_CLOCKS = (0, 1, 7), (8, 9)
_PTY, _EXTERNAL_TTY = 1, 5
_LINKED, _GHOST, _PROCFS = 0, 1, 2
_GHOST_TYPES = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFLNK, stat.S_IFSOCK, stat.S_IFDIR)
_CRIUS_LINK = re.compile(rb"/link_remap\.[0-9]+\Z")
_MAX_TERMINAL = 65535
_LOCKS = (1, 2, 1024)
_SEALS = 0x3F


def vet_files(images: Images, allowed: Allowance) -> None:
    """Check every open file, everything that refers to one, and what is made for one."""
    for terminal in images.terminals.values():
        _vet_terminal(terminal, allowed)
    for number, file in images.files.items():
        _vet_file(images, f"file {number}", file, allowed)
    _vet_tables(images)
    _vet_places(images)
    _vet_remaps(images, allowed)
    for inode in images.memfds:
        where = f"memory file {shown(inode.name)}"
        require(not inode.mode & (stat.S_ISUID | stat.S_ISGID), where, "setuid", "not")
        require(not inode.seals & ~_SEALS, where, f"seals {inode.seals:#x}", f"within {_SEALS:#x}")
    for data in images.pipe_data:
        size = max(data.size, data.bytes)
        require(size <= allowed.pipe_bytes, f"pipe {data.pipe_id}", f"{size} bytes", f"{allowed.pipe_bytes}")
    for lock in images.locks:
        require(lock.flag in _LOCKS, f"lock of process {lock.pid}", f"kind {lock.flag}", "flock, fcntl")
    vet_packets(images)


def _vet_file(images: Images, where: str, file: pb.File, allowed: Allowance) -> None:
    require(file.type in _FIELDS, where, f"type {_type_name(file.type)}", "types that stay in the sandbox")
    name = _FIELDS[FileType(file.type)]
    fields = {descriptor.name for descriptor, _ in file.ListFields()}
    require(fields - {"type", "id"} == {name}, where, f"fields {sorted(fields)}", f"{name} alone")
    content = getattr(file, name)
    require(content.id == file.id, where, f"the id {content.id} inside", f"{file.id}")
    if file.type != FileType.FIFO:
        _vet_owner(images, where, content.fown)
        vet_open_flags(where, content.flags)
    rule = _RULES.get(name)
    if rule is not None:
        rule(images, where, content, allowed)


def _type_name(number: int) -> str:
    try:
        return FileType(number).name
    except ValueError:
        return str(number)


def _vet_owner(images: Images, where: str, owner: pb.Owner) -> None:
    """Check who is told when a file is ready: the kernel lets the owner's uid send the signal."""
    require(owner.signum <= _MAX_SIGNAL, where, f"signal {owner.signum}", f"up to {_MAX_SIGNAL}")
    require(owner.pid_type <= _MAX_OWNER_TYPE, where, f"owner type {owner.pid_type}", "0 to 2")
    uids = {0} if not owner.pid else _uids(images)
    known = owner.uid in uids and owner.euid in uids
    require(known, where, f"owner uids {owner.uid}, {owner.euid}", "a uid of the processes")


def _uids(images: Images) -> set[int]:
    creds = [core.thread_core.creds for core in images.cores.values() if core.thread_core.HasField("creds")]
    return {uid for each in creds for uid in (each.uid, each.euid, each.suid)}


def _vet_fifo(images: Images, where: str, fifo: pb.Fifo, allowed: Allowance) -> None:
    named = images.files.get(fifo.regf_id)
    is_fifo = named is not None and stat.S_ISFIFO(named.reg.mode)
    require(is_fifo, where, f"a FIFO at file {fifo.regf_id}", "a FIFO of the images")


def _vet_tty(images: Images, where: str, tty: pb.Tty, allowed: Allowance) -> None:
    terminal = images.terminals.get(tty.tty_info_id)
    require(terminal is not None, where, f"terminal {tty.tty_info_id}", "one of the images")
    if terminal is not None and terminal.type == _EXTERNAL_TTY:
        require(not tty.HasField("regf_id"), where, "a path for what is from outside", "none")
        return
    named = images.files.get(tty.regf_id)
    is_file = named is not None and named.type == FileType.REG
    require(is_file, where, f"a terminal at file {tty.regf_id}", "a file of the images")


def _vet_timer(images: Images, where: str, timer: pb.TimerFd, allowed: Allowance) -> None:
    clocks = (*_CLOCKS, *_ALARM_CLOCKS) if allowed.has("WAKE_ALARM") else _CLOCKS
    require(timer.clockid in clocks, where, f"clock {timer.clockid}", f"{clocks}")


def _vet_inotify(images: Images, where: str, inotify: pb.Inotify, allowed: Allowance) -> None:
    deleted = {(ghost.dev, ghost.ino) for ghost in images.ghosts.values()}
    for watch in inotify.wd:
        if watch.f_handle.HasField("path"):
            vet_path(where, watch.f_handle.path, images)
        else:
            # Without a path CRIU would open the handle, which can name any inode of a file system.
            by_name = (watch.s_dev, watch.i_ino) in deleted
            require(by_name, where, "a watch by file handle", "by a path")
        require(not watch.f_handle.HasField("mnt_id"), where, "a watch by a mount's id", "by a path")


def _vet_memfd(images: Images, where: str, memfd: pb.MemFd, allowed: Allowance) -> None:
    known = any(inode.inode_id == memfd.inode_id for inode in images.memfds)
    require(known, where, f"memory file {memfd.inode_id}", "one of the images")


_RULES: Mapping[str, Callable[[Images, str, Any, Allowance], None]] = {
    "reg": vet_regular,
    "fifo": _vet_fifo,
    "tty": _vet_tty,
    "isk": vet_inet,
    "usk": vet_unix,
    "nlsk": vet_netlink,
    "tfd": _vet_timer,
    "ify": _vet_inotify,
    "memfd": _vet_memfd,
}


def _vet_tables(images: Images) -> None:
    """Check that every descriptor has a file of its type, and every live process its table."""
    for number, table in images.descriptors.items():
        numbers: set[int] = set()
        for each in table:
            where = f"descriptor {each.fd} of table {number}"
            file = images.files.get(each.id)
            require(file is not None and file.type == each.type, where, f"file {each.id}", "one of its type")
            require(each.fd < _MAX_DESCRIPTOR and each.fd not in numbers, where, "its number", "each once")
            require(not each.flags & ~_CLOSE_ON_EXEC, where, f"flags {each.flags:#x}", "close on exec")
            require(not each.HasField("xattr_security_selinux"), where, "a security label", "none")
            numbers.add(each.fd)
    for task in live_tasks(images):
        ids = images.ids[task.pid]
        require(ids.files_id in images.descriptors, name_of(task), "no table of files", "its own")


def _vet_places(images: Images) -> None:
    """Check the root and the working folder of every live process."""
    for task in live_tasks(images):
        places = images.file_systems.get(task.pid)
        require(places is not None, name_of(task), "no image of its folders", "one")
        assert places is not None
        for what, number in (("root", places.root_id), ("working folder", places.cwd_id)):
            file = images.files.get(number)
            is_folder = file is not None and stat.S_ISDIR(file.reg.mode)
            require(is_folder, name_of(task), f"{what} at file {number}", "a folder of the images")
        require(places.umask <= 0o777, name_of(task), f"umask {places.umask:#o}", "up to 0o777")


def _vet_remaps(images: Images, allowed: Allowance) -> None:
    for remap in images.remaps:
        where = f"file {remap.orig_id} without a name"
        file = images.files.get(remap.orig_id)
        require(file is not None, where, "nobody has it", "a file of the images")
        match remap.remap_type:
            case _ if remap.remap_type == _GHOST:
                require(remap.remap_id in images.ghosts, where, "no content", "its own")
            case _ if remap.remap_type == _LINKED:
                # CRIU removes that name afterwards, as one that it made itself.
                other = images.files.get(remap.remap_id)
                own = other is not None and _CRIUS_LINK.search(other.reg.name) is not None
                require(own, where, f"another name, file {remap.remap_id}", "one that CRIU made")
            case _:
                known = remap.remap_type == _PROCFS and 1 < remap.remap_id <= allowed.pid_max
                require(known, where, f"remap {remap.remap_type}", "of a kind that is known")
    for number, ghost in images.ghosts.items():
        where = f"file without a name {number}"
        kind = stat.S_IFMT(ghost.mode)
        require(kind in _GHOST_TYPES, where, f"mode {ghost.mode:#o}", "no device")
        setuid = kind != stat.S_IFDIR and ghost.mode & (stat.S_ISUID | stat.S_ISGID)
        require(not setuid, where, f"mode {ghost.mode:#o}", "not setuid")


def _vet_terminal(terminal: pb.TtyInfo, allowed: Allowance) -> None:
    where = f"terminal {terminal.id}"
    name = f"tty[{terminal.rdev:x}:{terminal.dev:x}]".encode()
    external = terminal.type == _EXTERNAL_TTY and name in allowed.external
    require(terminal.type == _PTY or external, where, f"type {terminal.type}", "a pseudo terminal")
    index = terminal.pty.index
    require(index <= _MAX_TERMINAL, where, f"number {index}", f"up to {_MAX_TERMINAL}")
    for number in (terminal.sid, terminal.pgrp):
        require(number <= allowed.pid_max, where, f"session {number}", f"up to {allowed.pid_max}")
