"""A stage for coordinators: real journal, repository, pools and tasks; containers that are dicts.

The fakes stand at the seams of `Deps`: `checkpointer`, `engine`, `freezer`. The
checkpointer keeps its promises to the letter, in the real store, so that what
is found there afterwards proves something.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from turnkeep.checkpointer.capture import Committed
from turnkeep.checkpointer.view import Baseline
from turnkeep.config import Config
from turnkeep.coordinator.deps import Deps, Pools
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import ContainerNotFound, ResourceExhausted, TurnkeepError
from turnkeep.journal import Happened, Journal, put_sandbox
from turnkeep.model import (
    CheckpointId,
    ContainerState,
    Decision,
    Event,
    Fidelity,
    Mount,
    MountKind,
    Origin,
    SandboxId,
    SandboxRecord,
    Turn,
    TurnMetadata,
    TurnState,
)
from turnkeep.turns import Evidence, classify
from turnkeep_store.ids import SnapshotId
from turnkeep_store.lease import Lease
from turnkeep_store.repository import Options, Repository
from turnkeep_store.writer import BlobWriter

from tests.store.trees import get_tree, put_tree

PATIENCE_S = 20.0
"""Longer than anything here takes; only a test that fails waits for so long."""

Hook = Callable[[str], None]
"""Called with the name of the container or of the event; may block or raise."""


class Stop:
    """A place where a thread is held until the test lets it go on."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._reached = threading.Event()
        self._go = threading.Event()

    def __call__(self, name: str) -> None:
        if self._name in ("", name):
            self._reached.set()
            assert self._go.wait(PATIENCE_S * 2), "nobody let it go on"

    async def reached(self) -> None:
        """Return once a thread stands here."""
        assert await asyncio.to_thread(self._reached.wait, PATIENCE_S), "nothing came here"

    def go(self) -> None:
        """Hold nobody any more."""
        self._go.set()


class Fault:
    """Raises an error, as many times as it is told to."""

    def __init__(self, error: BaseException, *, times: int = 1) -> None:
        self._error = error
        self.left = times

    def __call__(self, name: str) -> None:
        if self.left:
            self.left -= 1
            raise self._error


@dataclass(slots=True)
class FakeContainer:
    """What the coordinator asks of a container."""

    name: str
    files: dict[bytes, bytes]
    running: bool = True
    current: bool = True
    closed: int = 0
    places: None = None
    image: str = "debian"
    image_id: str = "sha256:0"
    layers: tuple[str, ...] = ("sha256:1",)
    mounts: tuple[Mount, ...] = (Mount(target="/", kind=MountKind.ROOTFS, covered=True),)

    @property
    def inspected(self) -> dict[str, Any]:
        return {"Id": container_id(self.name), "Config": {}, "HostConfig": {}}

    def is_current(self) -> bool:
        return self.current

    def close(self) -> None:
        self.closed += 1


@dataclass(slots=True)
class FakeInspection:
    """A look at a container, under a lease as the real one."""

    view: FakeContainer
    decision: Decision
    changed: set[bytes]
    lease: Lease
    writer: BlobWriter

    def drop(self) -> None:
        self.writer.abort()
        self.lease.release()


@dataclass(slots=True)
class FakeCapture:
    """The files as they were at one instant."""

    inspection: FakeInspection
    files: Mapping[bytes, bytes]
    captured_at_ns: int
    freeze_ns: int = 1
    fidelity: Fidelity = Fidelity.COMPLETE
    missing: tuple[str, ...] = ()
    dump: None = None


class FakeCheckpointer:
    """Takes a dict for a container, and keeps it in the real repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.hooks: dict[str, Hook] = {}

    def inspect(self, view: FakeContainer, baseline: Baseline) -> FakeInspection:
        self._at("inspect", view)
        tree, _ = put_tree(self._repository.hash_only(), view.files)
        changed = set(view.files) if tree != baseline.tree else set()
        evidence = Evidence(changed=[path.decode() for path in changed])
        lease = self._repository.lease("capture")
        return FakeInspection(view, classify(evidence, ()), changed, lease, self._repository.writer(lease))

    def settle_woken(self, inspection: FakeInspection, baseline: Baseline) -> None:
        return None

    def settle(self, inspection: FakeInspection, baseline: Baseline) -> None:
        inspection.drop()
        self._at("settle", inspection.view)

    def capture(self, inspection: FakeInspection, baseline: Baseline) -> FakeCapture:
        self._at("capture", inspection.view)
        return FakeCapture(inspection, dict(inspection.view.files), time.time_ns())

    def commit(self, capture: FakeCapture, baseline: Baseline, metadata: Mapping[str, Any]) -> Committed:
        inspection = capture.inspection
        try:
            self._at("commit", inspection.view)
            tree, digest = put_tree(inspection.writer, capture.files)
            figures = {"changed_files": len(capture.files), "changed_bytes": 1, "stored_bytes": 1}
            snapshot = self._repository.commit(
                inspection.writer, tree=tree, digest=digest, metadata={**metadata, **figures}
            )
        finally:
            inspection.drop()
        return Committed(snapshot, Baseline(tree), len(capture.files), 1, 1)

    def _at(self, step: str, view: FakeContainer) -> None:
        hook = self.hooks.get(step)
        if hook is not None:
            hook(view.name)


class HookedJournal(Journal):
    """The real journal, with a hook before each kind of event, and one after it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.hooks: dict[str, Hook] = {}
        self.after: dict[str, Hook] = {}

    def append_all(self, happened: Sequence[Happened]) -> list[Event]:
        for each in happened:
            for hook in (self.hooks.get(each.event.kind), self.hooks.get("*")):
                if hook is not None:
                    hook(each.event.kind)
        events = super().append_all(happened)
        for event in events:
            if event.kind in self.after:
                self.after[event.kind](event.kind)
        return events


