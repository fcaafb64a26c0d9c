"""Whatever fails on a turn's way: its reason is kept, the gate opens, and the next turn captures."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import CaptureFailed, ResourceExhausted, SandboxGone, TurnFailed, TurnkeepError
from turnkeep.model import Origin, TurnState
from turnkeep_store.errors import StoreError, StoreFull

from tests.coordinator.scene import Fault, Scene, Stop, begin, end, full, kept, play_turn

ERRORS: list[tuple[BaseException, str]] = [
    (CaptureFailed("its tasks did not freeze", object="cg"), "its tasks did not freeze (cg)"),
    (SandboxGone("its cgroup is gone"), "its cgroup is gone"),
    (StoreFull("pack 1: no space"), "the disk under the state directory is full: pack 1: no space"),
    (StoreError("pack 1: torn"), "pack 1: torn"),
    (OSError(errno.EIO, "Input/output error"), "[Errno 5] Input/output error"),
    (ValueError("secret"), "unexpected ValueError: secret (a defect; the daemon's log has the details)"),
]


async def _is_unharmed(scene: Scene, box: SandboxCoordinator) -> None:
    """The gate is open, the locks are free, and the next turn's checkpoint has everything."""
    for hooks in (scene.checkpointer.hooks, scene.journal.hooks, scene.journal.after):
        hooks.clear()
    number = box.record.last_turn + 1
    turn = await asyncio.wait_for(begin(box, "after"), 10)
    assert turn.number == number
    scene.containers["web"].files[b"b"] = b"after"
    await end(box, "after")
    turn = await asyncio.wait_for(kept(box, number), 10)
    assert turn.state is TurnState.DURABLE
    assert scene.files_of(turn.checkpoint_id) == scene.containers["web"].files
    assert scene.journal.turn(box.record.id, number) == turn
    before = scene.journal.projections()
    scene.journal.rebuild()
    assert scene.journal.projections() == before


@pytest.mark.parametrize("step", ["inspect", "capture", "commit"])
@pytest.mark.parametrize(("error", "reason"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
async def test_a_capture_that_fails(tmp_path: Path, step: str, error: BaseException, reason: str) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.checkpointer.hooks[step] = Fault(error)
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        with pytest.raises(TurnFailed):
            await kept(box, 1)
        failed = scene.journal.turn(box.record.id, 1)
        assert failed is not None
        assert (failed.state, failed.state_reason, failed.checkpoint_id) == (TurnState.FAILED, reason, None)
        assert scene.leases() == []
        await _is_unharmed(scene, box)


async def test_a_container_that_is_gone(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.containers["web"].current = False
        await begin(box, "t1")
        await end(box, "t1")
        with pytest.raises(TurnFailed, match="no such container"):
            await kept(box, 1)
        scene.containers["web"].current = True
        await _is_unharmed(scene, box)


async def test_a_settlement_that_fails(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.checkpointer.hooks["settle"] = Fault(OSError(errno.EIO, "EIO"))
        await begin(box, "t1")
        await end(box, "t1")
        with pytest.raises(TurnFailed):
            await kept(box, 1)
        assert scene.leases() == []
        await _is_unharmed(scene, box)


@pytest.mark.parametrize("kind", ["classified", "captured", "durable"])
@pytest.mark.parametrize("error", [full(), ValueError("a defect")], ids=["full", "defect"])
async def test_a_journal_that_fails_once(tmp_path: Path, kind: str, error: Exception) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.journal.hooks[kind] = Fault(error)
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        with pytest.raises(TurnFailed):
            await kept(box, 1)
        await _is_unharmed(scene, box)


@pytest.mark.parametrize("kind", ["classified", "captured"])
async def test_a_journal_that_fails_leaves_no_lease(tmp_path: Path, kind: str) -> None:
    """Else no prune frees anything until the daemon starts again."""
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.journal.hooks[kind] = Fault(full())
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        with pytest.raises(TurnFailed):
            await kept(box, 1)
        assert scene.leases() == []


async def test_a_checkpoint_by_hand_that_is_cancelled_leaves_no_lease(tmp_path: Path) -> None:
    """Its caller hung up while the sandbox was being inspected."""

    async def take() -> None:
        async with box.holding():
            await box.take(Origin.MANUAL)

    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        inspect = Stop()
        scene.checkpointer.hooks["inspect"] = inspect
        task = asyncio.ensure_future(take())
        await inspect.reached()
        task.cancel()
        inspect.go()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scene.leases() == []
        await _is_unharmed(scene, box)


async def test_what_was_committed_and_not_journaled_is_not_skipped(tmp_path: Path) -> None:
    """The failed turn said that the next checkpoint will hold its changes: it has to, or be one."""
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.journal.hooks["durable"] = Fault(full())
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        with pytest.raises(TurnFailed):
            await kept(box, 1)
        turn = await play_turn(scene, box, "t2")
        assert scene.files_of(turn.checkpoint_id) == {b"a": b"2"}


async def test_a_begin_that_cannot_be_journaled(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.journal.hooks["turn_begun"] = Fault(full())
        with pytest.raises(ResourceExhausted):
            await begin(box, "t1")
        assert box.open_turn is None
        assert (await begin(box, "t1")).number == 1
        await end(box, "t1")
        await _is_unharmed(scene, box)


async def test_an_end_that_cannot_be_journaled(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.journal.hooks["turn_ended"] = Fault(full())
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        with pytest.raises(ResourceExhausted):
            await end(box, "t1")
        assert box.open_turn is not None
        await end(box, "t1")
        assert scene.files_of((await kept(box, 1)).checkpoint_id) == {b"a": b"2"}
        await _is_unharmed(scene, box)


@pytest.mark.parametrize(
    "error",
    [
        full(),
        pytest.param(
            RuntimeError("a defect"),
        ),
    ],
    ids=["full", "defect"],
)
async def test_a_journal_that_stays_full(tmp_path: Path, error: Exception) -> None:
    """Not even the failure can be written. The task ends all the same, or it would end the daemon."""
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        inspect = Stop()
        scene.checkpointer.hooks["inspect"] = inspect
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        await inspect.reached()
        broken = Fault(error, times=10**9)
        scene.journal.hooks["*"] = broken
        inspect.go()
        await scene.settled()
        assert broken.left < 10**9 - 1
        await _is_unharmed(scene, box)


async def test_a_failure_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        inspect = Stop()
        scene.checkpointer.hooks["inspect"] = inspect
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        await inspect.reached()
        waiting = asyncio.ensure_future(box.wait(1, TurnState.DURABLE, 0.5))
        scene.journal.hooks["*"] = Fault(full(), times=10**9)
        inspect.go()
        with pytest.raises(TurnFailed):
            await waiting


async def test_a_first_checkpoint_that_fails_opens_the_gate(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.checkpointer.hooks["commit"] = Fault(StoreFull("full"))
        with pytest.raises(StoreFull):
            async with box.holding():
                await box.take(Origin.MANUAL)
        assert scene.leases() == []
        await _is_unharmed(scene, box)


async def test_a_wait_is_told_of_a_failure_at_once(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        commit = Stop()
        scene.checkpointer.hooks["inspect"] = commit
        scene.checkpointer.hooks["capture"] = Fault(CaptureFailed("torn"))
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        await commit.reached()
        waiting = asyncio.ensure_future(kept(box, 1))
        commit.go()
        with pytest.raises(TurnkeepError, match="torn"):
            await asyncio.wait_for(waiting, 10)
