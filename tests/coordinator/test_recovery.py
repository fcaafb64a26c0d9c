"""After a crash: the store is the truth, the journal follows it, and twice is as good as once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from turnkeep import recovery
from turnkeep.coordinator.registry import Registry
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.harness_state import store_state
from turnkeep.journal import Delete, put_checkpoint
from turnkeep.model import HarnessState, Turn, TurnState
from turnkeep_store.ids import SnapshotId

from tests.coordinator.scene import Fault, Scene, begin, end, full, kept, play_turn


@dataclass(slots=True)
class Restart:
    """A daemon that started again, and has not begun its work yet."""

    scene: Scene
    registry: Registry
    done: list[str]
    begun: list[Coroutine[Any, Any, None]] = field(default_factory=list)

    @property
    def web(self) -> SandboxCoordinator:
        return self.registry.find("web")

    async def go_on(self) -> None:
        """Do what recovery left to be done."""
        await asyncio.gather(*self.begun)
        self.begun.clear()


async def restart(scene: Scene, **files: bytes) -> Restart:
    """Recover, with a container that holds these files now."""
    begun: list[Coroutine[Any, Any, None]] = []
    scene.deps.spawn = begun.append  # type: ignore[assignment]  # a task that is not begun
    registry, done = await recovery.recover(scene.deps)
    for box in registry.sandboxes.values():
        scene.play(box, **files)
    return Restart(scene, registry, done, begun)


def state_of(scene: Scene, number: int) -> Turn:
    """Return what the journal says of a turn."""
    (record,) = scene.journal.sandboxes()
    turn = scene.journal.turn(record.id, number)
    assert turn is not None
    return turn


def _lose_journal(folder: Path) -> None:
    for file in folder.glob("journal.sqlite*"):
        file.unlink()


async def _crash_in(scene: Scene, kind: str, **files: bytes) -> None:
    """Do a turn, and let the daemon die when it journals this."""
    box = await scene.attach("web", a=b"1")
    await begin(box, "t1")
    scene.containers["web"].files.update({path.encode(): data for path, data in files.items()})
    scene.journal.hooks[kind] = Fault(full())
    scene.journal.hooks["failed"] = Fault(full())
    await end(box, "t1")
    await scene.settled()


async def test_a_start_in_order_has_nothing_to_do(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await play_turn(scene, box, "t1", a=b"2")
        await play_turn(scene, box, "t2")
        before, last = scene.journal.projections(), scene.journal.events()[-1].sequence
    async with Scene.open(tmp_path) as scene:
        again = await restart(scene, a=b"2")
        assert again.done == []
        assert again.begun == []
        assert scene.journal.projections() == before
        assert scene.journal.events(after=last) == []


async def test_a_checkpoint_that_was_not_journaled_is_adopted(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        await _crash_in(scene, "durable", a=b"2")
        assert len(scene.journal.checkpoints()) == 1
    async with Scene.open(tmp_path) as scene:
        again = await restart(scene, a=b"2")
        turn = state_of(scene, 1)
        assert turn.state is TurnState.DURABLE
        assert scene.files_of(turn.checkpoint_id) == {b"a": b"2"}
        assert again.web.record.head_checkpoint_id == turn.checkpoint_id
        assert again.web.record.last_turn == 1
        assert turn.harness_turn_id == "t1"
        assert turn.decision is not None
        assert again.begun == []
        assert any("took over checkpoint" in sentence for sentence in again.done)


async def test_the_journals_loss_costs_no_checkpoint(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await play_turn(scene, box, "t1", a=b"2")
        await play_turn(scene, box, "t2")
        await play_turn(scene, box, "t3", b=b"3")
        checkpoints, record = scene.journal.checkpoints(), box.record
    _lose_journal(tmp_path)
    async with Scene.open(tmp_path) as scene:
        again = await restart(scene, a=b"2", b=b"3")
        assert scene.journal.checkpoints() == checkpoints
        found = again.web.record
        assert (found.id, found.name, found.container_id) == (record.id, "web", record.container_id)
        assert (found.head_checkpoint_id, found.last_turn, found.head_turn) == (checkpoints[-1].id, 3, 3)
        assert [(turn.number, turn.state) for turn in scene.journal.turns(record.id)] == [
            (1, TurnState.DURABLE),
            (3, TurnState.DURABLE),
        ]
        assert [turn.checkpoint_id for turn in scene.journal.turns(record.id)] == [
            each.id for each in checkpoints[1:]
        ]


async def test_a_lost_journal_skips_deleted_parents(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        for number in (2, 3, 4):
            await play_turn(scene, box, f"t{number}", a=b"%d" % number)
        first, second, third, fourth = scene.journal.checkpoints()
        for gone in (second, third):
            scene.repository.delete(SnapshotId(gone.id))
    _lose_journal(tmp_path)
    async with Scene.open(tmp_path) as scene:
        await restart(scene, a=b"4")
        assert [(each.id, each.parent_id) for each in scene.journal.checkpoints()] == [
            (first.id, None),
            (fourth.id, first.id),
        ]


async def test_a_turn_that_ended_is_captured_again(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        await _crash_in(scene, "classified", a=b"2")
        assert state_of(scene, 1).state is TurnState.ENDED
    async with Scene.open(tmp_path) as scene:
        again = await restart(scene, a=b"2")
        assert any("captures turn 1 of web again" in sentence for sentence in again.done)
        # Its capture comes before the next turn.
        second = asyncio.ensure_future(begin(again.web, "t2"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(second), 0.02)
        await again.go_on()
        assert (await second).number == 2
        turn = state_of(scene, 1)
        assert turn.state is TurnState.DURABLE
        assert scene.files_of(turn.checkpoint_id) == {b"a": b"2"}


async def test_a_turn_that_another_followed_is_not(tmp_path: Path) -> None:
    """The files are the later one's already."""
    async with Scene.open(tmp_path) as scene:
        await _crash_in(scene, "classified", a=b"2")
        box = SandboxCoordinator(scene.journal.sandboxes()[0], scene.deps)
        await begin(box, "t2")
    async with Scene.open(tmp_path) as scene:
        again = await restart(scene, a=b"3")
        assert again.begun == []
        turn = state_of(scene, 1)
        assert (turn.state, turn.checkpoint_id) == (TurnState.FAILED, None)
        assert "a later turn holds its changes" in turn.state_reason
        # The later one is open still: its harness may live.
        assert again.web.open_turn == state_of(scene, 2)
        await end(again.web, "t2")
        await again.go_on()
        assert scene.files_of((await kept(again.web, 2)).checkpoint_id) == {b"a": b"3"}