class FakeEngine:
    """An engine that has lost every container, until the test says otherwise."""

    def __init__(self) -> None:
        self.inspected: dict[str, dict[str, Any]] = {}

    def inspect(self, container: str) -> dict[str, Any]:
        if container not in self.inspected:
            raise ContainerNotFound("no such container", object=container[:12])
        return self.inspected[container]


@dataclass(slots=True)
class Scene:
    """The daemon's inside between two starts."""

    deps: Deps
    journal: HookedJournal
    repository: Repository
    checkpointer: FakeCheckpointer
    engine: FakeEngine
    tasks: list[asyncio.Task[None]]
    containers: dict[str, FakeContainer] = field(default_factory=dict)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator[Scene]:
        """Start, or start again, in a folder. Leaving waits for all tasks, and raises what they raise."""
        with contextlib.ExitStack() as stack:
            repository = stack.enter_context(
                Repository.open_or_create(folder / "store", options=Options(compression_level=1))
            )
            journal = stack.enter_context(HookedJournal(folder / "journal.sqlite"))
            pools = Pools.start(2)
            stack.callback(pools.stop)
            checkpointer, engine = FakeCheckpointer(repository), FakeEngine()
            failure: Exception | None = None
            async with asyncio.TaskGroup() as group:
                tasks: list[asyncio.Task[None]] = []

                def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
                    tasks.append(group.create_task(work))
                    return tasks[-1]

                deps = Deps(
                    config=Config(),
                    journal=journal,
                    repository=repository,
                    checkpointer=cast("Any", checkpointer),
                    engine=cast("Any", engine),
                    processes=cast("Any", None),
                    freezer=cast("Any", None),
                    pools=pools,
                    spawn=spawn,
                )
                try:
                    yield cls(deps, journal, repository, checkpointer, engine, tasks)
                except Exception as error:  # so that the test's own is not wrapped in a group
                    failure = error
                finally:
                    for hook in (
                        *checkpointer.hooks.values(),
                        *journal.hooks.values(),
                        *journal.after.values(),
                    ):
                        if isinstance(hook, Stop):
                            hook.go()
            if failure is not None:
                raise failure

    async def attach(self, name: str = "web", **files: bytes) -> SandboxCoordinator:
        """Attach a container with these files; its first checkpoint is taken."""
        container = FakeContainer(name, {path.encode(): data for path, data in files.items()})
        self.containers[name] = container
        record = SandboxRecord(
            id=SandboxId(f"{len(self.containers):016x}"),
            name=name,
            container_id=container_id(name),
            image=container.image,
            image_id=container.image_id,
            container_state=ContainerState.RUNNING,
            attached=True,
            attached_at_ns=time.time_ns(),
            mounts=container.mounts,
        )
        self.journal.append("attached", name, sandbox=record, changes=[put_sandbox(record)])
        box = SandboxCoordinator(record, self.deps)
        self.play(box)
        async with box.holding():
            await box.take(Origin.ATTACH)
        return box

    async def settled(self) -> None:
        """Return once every capture is over."""
        await asyncio.gather(*self.tasks)

    def play(self, box: SandboxCoordinator, **files: bytes) -> FakeContainer:
        """Give a sandbox its container."""
        name = box.record.name
        container = self.containers.setdefault(
            name, FakeContainer(name, {path.encode(): data for path, data in files.items()})
        )
        box.use(cast("Any", container))
        return container

    def files_of(self, checkpoint_id: CheckpointId | None) -> dict[bytes, bytes]:
        """Read a checkpoint's files from the store."""
        assert checkpoint_id is not None
        return get_tree(self.repository, self.repository.snapshot(SnapshotId(checkpoint_id)).tree)

    def leases(self) -> list[str]:
        """Return what is leased in the store."""
        return self.repository.blobs.leases.purposes()


def container_id(name: str) -> str:
    """Return the id of the container of this name."""
    return name.encode().hex().ljust(64, "0")


def full() -> TurnkeepError:
    """Return what a journal raises on a full disk."""
    return ResourceExhausted("the journal cannot be written: database or disk is full", object="journal")


async def begin(
    box: SandboxCoordinator,
    turn_id: str,
    *,
    session: str = "s1",
    label: str = "",
    take_over: bool = False,
    gate_timeout_s: float = PATIENCE_S,
) -> Turn:
    """Begin a turn."""
    turn, _, _ = await box.begin(session, turn_id, label, take_over=take_over, gate_timeout_s=gate_timeout_s)
    return turn


async def end(
    box: SandboxCoordinator, turn_id: str, *, session: str = "s1", labels: Mapping[str, str] | None = None
) -> Turn:
    """End a turn."""
    return await box.end(session, turn_id, labels or {}, TurnMetadata())


async def kept(box: SandboxCoordinator, number: int) -> Turn:
    """Wait until a turn is DURABLE or SKIPPED."""
    return await box.wait(number, TurnState.DURABLE, PATIENCE_S)


async def play_turn(scene: Scene, box: SandboxCoordinator, turn_id: str, **files: bytes) -> Turn:
    """Do a whole turn that writes these files; return it once it is final."""
    turn = await begin(box, turn_id)
    scene.containers[box.record.name].files.update({path.encode(): data for path, data in files.items()})
    await end(box, turn_id)
    return await kept(box, turn.number)
