"""Where a container can write, and how to get there safely."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turnkeep_store.beneath import O_PATH_NOFOLLOW, open_beneath

from turnkeep.errors import SandboxGone, Unsupported
from turnkeep.model import Mount, MountKind
from turnkeep.paths import ROOTFS, slot_name
from turnkeep.runtime.engine import BINDS_LABEL
from turnkeep.runtime.mountinfo import MountPoint, read_mountinfo, split_layers

_PSEUDO = frozenset(
    b"proc sysfs cgroup cgroup2 devpts mqueue securityfs debugfs tracefs bpf pstore configfs efivarfs".split()
)
_ENGINE_FILES = {
    "/etc/hosts": "HostsPath",
    "/etc/hostname": "HostnamePath",
    "/etc/resolv.conf": "ResolvConfPath",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One file tree (or single file) that belongs to a sandbox's state.

    `slot` names it in snapshots. A place that the host can reach has a
    `host_path`; a tmpfs exists only inside the container and is reached through
    its init process.
    """

    slot: bytes
    mount: Mount
    host_path: str = ""
    device: int = 0
    exclude: frozenset[bytes] = frozenset()
    layers: tuple[str, ...] = ()

    @property
    def is_rootfs(self) -> bool:
        return self.mount.kind is MountKind.ROOTFS

    @property
    def is_file(self) -> bool:
        return self.mount.kind is MountKind.FILE

    def open(self, init_pid: int) -> int:
        """Return a descriptor (O_PATH) of the place's root as the host sees it.

        For the root file system that is the overlay's upper layer.

        Raises:
            SandboxGone: it is not there (any more).
        """
        if self.host_path:
            flags = os.O_PATH | os.O_CLOEXEC | (os.O_NOFOLLOW if self.is_file else os.O_DIRECTORY)
            return os.open(self.host_path, flags)
        root = open_root(init_pid)
        try:
            target = os.fsencode(self.mount.target).lstrip(b"/")
            fd = open_beneath(root, target, O_PATH_NOFOLLOW | os.O_DIRECTORY, cross_mounts=True)
        finally:
            os.close(root)
        if os.fstat(fd).st_dev != self.device:
            os.close(fd)
            raise SandboxGone(f"{self.mount.target} is no longer the mount it was", object=self.mount.target)
        return fd


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """All that a container can write to: what is covered, and what is not."""

    covered: tuple[Place, ...]
    uncovered: tuple[Mount, ...] = ()
    mounts: tuple[Mount, ...] = field(default=())

    @property
    def rootfs(self) -> Place:
        return self.covered[0]

    def by_slot(self) -> dict[bytes, Place]:
        """Return the covered places by their slots."""
        return {place.slot: place for place in self.covered}


