"""The gate: what holds the next turn, for how long, and what never holds it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import Conflict, GateTimeout
from turnkeep.model import HarnessState, TurnState

from tests.coordinator.scene import Scene, Stop, begin, end, kept, play_turn


async def test_the_gate_opens_at_the_consistent_point(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        capture, commit = Stop(), Stop()
        scene.checkpointer.hooks.update(capture=capture, commit=commit)
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        await capture.reached()
        second = asyncio.ensure_future(begin(box, "t2"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(second), 0.05)
        capture.go()
        # Nothing is durable yet, and the tool may run.
        assert (await second).number == 2
        await commit.reached()
        assert box.turn(1).state is TurnState.CAPTURED
        # What it writes now is the second turn's.
        scene.containers["web"].files[b"a"] = b"3"
        commit.go()
        assert scene.files_of((await kept(box, 1)).checkpoint_id) == {b"a": b"2"}
        await end(box, "t2")
        assert scene.files_of((await kept(box, 2)).checkpoint_id) == {b"a": b"3"}


async def test_a_stateless_turn_opens_the_gate_too(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await begin(box, "t1")
        await end(box, "t1")
        turn, gate_ns, _ = await box.begin("s1", "t2", "", take_over=False, gate_timeout_s=10)
        assert turn.timings.gate_ns == gate_ns > 0


async def test_the_gate_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        capture = Stop()
        scene.checkpointer.hooks["inspect"] = capture
        await begin(box, "t1")
        await end(box, "t1")
        await capture.reached()
        with pytest.raises(GateTimeout, match=r"after 0\.01 s"):
            await begin(box, "t2", gate_timeout_s=0.01)
        assert box.open_turn is None
        capture.go()
        assert (await begin(box, "t2")).number == 2


async def test_an_open_gate_needs_no_time(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        assert (await begin(box, "t1", gate_timeout_s=0)).number == 1


async def test_who_leaves_the_gate_leaves_nothing_behind(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        capture = Stop()
        scene.checkpointer.hooks["inspect"] = capture
        await begin(box, "t1")
        await end(box, "t1")
        await capture.reached()
        waiting = asyncio.ensure_future(begin(box, "t2"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert box.open_turn is None
        # Another call is not behind the one that left.
        with pytest.raises(GateTimeout):
            await begin(box, "t2", gate_timeout_s=0.01)
        capture.go()
        assert (await begin(box, "t3")).number == 2


async def _cancelled_begin(scene: Scene, box: SandboxCoordinator) -> None:
    """Begin turn t1, and leave while the journal writes it."""
    writing = Stop()
    scene.journal.hooks["turn_begun"] = writing
    first = asyncio.ensure_future(begin(box, "t1"))
    await writing.reached()
    first.cancel()
    writing.go()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_number_is_not_given_twice_after_a_cancelled_begin(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await _cancelled_begin(scene, box)
        await begin(box, "t2")
        begun = [event.turn for event in scene.journal.events() if event.kind == "turn_begun"]
        assert len(set(begun)) == len(begun)
        assert scene.journal.sandboxes() == [box.record]


async def test_a_cancelled_begin_may_be_repeated(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await _cancelled_begin(scene, box)
        assert (await begin(box, "t1")).number == 1
        with pytest.raises(Conflict):
            await begin(box, "x1", session="s2")
        assert box.open_turn is not None
        assert box.open_turn.harness_turn_id == "t1"


async def test_an_end_cancelled_while_it_is_written(tmp_path: Path) -> None:
    """Repeated, it is captured; and the gate is not held meanwhile."""
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        writing = Stop()
        scene.journal.hooks["turn_ended"] = writing
        first = asyncio.ensure_future(end(box, "t1"))
        await writing.reached()
        first.cancel()
        writing.go()
        with pytest.raises(asyncio.CancelledError):
            await first
        await end(box, "t1")
        assert scene.files_of((await kept(box, 1)).checkpoint_id) == {b"a": b"2"}
        assert (await begin(box, "t2")).number == 2


async def test_one_sandboxs_slow_commit_holds_up_nobody(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        boxes = [await scene.attach(f"box{number}", a=b"1") for number in range(20)]
        commit = Stop("box0")
        scene.checkpointer.hooks["commit"] = commit
        for box in boxes:
            await begin(box, "t1")
            scene.containers[box.record.name].files[b"a"] = box.record.name.encode()
            await end(box, "t1")
        await commit.reached()
        captured = await asyncio.gather(*(box.wait(1, TurnState.CAPTURED, 20) for box in boxes))
        assert all(turn.state.reaches(TurnState.CAPTURED) for turn in captured)
        durable = await asyncio.gather(*(kept(box, 1) for box in boxes[1:]))
        assert [scene.files_of(turn.checkpoint_id)[b"a"] for turn in durable] == [
            box.record.name.encode() for box in boxes[1:]
        ]
        assert boxes[0].turn(1).state is TurnState.CAPTURED
        # The others go on with their next turns, and so does the one itself.
        assert [turn.number for turn in await asyncio.gather(*(begin(box, "t2") for box in boxes))] == [
            2
        ] * 20
        commit.go()
        assert (await kept(boxes[0], 1)).state is TurnState.DURABLE


async def test_captures_of_one_sandbox_build_on_each_other(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"0")
        commit = Stop()
        scene.checkpointer.hooks["commit"] = commit
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"1"
        await end(box, "t1")
        await begin(box, "t2")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t2")
        await commit.reached()
        assert box.turn(2).state is TurnState.ENDED
        commit.go()
        second = await kept(box, 2)
        first = box.turn(1)
        assert second.checkpoint_id is not None
        checkpoint = scene.journal.checkpoint(second.checkpoint_id)
        assert checkpoint is not None
        assert checkpoint.parent_id == first.checkpoint_id
        record = scene.repository.snapshots()[-1]
        assert record.metadata["ancestors"] == [
            first.checkpoint_id,
            next(each.id for each in scene.journal.checkpoints() if each.turn == 0),
        ]


async def test_a_turn_closed_for_a_restore_is_captured_before_it(tmp_path: Path) -> None:
    """What restore and detach do: close the open turn, then take the sandbox for themselves."""
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await box.abandon_open("the sandbox was restored")
        async with box.holding():
            scene.containers["web"].files[b"a"] = b"restored"
            found = box.turn(1)
        await kept(box, 1)
        assert found.state is TurnState.DURABLE
        assert scene.files_of(found.checkpoint_id) == {b"a": b"2"}


async def _hold_and_fail(box: SandboxCoordinator) -> None:
    async with box.holding():
        with pytest.raises(GateTimeout):
            await begin(box, "t1", gate_timeout_s=0.01)
        raise ZeroDivisionError


async def test_the_gate_is_shut_while_somebody_holds_the_sandbox(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        with pytest.raises(ZeroDivisionError):
            await _hold_and_fail(box)
        assert (await begin(box, "t1")).number == 1


@pytest.mark.parametrize("kind", ["captured", "durable"])
async def test_a_harness_state_that_meets_a_commit(tmp_path: Path, kind: str) -> None:
    """The state arrives while the commit is being journaled: neither is lost."""
    state = HarnessState(snapshot_id="0" * 64, size=1, blake3="")
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        writing = Stop()
        scene.journal.hooks[kind] = writing
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        await writing.reached()
        put = asyncio.ensure_future(box.set_harness_state(box.turn(1).number, state))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(put), 0.02)
        writing.go()
        await put
        # Whoever holds the sandbox comes after the commit.
        async with box.holding():
            turn = scene.journal.turn(box.record.id, 1)
        assert turn is not None
        assert turn.harness_state == state
        assert (turn.state, turn.checkpoint_id) == (TurnState.DURABLE, box.record.head_checkpoint_id)


async def test_a_harness_state_that_meets_a_capture(tmp_path: Path) -> None:
    """The turn moves on in memory while the state is being journaled."""
    state = HarnessState(snapshot_id="0" * 64, size=1, blake3="")
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        inspect, writing = Stop(), Stop()
        scene.checkpointer.hooks["inspect"] = inspect
        scene.journal.hooks["harness_state"] = writing
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        await inspect.reached()
        put = asyncio.ensure_future(box.set_harness_state(box.turn(1).number, state))
        await writing.reached()
        inspect.go()
        await box.wait(1, TurnState.CAPTURED, 10)
        writing.go()
        await put
        assert box.turn(1).state.reaches(TurnState.CAPTURED)
        turn = await kept(box, 1)
        assert (turn.harness_state, turn.decision is None) == (state, False)
        assert turn.timings.freeze_ns > 0


async def test_a_harness_state_of_an_open_turn_outlives_its_end(tmp_path: Path) -> None:
    state = HarnessState(snapshot_id="0" * 64, size=1, blake3="")
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        turn = await begin(box, "t1")
        await box.set_harness_state(turn.number, state)
        await end(box, "t1")
        assert (await kept(box, 1)).harness_state == state
        await play_turn(scene, box, "t2", a=b"2")
        assert box.turn(2).harness_state is None
