"""A case for every named point: what the daemon is doing when it is killed there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from turnkeep.client.sync import Client
from turnkeep.points import Point
from turnkeep_store.points import StorePoint

from tests.e2e.harness import Box, Daemon, turn

KEPT_STATE = b"the conversation after turn 2"
TOKEN_SERVER = (
    "import itertools, os, time\n"
    "token = os.urandom(8).hex()\n"
    "for n in itertools.count(1):\n"
    "    open('/dev/shm/new', 'w').write(f'{token} {n}'); os.rename('/dev/shm/new', '/dev/shm/count')\n"
    "    time.sleep(0.02)\n"
)
"""Counts, and is known by its token from another that was started anew."""
SERVER = (
    "import itertools, pathlib, time\n"
    "for n in itertools.count():\n"
    "    pathlib.Path('/dev/shm/count').write_text(str(n)); time.sleep(0.02)\n"
)


@dataclass(slots=True)
class Scene:
    """A daemon and a sandbox with two turns; `wanted` is what an independent look found after each."""

    daemon: Daemon
    box: Box
    make: Callable[..., Box]
    wanted: dict[int, dict[str, Any]] = field(default_factory=dict)
    stateful: bool = False
    token: str = ""
    """What the server says of itself where it is the container's own process."""
    made: list[str] = field(default_factory=list)
    """Names that containers may have got."""

    def prepare(self, *, server: bool) -> None:
        """Attach the sandbox and take two turns."""
        self.stateful = server
        self.daemon.start()
        with self.daemon.connect() as tk:
            sandbox = tk.attach(self.box.name)
            turn(self.box, sandbox, "mkdir /work; seq 2000 > /work/a; ln /work/a /work/b; date > /work/gone")
            self.wanted[1] = self.look()
            with sandbox.turn() as second:
                self.box.sh("rm /work/gone; seq 3000 > /work/a; mkdir /work/new; echo 2 > /work/new/file")
                if server and not self.token:
                    self.box.spawn("python3", "-c", SERVER)
                    self.box.sh("until test -s /dev/shm/count; do :; done")
            second.put_state(KEPT_STATE)
            second.wait()
            self.wanted[2] = self.look()

    def look(self) -> dict[str, Any]:
        """Return what there is, but for what the server writes all the time, and the engine for itself."""
        return self.box.look("/", "/proc /sys /tmp/look /dev/shm/count /.dockerenv /etc/mtab")

    def name(self) -> str:
        """Return a name for a new container."""
        self.made.append(f"{self.box.name}-{uuid.uuid4().hex[:6]}")
        return self.made[-1]


Act = Callable[[Scene, Client], object]


@dataclass(frozen=True, slots=True)
class Case:
    """What is done when the crash comes; with a server in the sandbox, or not.

    With `before`, the daemon is first killed there, so that the start which
    follows has something to put right; the point is one of that start.
    """

    act: Act
    server: bool = False
    before: StrEnum | None = None
    whole: bool = False
    """Whether the sandbox's own process is a server, so that all of it is dumped and restored by runc."""
    again: bool = False
    """Whether it is to be done again after the crash: nothing else would finish it."""


def change(scene: Scene, tk: Client) -> object:
    """A turn that changes files."""
    name = uuid.uuid4().hex
    command = f"mkdir -p /work/new; seq 500 > /work/{name}; rm -f /work/a; echo {name} > /work/new/file"
    return turn(scene.box, tk.sandbox(scene.box.name), command)


def look_around(scene: Scene, tk: Client) -> object:
    """A turn that changes nothing."""
    return turn(scene.box, tk.sandbox(scene.box.name), "ls / > /dev/null")


def change_and_keep_state(scene: Scene, tk: Client) -> object:
    """A turn with a state of its harness."""
    with tk.sandbox(scene.box.name).turn() as open_turn:
        scene.box.sh(f"echo {uuid.uuid4().hex} > /work/new/file")
    return open_turn.put_state(b"another conversation")


def restore(scene: Scene, tk: Client) -> object:
    """A restore without a restart, of a sandbox that has changed."""
    scene.box.sh(f"echo {uuid.uuid4().hex} > /work/unsaved")
    return tk.sandbox(scene.box.name).restore(turn=1)


def restore_processes(scene: Scene, tk: Client) -> object:
    """A restore that kills a server and brings it back."""
    scene.box.sh(f"echo {uuid.uuid4().hex} > /work/unsaved")
    return tk.sandbox(scene.box.name).restore(turn=2)


def restore_cold(scene: Scene, tk: Client) -> object:
    """A restore that stops and starts the container."""
    return tk.sandbox(scene.box.name).restore(turn=1, mode="cold")


def restore_new(scene: Scene, tk: Client) -> object:
    """A restore into a new container."""
    return tk.sandbox(scene.box.name).restore(turn=1, mode="new", new_name=scene.name())


def fork(scene: Scene, tk: Client) -> object:
    """Two copies."""
    return tk.sandbox(scene.box.name).fork(2, names=[scene.name(), scene.name()])


def delete(scene: Scene, tk: Client) -> object:
    """A checkpoint that nobody needs, deleted."""
    sandbox = tk.sandbox(scene.box.name)
    scene.box.sh(f"head -c 300000 /dev/urandom > /work/{uuid.uuid4().hex}")
    made = sandbox.checkpoint()
    result = sandbox.restore(turn=2)
    for each in {made.id, result.safety_checkpoint_id} - {None}:
        sandbox.delete_checkpoint(str(each))
    return made


def prune(scene: Scene, tk: Client) -> object:
    """A checkpoint deleted, and its space freed."""
    delete(scene, tk)
    return tk.prune()