def open_root(init_pid: int) -> int:
    """Return a descriptor (O_PATH) of a container's root, as its processes see it.

    Raises:
        SandboxGone: the process is gone.
    """
    try:
        return os.open(f"/proc/{init_pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise SandboxGone("its init process is gone", object=f"pid {init_pid}") from error


def find_places(inspected: Mapping[str, Any], shared_volumes: Iterable[str] = ()) -> Places:
    """Find out where a running container can write.

    `shared_volumes` are names of volumes that other containers mount, too.

    Raises:
        SandboxGone: its init process is gone.
        Unsupported: its root file system is not an overlay Turnkeep can read.
    """
    pid = inspected["State"]["Pid"]
    points = read_mountinfo(pid)
    # A later mount at the same target hides an earlier one.
    visible = {point.target: point for point in points}
    root = visible.get(b"/")
    if root is None:
        raise SandboxGone("it has no root file system", object=inspected["Id"][:12])
    declared = {each["Destination"]: each for each in inspected.get("Mounts", ())}
    opted_in = _opted_in(inspected)
    covered: list[Place] = []
    uncovered: list[Mount] = []
    for target, point in sorted(visible.items()):
        if target == b"/" or not point.writable or point.fs_type in _PSEUDO or _is_engines(target):
            continue
        place = _place(point, declared, inspected, opted_in, frozenset(shared_volumes), visible)
        if isinstance(place, Place):
            covered.append(place)
        else:
            uncovered.append(place)
    rootfs = _rootfs(root, inspected, visible)
    covered.insert(0, rootfs)
    return Places(
        covered=tuple(covered),
        uncovered=tuple(uncovered),
        mounts=(*(place.mount for place in covered), *uncovered),
    )


def places_on_disk(inspected: Mapping[str, Any], mounts: Sequence[Mount]) -> Places:
    """Return where a container that does not run keeps its state, mounts it had while it ran given.

    Raises:
        Unsupported: the engine does not say where its writable layer is.
    """
    name = inspected["Name"].lstrip("/")
    data = (inspected.get("GraphDriver") or {}).get("Data") or {}
    if not data.get("UpperDir"):
        raise Unsupported(
            "the engine does not say where its writable layer is",
            object=f"container {name}",
            hint="start it, or use the engine's overlay2 storage driver",
        )
    covered = {mount.target: mount for mount in mounts if mount.covered}
    mounted = frozenset(os.fsencode(mount.target.lstrip("/")) for mount in mounts) - {b""}
    places = [
        Place(
            slot=ROOTFS,
            mount=covered.get("/", Mount(target="/", kind=MountKind.ROOTFS, covered=True)),
            host_path=data["UpperDir"],
            exclude=mounted,
            layers=tuple(data["LowerDir"].split(":")),
        )
    ]
    for mount in inspected.get("Mounts", ()):
        target = mount["Destination"]
        if mount["Type"] in ("volume", "bind") and target in covered:
            slot = slot_name(os.fsencode(target))
            places.append(Place(slot=slot, mount=covered[target], host_path=mount["Source"]))
    return Places(covered=tuple(places), mounts=tuple(mounts))


def _is_engines(target: bytes) -> bool:
    """Whether a mount is made anew by the runtime at every start and holds nothing."""
    return target.startswith((b"/proc/", b"/sys/")) or target == b"/dev/console"


def _opted_in(inspected: Mapping[str, Any]) -> frozenset[str]:
    label = (inspected["Config"].get("Labels") or {}).get(BINDS_LABEL, "")
    return frozenset(part.strip() for part in label.split(",") if part.strip())


def _place(
    point: MountPoint,
    declared: Mapping[str, Mapping[str, Any]],
    inspected: Mapping[str, Any],
    opted_in: frozenset[str],
    shared: frozenset[str],
    visible: Mapping[bytes, MountPoint],
) -> Place | Mount:
    target = os.fsdecode(point.target)
    slot = slot_name(point.target)
    exclude = _below(point.target, visible)
    if target in _ENGINE_FILES and inspected.get(_ENGINE_FILES[target]) and target not in declared:
        mount = Mount(target=target, kind=MountKind.FILE, covered=True)
        return Place(slot=slot, mount=mount, host_path=inspected[_ENGINE_FILES[target]])
    known = declared.get(target)
    if known is not None and known["Type"] == "volume":
        name = known.get("Name", "")
        if name in shared and target not in opted_in:
            reason = f"volume {name} is shared with other containers; label {BINDS_LABEL}={target} covers it"
            return Mount(target=target, kind=MountKind.VOLUME, covered=False, reason=reason)
        if known.get("Driver", "local") != "local" or not known.get("Source"):
            reason = f"volume {name} is not the engine's own kind (driver {known.get('Driver')})"
            return Mount(target=target, kind=MountKind.VOLUME, covered=False, reason=reason)
        mount = Mount(target=target, kind=MountKind.VOLUME, covered=True)
        return Place(slot=slot, mount=mount, host_path=known["Source"], exclude=exclude)
    if known is not None and known["Type"] == "bind":
        if target in opted_in and os.path.isdir(known["Source"]):
            mount = Mount(target=target, kind=MountKind.BIND, covered=True)
            return Place(slot=slot, mount=mount, host_path=known["Source"], exclude=exclude)
        reason = f"a folder of the host ({known['Source']}); label {BINDS_LABEL}={target} covers it"
        return Mount(target=target, kind=MountKind.BIND, covered=False, reason=reason)
    if point.fs_type == b"tmpfs" and point.root == b"/":
        mount = Mount(target=target, kind=MountKind.TMPFS, covered=True)
        return Place(slot=slot, mount=mount, device=point.device, exclude=exclude)
    reason = f"a mount that Docker does not know ({os.fsdecode(point.fs_type)})"
    return Mount(target=target, kind=MountKind.BIND, covered=False, reason=reason)


def _below(target: bytes, visible: Mapping[bytes, MountPoint]) -> frozenset[bytes]:
    """Return the mounts below a mount, relative to it."""
    prefix = target.rstrip(b"/") + b"/"
    return frozenset(
        other[len(prefix) :] for other in visible if other.startswith(prefix) and other != target
    )


def _rootfs(root: MountPoint, inspected: Mapping[str, Any], visible: Mapping[bytes, MountPoint]) -> Place:
    name = inspected["Name"].lstrip("/")
    if root.fs_type != b"overlay":
        raise Unsupported(
            f"its root file system is {os.fsdecode(root.fs_type)}, not overlay",
            object=f"container {name}",
            hint="use the engine's overlay2 storage driver or containerd's overlayfs snapshotter",
        )
    for option in (b"metacopy", b"redirect_dir"):
        if root.super_option(option) == b"on":
            raise Unsupported(
                f"its overlay is mounted with {os.fsdecode(option)}=on, so the upper layer alone lacks data",
                object=f"container {name}",
                hint=f"echo N > /sys/module/overlay/parameters/{os.fsdecode(option)} and start it again",
            )
    data = (inspected.get("GraphDriver") or {}).get("Data") or {}
    upper, layers = overlay_dirs(root, data, name)
    mount = Mount(target="/", kind=MountKind.ROOTFS, covered=True)
    return Place(
        slot=ROOTFS, mount=mount, host_path=upper, exclude=_below(b"/", visible), layers=tuple(layers)
    )


def overlay_dirs(root: MountPoint, data: Mapping[str, str], name: str) -> tuple[str, Sequence[str]]:
    """Return the upper layer's path and the lower layers', topmost first.

    Docker mounts with paths relative to its own folder when there are many
    layers; what the engine says then tells the folder. Where both speak, they
    have to agree.

    Raises:
        Unsupported: the mount has no upper layer, or the two disagree.
    """
    upper = os.fsdecode(root.super_option(b"upperdir") or b"")
    lowers = [os.fsdecode(part) for part in split_layers(root.super_option(b"lowerdir") or b"")]
    lowers += [
        os.fsdecode(part[len(b"lowerdir+=") :])
        for part in root.super_options
        if part.startswith(b"lowerdir+=")
    ]
    if not upper:
        raise Unsupported(
            "its root file system is read-only or has no upper layer", object=f"container {name}"
        )
    engines = data.get("UpperDir", "")
    if not os.path.isabs(upper):
        if not engines:
            raise Unsupported(f"its upper layer has a relative path ({upper})", object=f"container {name}")
        base = Path(engines).parent.parent
        upper = str(base / upper)
        lowers = [lower if os.path.isabs(lower) else str(base / lower) for lower in lowers]
    if engines and not _same_folder(upper, engines):
        raise Unsupported(
            f"the kernel says its upper layer is {upper}, the engine says {engines}",
            object=f"container {name}",
        )
    return upper, lowers


def _same_folder(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return False
