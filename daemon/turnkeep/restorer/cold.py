"""Restoring a sandbox that does not run: stopped for it, stopped anyway, or new."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from turnkeep_store.diff import diff
from turnkeep_store.ids import Digest, TreeId
from turnkeep_store.nodes import set_attributes_of
from turnkeep_store.points import reached
from turnkeep_store.repository import Repository
from turnkeep_store.restorer import Source, Written
from turnkeep_store.synchroniser import synchronise
from turnkeep_store.tree import Directory, Entry

from turnkeep.checkpointer.capture import Checkpointer
from turnkeep.checkpointer.states import State
from turnkeep.checkpointer.view import Baseline
from turnkeep.errors import DigestMismatch, RestoreFailed
from turnkeep.model import Checkpoint, MountKind
from turnkeep.paths import display
from turnkeep.points import Point
from turnkeep.restorer.identity import Identity
from turnkeep.restorer.live import rewrite
from turnkeep.restorer.plan import SHOWN_PATHS, Progress, Restored
from turnkeep.restorer.sockets import times_again
from turnkeep.runtime.container import Container
from turnkeep.runtime.mountinfo import read_mountinfo
from turnkeep.runtime.moves import quick_moves
from turnkeep.runtime.places import Place
from turnkeep.watch.processes import sample

NOT_ONE_INSTANT = (
    "what exists only while a container runs ({places}) was filled right after the start,"
    " not at one instant with the rest"
)
_UNMOUNT_TIMEOUT_S = 10.0


def wait_until_unmounted(upper: str) -> None:
    """Wait until no overlay has this upper layer mounted; changing it meanwhile is undefined.

    Raises:
        RestoreFailed: it stays mounted.
    """
    deadline = time.monotonic() + _UNMOUNT_TIMEOUT_S
    wanted = os.fsencode(upper)
    while any(point.super_option(b"upperdir") == wanted for point in read_mountinfo("self")):
        if time.monotonic() > deadline:
            raise RestoreFailed(
                "the writable layer stays mounted after the container stopped",
                object=upper,
                hint="is a docker cp or export of this container under way?",
            )
        time.sleep(0.005)


def fill_on_disk(
    repository: Repository,
    checkpoint: Checkpoint,
    places: Iterable[Place],
    progress: Progress,
) -> Written:
    """Make the writable layer and the volumes of a stopped container equal to a checkpoint.

    Where something was mounted over a place, nothing is kept: the runtime makes
    its mount points anew. Can be repeated after an interruption. When it returns, everything is on the
    disk.

    Raises:
        OSError, StoreError: writing or reading failed; the content is in between.
    """
    top = _top(repository, checkpoint)
    total = Written()
    for place in places:
        entry = top.entries.get(place.slot)
        if entry is None or entry.subtree is None or not place.host_path or place.is_file:
            continue
        fd = place.open(0)
        try:
            written = synchronise(
                fd,
                repository,
                entry.subtree,
                upper=place.is_rootfs,
                progress=lambda done: progress("write", done, 0),
            )
            set_attributes_of(fd, entry, overlay=place.is_rootfs)
        finally:
            os.close(fd)
        total.paths += written.paths
        total.bytes += written.bytes
    return total


def fill_running(
    repository: Repository,
    checkpoint: Checkpoint,
    container: Container,
    total: Written,
    *,
    memory: bool = True,
) -> list[Place]:
    """Fill what exists only in a running container: tmpfs mounts and the engine's own files.

    Returns the places that were filled. The caller froze the container. Without
    `memory` the tmpfs mounts are left as they are.
    """
    top = _top(repository, checkpoint)
    filled = []
    for place in container.covered():
        entry = top.entries.get(place.slot)
        if entry is None or not is_volatile(place) or not (memory or place.is_file):
            continue
        fd = place.open(container.init_pid)
        try:
            if place.is_file:
                total.bytes += rewrite(fd, repository, entry)
                total.paths += 1
            elif entry.subtree is not None:
                written = synchronise(fd, repository, entry.subtree, keep=place.exclude)
                total.paths += written.paths
                total.bytes += written.bytes
            set_attributes_of(fd, entry)
        finally:
            os.close(fd)
        filled.append(place)
    return filled


def is_volatile(place: Place) -> bool:
    """Whether a start of the container makes the place anew."""
    return place.is_file or place.mount.kind is MountKind.TMPFS


def start_and_fill(
    repository: Repository,
    checkpointer: Checkpointer,
    checkpoint: Checkpoint,
    start: Callable[[], Container],
    on_disk: State,
    written: Written,
    *,
    budget_s: float,
    progress: Progress,
    and_then: Callable[[Container], list[str]] | None = None,
    is_copy: bool = False,
    whole: bool = False,
) -> tuple[Restored, Baseline, Container]:
    """Start a container whose disk content is restored, fill the rest, and compare digests.

    `on_disk` is what was read back of the disk before the start; together with
    what is read of the rest after it, it has to have the checkpoint's digest. A
    container whose own process writes at once differs from it later, rightly.
    `and_then` brings back the processes once the files are right; nothing has run
    until then. A copy gets back its own names and address before that. Where `start`
    brought back the whole container, its processes run already, with the memory
    file systems of the same instant.

    Raises:
        DigestMismatch: they differ.
    """
    progress("start", 0, 0)
    container = start()
    with quick_moves(), container.frozen(budget_s, hold=True) as freeze:
        identity = Identity(container) if is_copy else None
        filled = fill_running(repository, checkpoint, container, written, memory=not whole)
        reached(Point.RESTORE_VOLATILE)
        progress("verify", 0, 0)
        state = checkpointer.states.current_state(container, None)
        processes = None if checkpoint.processes else sample(container.pids(), container.usage_ns)
        volatile = {place.slot for place in filled}
        untouched = {place.slot for place in container.covered() if is_volatile(place)} - volatile
        digest = _compare(repository, checkpoint, on_disk, state, volatile, untouched)
        targets = ", ".join(sorted(place.mount.target for place in filled))
        notes: tuple[str, ...] = (NOT_ONE_INSTANT.format(places=targets),) if filled else ()
        if identity is not None:
            identity.take_back(checkpoint)
        if and_then is not None:
            progress("processes", 0, 0)
            notes += tuple(and_then(container))
            times_again(checkpointer, container, state)
    freeze_ns = freeze.ns if freeze is not None else 0
    restored = Restored(digest.hex(), written, freeze_ns, True, notes)
    if state.digest != digest:
        # Its own process wrote something since the start: the next turn reads
        # everything, and finds it.
        return restored, Baseline(TreeId(bytes.fromhex(checkpoint.tree)), checkpoint.id), container
    tree = TreeId(bytes.fromhex(checkpoint.tree))
    return restored, Baseline(tree, checkpoint.id, state.baseline.places, processes), container


def _compare(
    repository: Repository,
    checkpoint: Checkpoint,
    on_disk: State,
    running: State,
    volatile: Collection[bytes],
    untouched: Collection[bytes] = (),
) -> Digest:
    """Return the digest of what is there: `volatile` places as they run, the rest as it lay on disk.

    `untouched` places were brought back with the processes, and have moved on with them.
    """
    entries: dict[bytes, Entry] = {}
    sources: dict[bytes, Source] = {}
    for entry in _top(repository, checkpoint):
        if entry.name in untouched:
            entries[entry.name], sources[entry.name] = entry, repository
    for state, wanted in ((on_disk, False), (running, True)):
        for entry in state.source.read_directory(state.tree):
            if entry.name not in untouched and (entry.name in volatile) is wanted:
                entries[entry.name], sources[entry.name] = entry, state.source
    digest = Directory(entries).digest()
    if digest.hex() == checkpoint.digest:
        return digest
    differing: list[str] = []
    for entry in _top(repository, checkpoint):
        present = entries.get(entry.name)
        if present is None or not entry.same_state(present):
            differing.append(display(entry.name))
        if present is not None and present.digest != entry.digest:
            found = diff(sources[entry.name], entry.subtree, present.subtree)
            differing += [
                display(entry.name + b"/" + delta.path)
                for delta in found
                if not _same(delta.before, delta.after)
            ]
    shown = ", ".join(differing[:SHOWN_PATHS])
    raise DigestMismatch(
        f"what is there is not what was captured; {len(differing)} paths differ: {shown}",
        object=f"checkpoint {checkpoint.id[:12]}",
    )


def _same(a: Entry | None, b: Entry | None) -> bool:
    return a is not None and a.same_state(b)


def _top(repository: Repository, checkpoint: Checkpoint) -> Directory:
    return repository.read_directory(TreeId(bytes.fromhex(checkpoint.tree)))


def new_container_config(checkpoint: Checkpoint, volumes: Mapping[str, str]) -> dict[str, Any]:
    """Return what to create a container from, so that it is like the one captured.

    `volumes` maps the names of its volumes to new ones. What belongs to one
    container alone is left out: its id as hostname, its MAC address.
    """
    stored = checkpoint.container
    config = dict(stored["Config"])
    if config.get("Hostname") == stored["Id"][:12]:
        config.pop("Hostname")
    config.pop("MacAddress", None)
    config["Image"] = checkpoint.image_id
    host = {
        key: value for key, value in stored["HostConfig"].items() if key not in ("ContainerIDFile", "Links")
    }
    binds = []
    for bind in host.get("Binds") or ():
        source, _, rest = bind.partition(":")
        binds.append(f"{volumes.get(source, source)}:{rest}")
    host["Binds"] = binds
    host["Mounts"] = [
        {**mount, "Source": volumes.get(mount.get("Source", ""), mount.get("Source", ""))}
        if mount.get("Type") == "volume"
        else mount
        for mount in host.get("Mounts") or ()
    ]
    return {**config, "HostConfig": host}