def repair(scene: Scene, tk: Client) -> object:
    """A pack whose table of contents is damaged, and nothing else, is repaired."""
    if tk.check().ok:
        packs = (scene.daemon.state / "store" / "packs").glob("?" * 64)
        pack = min(packs, key=lambda path: path.stat().st_mtime_ns)
        data = bytearray(pack.read_bytes())
        data[-60] ^= 1
        pack.write_bytes(data)
    return tk.check(repair=True)


def attach(scene: Scene, tk: Client) -> object:
    """Another sandbox is attached."""
    return tk.attach(scene.make(name=scene.name()).name)


def detach(scene: Scene, tk: Client) -> object:
    """Another sandbox is attached, and detached."""
    other = scene.make(name=scene.name())
    tk.attach(other.name)
    return tk.sandbox(other.name).detach()


def restore_whole(scene: Scene, tk: Client) -> object:
    """A restore of all that a container is, its own process included."""
    return tk.sandbox(scene.box.name).restore(turn=2)


def replace(scene: Scene, tk: Client) -> object:
    """A restore that puts another container in the place of the one that is there."""
    return tk.sandbox(scene.box.name).restore(turn=2, replace=True)


CASES: Mapping[StrEnum, Case] = {
    Point.ATTACH_PINNED: Case(attach),
    Point.ATTACH_RECORDED: Case(attach),
    Point.DETACH_RECORDED: Case(detach),
    Point.TURN_BEGUN: Case(change),
    Point.TURN_ENDED: Case(change),
    Point.TURN_INSPECTED: Case(change),
    Point.TURN_CLASSIFIED: Case(change),
    Point.TURN_SETTLED: Case(look_around),
    Point.TURN_SKIPPED: Case(look_around),
    Point.STATE_STORED: Case(change_and_keep_state),
    Point.STATE_RECORDED: Case(change_and_keep_state),
    Point.CAPTURE_FROZEN: Case(change),
    Point.CAPTURE_READ: Case(change),
    Point.CAPTURE_THAWED: Case(change),
    Point.CAPTURE_RECORDED: Case(change),
    Point.CAPTURE_DUMPED: Case(change, server=True),
    StorePoint.PACK_PUBLISHED: Case(change),
    StorePoint.PACK_INDEXED: Case(change),
    StorePoint.RECORD_SAVED: Case(change),
    Point.COMMIT_ARCHIVED: Case(change),
    Point.COMMIT_FLUSHED: Case(change, server=True),
    Point.COMMIT_STORED: Case(change),
    Point.COMMIT_RECORDED: Case(change),
    Point.RESTORE_SAVED: Case(restore),
    Point.RESTORE_INTENDED: Case(restore),
    Point.RESTORE_WRITTEN: Case(restore),
    Point.RESTORE_VERIFIED: Case(restore),
    Point.RESTORE_THAWED: Case(restore),
    Point.RESTORE_RECORDED: Case(restore),
    Point.RESTORE_KILLED: Case(restore_processes, server=True),
    Point.RESTORE_PROCESSES: Case(restore_processes, server=True),
    Point.RESTORE_STOPPED: Case(restore_cold),
    Point.RESTORE_FILLED: Case(restore_cold),
    Point.RESTORE_STARTED: Case(restore_cold),
    Point.RESTORE_VOLATILE: Case(restore_cold),
    Point.WHOLE_DUMPED: Case(change, whole=True),
    Point.WHOLE_ORDERED: Case(restore_whole, whole=True),
    Point.WHOLE_STARTED: Case(restore_whole, whole=True),
    Point.REPLACE_SET_ASIDE: Case(replace, whole=True),
    Point.REPLACE_CREATED: Case(replace, whole=True),
    Point.REPLACE_NEW_REMOVED: Case(replace, whole=True, before=Point.REPLACE_CREATED),
    Point.REPLACE_RECORDED: Case(replace, whole=True),
    Point.REPLACE_OLD_REMOVED: Case(replace, whole=True),
    Point.NEW_INTENDED: Case(restore_new),
    Point.NEW_CREATED: Case(restore_new),
    Point.NEW_FILLED: Case(restore_new),
    Point.NEW_RECORDED: Case(restore_new),
    Point.FORK_ONE_MADE: Case(fork),
    Point.DELETE_FORGOTTEN: Case(delete),
    Point.DELETE_RECORDED: Case(delete),
    StorePoint.PACKS_DROPPED: Case(prune),
    StorePoint.PACKS_DELETED: Case(prune),
    StorePoint.BLOBS_SAVED: Case(repair, again=True),
    Point.RECOVERY_AGREED: Case(change, before=Point.COMMIT_STORED),
    Point.RECOVERY_THAWED: Case(change, before=Point.CAPTURE_FROZEN),
    Point.RECOVERY_RESTORED: Case(restore, before=Point.RESTORE_WRITTEN),
    Point.RECOVERY_INTENTS: Case(restore_new, before=Point.NEW_FILLED),
    Point.RECOVERY_TURNS: Case(change, before=Point.TURN_ENDED),
}

AGAIN_WHOLE: Mapping[str, tuple[StrEnum, Case]] = {
    "replaced and ordered": (Point.WHOLE_ORDERED, Case(replace, whole=True)),
    "replaced and started": (Point.RESTORE_STARTED, Case(replace, whole=True)),
    "replaced again": (Point.RECOVERY_RESTORED, Case(replace, whole=True, before=Point.REPLACE_RECORDED)),
    "forked and ordered": (Point.WHOLE_ORDERED, Case(fork, whole=True)),
}
"""Points that whole containers come by as well, or by another way."""
