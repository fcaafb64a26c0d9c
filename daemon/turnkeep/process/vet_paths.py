"""Rules for paths and for the files they lead to. See `vet` for what they are for."""

from __future__ import annotations

import os
import re
import stat

from turnkeep.process.allowance import Allowance, require, shown
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import Images

_MAX_PATH = 4096
_MAGIC = frozenset({b"self", b"thread-self", b"root", b"cwd", b"exe", b"fd", b"map_files", b"ns"})
"""Names in /proc whose links lead out of the path that was asked for, and of the sandbox."""
_TERMINALS = re.compile(rb"/dev/(?:pts/(?:0|[1-9][0-9]{0,6})|pts/ptmx|ptmx|tty)")
_OPEN_FLAGS = (
    0o3  # how
    | 0o2000  # append
    | 0o4000  # do not block
    | 0o10000  # sync data
    | 0o20000  # signals
    | 0o40000
    | 0o100000
    | 0o200000
    | 0o400000  # direct, large file, folder, no symlink: their order is the processor's affair
    | 0o1000000  # no access times
    | 0o2000000  # close on exec
    | 0o4000000  # sync
    | 0o10000000  # only a place
    | 0o20000000  # without a name
)
_KINDS = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO)
_NO_MOUNT = -1


def vet_open_flags(where: str, flags: int) -> None:
    """Check that opening with these flags creates and truncates nothing."""
    require(not flags & ~_OPEN_FLAGS, where, f"open flags {flags:#o}", f"within {_OPEN_FLAGS:#o}")


def vet_regular(images: Images, where: str, file: pb.RegularFile, allowed: Allowance) -> None:
    """Check a file that is opened by its path. CRIU itself compares the mode with what is there."""
    where = f"{where} {shown(file.name)}"
    if file.ext:
        require(file.name in allowed.external, where, "from outside", "what is replaced")
        return
    vet_path(where, file.name, images)
    require(file.mnt_id == _NO_MOUNT or not file.HasField("mnt_id"), where, "a mount's id", "none")
    require(file.HasField("mode"), where, "no mode", "what it is")
    kind = stat.S_IFMT(file.mode)
    require(kind in _KINDS, where, f"mode {file.mode:#o}", "a file, folder, FIFO or device of the container")
    if kind == stat.S_IFCHR:
        is_ours = file.name in allowed.devices or _TERMINALS.fullmatch(file.name) is not None
        require(is_ours, where, "a device", "those that the container was given")
    if _is_pseudo(file.name):
        may_read = bool(file.mode & stat.S_IROTH) and file.flags & os.O_ACCMODE == os.O_RDONLY
        require(may_read, where, f"opened as {file.flags:#o}", "to read what everyone may read")


def vet_path(where: str, path: bytes, images: Images) -> None:
    """Check that a path says where it leads, as far as it can: CRIU has all rights on its way."""
    parts = path.split(b"/")
    plain = path.startswith(b"/") and len(path) <= _MAX_PATH and b"\0" not in path
    require(plain, where, f"path {shown(path[:_MAX_PATH])!r}", "an absolute one")
    require(b".." not in parts, where, f"path {shown(path)}", "without ..")
    if parts[1:2] == [b"proc"]:
        magic = _MAGIC.intersection(parts[2:])
        require(not magic, where, f"path {shown(path)}", "no links of processes")
        _vet_process_folder(where, parts[2:3], images)


def _vet_process_folder(where: str, first: list[bytes], images: Images) -> None:
    """Check that a process's folder in /proc is one of the tree's, or init's: never CRIU's own."""
    if not first or not first[0].isdigit():
        return
    known = {str(number).encode() for entry in images.tree for number in (entry.pid, *entry.threads)}
    gone = {str(remap.remap_id).encode() for remap in images.remaps}
    require(first[0] in known | gone | {b"1"}, where, "a process that is not in the images", "those that are")


def _is_pseudo(path: bytes) -> bool:
    """Whether a file is the kernel's: what it means there to write is not the sandbox's affair."""
    return path.startswith((b"/proc/", b"/sys/"))