async def test_a_turn_of_a_detached_sandbox_is_not_captured(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        await _crash_in(scene, "classified", a=b"2")
        box = SandboxCoordinator(scene.journal.sandboxes()[0], scene.deps)
        await box.update("detached", "", record={"attached": False})
    async with Scene.open(tmp_path) as scene:
        again = await restart(scene, a=b"2")
        assert again.begun == []
        assert state_of(scene, 1).state is TurnState.FAILED


async def test_a_checkpoint_that_the_store_lost_is_forgotten(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await play_turn(scene, box, "t1", a=b"2")
        await play_turn(scene, box, "t2", a=b"3")
        first, second, third = scene.journal.checkpoints()
        # A deletion that was cut off between the record and the journal.
        scene.repository.delete(SnapshotId(second.id))
    async with Scene.open(tmp_path) as scene:
        again = await restart(scene, a=b"3")
        assert [(each.id, each.parent_id) for each in scene.journal.checkpoints()] == [
            (first.id, None),
            (third.id, first.id),
        ]
        assert again.web.record.head_checkpoint_id == third.id
        assert again.done == [f"forgot checkpoint {second.id[:12]}: its record is not in the store"]


async def test_a_lost_head_is_given_up(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await play_turn(scene, box, "t1", a=b"2")
        first, second = scene.journal.checkpoints()
        scene.repository.delete(SnapshotId(second.id))
    async with Scene.open(tmp_path) as scene:
        again = await restart(scene, a=b"2")
        assert again.web.record.head_checkpoint_id == first.id
        scene.deps.spawn = asyncio.ensure_future
        turn = await play_turn(scene, again.web, "t2")
        assert scene.files_of(turn.checkpoint_id) == {b"a": b"2"}


async def test_harness_states_that_no_turn_names_go(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        turn = await play_turn(scene, box, "t1", a=b"2")
        kept_state = _state(scene, turn, b"kept")
        await box.set_harness_state(turn.number, kept_state)
        lost = _state(scene, turn, b"lost")
    async with Scene.open(tmp_path) as scene:
        again = await restart(scene, a=b"2")
        ids = {str(each.id) for each in scene.repository.snapshots()}
        assert kept_state.snapshot_id in ids
        assert lost.snapshot_id not in ids
        assert again.done == [f"removed a harness state that no turn names ({lost.snapshot_id[:12]})"]


def _state(scene: Scene, turn: Turn, data: bytes) -> HarnessState:
    state, _ = store_state(scene.repository, turn.sandbox_id, turn.number, [data], 1000)
    return state


async def test_a_second_recovery_changes_nothing(tmp_path: Path) -> None:
    """After a crash that left a bit of everything."""
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        turn = await play_turn(scene, box, "t1", a=b"2")
        _state(scene, turn, b"lost")
        await play_turn(scene, box, "t2", a=b"3")
        scene.repository.delete(SnapshotId(str(turn.checkpoint_id)))
        await begin(box, "t3")
        scene.containers["web"].files[b"a"] = b"4"
        scene.journal.hooks["durable"] = Fault(full())
        scene.journal.hooks["failed"] = Fault(full())
        await end(box, "t3")
        await scene.settled()
    async with Scene.open(tmp_path) as scene:
        first = await restart(scene, a=b"4")
        assert len(first.done) == 3
        projections, sequence = scene.journal.projections(), scene.journal.events()[-1].sequence
        snapshots = scene.repository.snapshots()
        second = await restart(scene, a=b"4")
        assert second.done == []
        assert second.begun == []
        assert scene.journal.projections() == projections
        assert scene.journal.events(after=sequence) == []
        assert scene.repository.snapshots() == snapshots
        scene.journal.rebuild()
        assert scene.journal.projections() == projections


async def test_a_recovery_that_is_cut_off_is_done_again(tmp_path: Path) -> None:
    """At each of its events."""
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await play_turn(scene, box, "t1", a=b"2")
        await play_turn(scene, box, "t2", a=b"3")
        expected = scene.journal.checkpoints()
        lost = [Delete("checkpoint", each.id) for each in expected[1:]]
        stray = put_checkpoint(expected[0])
        foreign = type(stray)("checkpoint", "f" * 64, stray.sandbox_id, 0, {**stray.value, "id": "f" * 64})
        scene.journal.append("test", "lost", changes=[*lost, foreign])
    for cut in range(3):
        async with Scene.open(tmp_path) as scene:
            left = [cut]

            def die(kind: str, left: list[int] = left) -> None:
                if left[0] == 0:
                    raise full()
                left[0] -= 1

            scene.journal.hooks["*"] = die
            with pytest.raises(type(full())):
                await recovery.recover(scene.deps)
            scene.journal.hooks.clear()
            if cut < 2:
                scene.journal.append("test", "lost", changes=[*lost, foreign])
    async with Scene.open(tmp_path) as scene:
        await restart(scene, a=b"3")
        assert scene.journal.checkpoints() == expected


def test_a_damaged_journal_is_moved_aside(tmp_path: Path) -> None:
    journal = tmp_path / "journal.sqlite"
    for suffix in ("", "-wal", "-shm"):
        journal.with_name(f"journal.sqlite{suffix}").write_bytes(suffix.encode())
    moved = recovery.move_damaged_aside(journal)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "journal.sqlite.damaged",
        "journal.sqlite.damaged-shm",
        "journal.sqlite.damaged-wal",
    ]
    assert moved.read_bytes() == b""
