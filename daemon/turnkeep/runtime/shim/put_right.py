"""Puts right what a restored container's mounts show of the host, before its processes run.

A script of its own, started by CRIU (its action script, `at-stage`) when
everything is restored and no process has run an instruction yet. TURNKEEP_BUNDLE
in its environment is the container's bundle.

runc names the sources of two kinds of mounts to CRIU otherwise than it mounts
them itself when it creates a container:

- the cgroup v1 hierarchies: not the container's own folder of each, but that of
  whoever called runc, which mostly is the host's whole tree. They are replaced.
- masked files (`/proc/timer_list`, …): the host's `/dev/null` instead of the
  container's own. Its mode and owner could be changed for the whole host there.
  Such mounts are made read-only, which still lets the device be written to.

When this fails, CRIU kills it all, and the file TURNKEEP_REASON says why.
mount_setattr(2) came with Linux 5.12. The processes wait for this: it imports no
more than it has to.
"""

from __future__ import annotations

import ctypes
import json
import os
import posixpath
import re
import struct
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_OPENAT2, SYS_MOUNT_SETATTR = 428, 429, 437, 442
OPEN_TREE_CLONE, AT_EMPTY_PATH = 1, 0x1000
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_NEWNS, MS_PRIVATE = 0x00020000, 1 << 18
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS = 2, 4
AT_FDCWD = -100
ATTRIBUTES = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8}

_libc = ctypes.CDLL(None, use_errno=True)


class Unsound(Exception):
    """The container would see more of the host than it did; the text says what."""


# A mount as mountinfo has it.
Mount = namedtuple("Mount", "device root target options kind super_options")


def main() -> int:
    """Put right the container whose init CRIU names, or say why that cannot be."""
    try:
        bundle = os.environ["TURNKEEP_BUNDLE"]
        config = json.loads(_read(bundle + "/config.json"))
        put_right(int(os.environ["CRTOOLS_INIT_PID"]), posixpath.basename(bundle), config)
    except (Unsound, OSError, ValueError, KeyError) as error:
        with open(os.environ["TURNKEEP_REASON"], "w") as file:
            file.write(f"its mounts cannot be put right: {error}")
        return 1
    return 0


def put_right(init_pid: int, container_id: str, config: dict[str, Any]) -> None:
    """Make the mounts of a container what runc itself would have made them.

    Raises:
        Unsound: they are not, and cannot be.
        OSError: the kernel refused.
    """
    own = _own_cgroups(init_pid, container_id)
    trees = [(mount, _own_tree(own, mount)) for mount in _foreign_cgroups(init_pid, own, config)]
    masks = _host_masks(init_pid, config)
    if not trees and not masks:
        return
    pid = os.fork()
    if pid == 0:
        try:
            _inside(init_pid, trees, masks)
        except BaseException as error:
            os.write(2, f"{error}\n".encode())
            os._exit(1)
        os._exit(0)
    os.waitpid(pid, 0)
    wrong = [*_foreign_cgroups(init_pid, own, config), *_host_masks(init_pid, config)]
    if wrong:
        raise Unsound(f"these show the host's own: {', '.join(mount.target for mount in wrong)}")


def read_mounts(pid: int | str) -> list[Mount]:
    """Return the mounts of a process, those on top last."""
    found = []
    for line in _read(f"/proc/{pid}/mountinfo").splitlines():
        words = line.split(" ")
        dash = words.index("-", 6)
        root, target = (_unescape(word) for word in words[3:5])
        options, more = frozenset(words[5].split(",")), frozenset(words[dash + 3].split(","))
        found.append(Mount(words[2], root, target, options, words[dash + 1], more))
    return found


def _read(path: str) -> str:
    with open(path, errors="surrogateescape") as file:
        return file.read()


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _own_cgroups(init_pid: int, container_id: str) -> dict[str, str]:
    """Return where the container's cgroup is in each v1 hierarchy, by controller."""
    found = {}
    for line in _read(f"/proc/{init_pid}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        parts = path.split("/")
        # Its init may sit in a group of its own, below the container's.
        ends = [index for index, part in enumerate(parts) if container_id in part]
        own = "/".join(parts[: ends[0] + 1]) if ends else path
        found.update(dict.fromkeys(filter(None, controllers.split(",")), own))
    return found


def _foreign_cgroups(init_pid: int, own: dict[str, str], config: dict[str, Any]) -> list[Mount]:
    """Return the v1 hierarchies that show more, or others, than the container's own cgroups."""
    namespaces = {each["type"] for each in config["linux"]["namespaces"]}
    if "cgroup" in namespaces:
        return []
    configured = [each["destination"] for each in config.get("mounts") or () if each.get("type") == "cgroup"]
    return [
        mount
        for mount in read_mounts(init_pid)
        if mount.kind == "cgroup"
        and any(mount.target.startswith(f"{each}/") for each in configured)
        and mount.root != _own_path(own, mount)
    ]


def _own_path(own: dict[str, str], mount: Mount) -> str:
    for controller, path in own.items():
        if controller in mount.super_options:
            return path
    raise Unsound(f"it is in no cgroup of {mount.target}")


def _own_tree(own: dict[str, str], mount: Mount) -> int:
    """Return a mount, in no namespace yet, of the container's own cgroup in a hierarchy."""
    path = _own_path(own, mount)
    for host in read_mounts("self"):
        if host.device == mount.device and posixpath.commonpath((path, host.root)) == host.root:
            source = posixpath.join(host.target, posixpath.relpath(path, host.root))
            tree = _syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), OPEN_TREE_CLONE | os.O_CLOEXEC)
            _set(tree, mount.options)
            return tree
    raise Unsound(f"the host has no mount of {mount.target}")


def _host_masks(init_pid: int, config: dict[str, Any]) -> list[Mount]:
    """Return the masked files over which the host's null device lies, open to changes."""
    masked = set(config["linux"].get("maskedPaths") or ())
    status = os.stat("/dev/null")
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    return [
        mount
        for mount in read_mounts(init_pid)
        if mount.target in masked and mount.device == device and "ro" not in mount.options
    ]


def _inside(init_pid: int, trees: Sequence[tuple[Mount, int]], masks: Sequence[Mount]) -> None:
    """Do it in the container's mount namespace, for which a process of its own is needed."""
    namespace = os.open(f"/proc/{init_pid}/ns/mnt", os.O_RDONLY)
    _checked(_libc.setns(namespace, CLONE_NEWNS), "setns")
    for mount, tree in trees:
        target = os.fsencode(mount.target)
        _checked(_libc.umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW), "umount2")
        flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
        _syscall(SYS_MOVE_MOUNT, tree, b"", _open(mount.target), b"", flags)
    for mount in masks:
        _set(_open(mount.target), mount.options | {"ro", "nosuid"})


def _open(path: str) -> int:
    """Open a path of the container's, of which no part may lead elsewhere."""
    how = struct.pack("<3Q", os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS)
    return _syscall(SYS_OPENAT2, AT_FDCWD, os.fsencode(path), how, len(how))


def _set(mount: int, options: frozenset[str]) -> None:
    """Give a mount these options, and keep to itself what happens below it."""
    wanted = sum(bit for name, bit in ATTRIBUTES.items() if name in options)
    attributes = struct.pack("<4Q", wanted, 0, MS_PRIVATE, 0)
    _syscall(SYS_MOUNT_SETATTR, mount, b"", AT_EMPTY_PATH, attributes, len(attributes))


def _syscall(number: int, *arguments: int | bytes) -> int:
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *converted), f"system call {number}")


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
