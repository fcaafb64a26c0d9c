"""Turns as harnesses see them: opened, closed, repeated, taken over, waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
from turnkeep.errors import CaptureFailed, Conflict, TurnFailed, TurnNotFound, WaitTimeout
from turnkeep.model import NO_TURN, TurnMetadata, TurnNumber, TurnState

from tests.coordinator.scene import Fault, Scene, Stop, begin, end, kept, play_turn


async def test_a_turn_that_wrote_becomes_durable(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        attached = box.record.head_checkpoint_id
        turn = await play_turn(scene, box, "t1", a=b"2")
        assert (turn.number, turn.state, turn.parent) == (1, TurnState.DURABLE, 0)
        assert scene.files_of(turn.checkpoint_id) == {b"a": b"2"}
        checkpoint = scene.journal.checkpoint(turn.checkpoint_id) if turn.checkpoint_id else None
        assert checkpoint is not None
        assert (checkpoint.parent_id, checkpoint.turn) == (attached, 1)
        assert box.record.head_checkpoint_id == turn.checkpoint_id


async def test_a_turn_that_changed_nothing_has_its_parents_checkpoint(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        turn = await play_turn(scene, box, "t1")
        assert (turn.state, turn.checkpoint_id) == (TurnState.SKIPPED, box.record.head_checkpoint_id)
        assert scene.files_of(turn.checkpoint_id) == {b"a": b"1"}
        assert len(scene.journal.checkpoints()) == 1


async def test_the_journal_tells_a_turn_in_order(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await play_turn(scene, box, "t1", a=b"2")
        kinds = [event.kind for event in scene.journal.events() if event.turn == 1]
        assert kinds == ["turn_begun", "turn_ended", "classified", "captured", "durable"]


@pytest.mark.parametrize("final", [False, True])
async def test_begin_and_end_may_be_repeated(tmp_path: Path, final: bool) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        first = await begin(box, "t1", label="ls")
        assert await begin(box, "t1", label="ls") == first
        ended = await end(box, "t1", labels={"k": "v"})
        if final:
            ended = await kept(box, 1)
        assert (await end(box, "t1", labels={"k": "v"})).number == ended.number
        assert (await begin(box, "t1", label="ls")).number == 1
        assert box.open_turn is None
        assert box.record.last_turn == 1
        assert [turn.number for turn in scene.journal.turns(box.record.id)] == [1]
        kinds = [event.kind for event in scene.journal.events()]
        assert kinds.count("turn_begun") == kinds.count("turn_ended") == 1


async def test_an_id_is_not_used_for_another_turn(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await begin(box, "t1", label="ls")
        with pytest.raises(Conflict, match="'ls'"):
            await begin(box, "t1", label="rm")
        await end(box, "t1", labels={"k": "v"})
        for labels, metadata in (({"k": "w"}, TurnMetadata()), ({"k": "v"}, TurnMetadata(model="m"))):
            with pytest.raises(Conflict, match="ended before"):
                await box.end("s1", "t1", labels, metadata)


async def test_another_sessions_id_is_another_turn(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await play_turn(scene, box, "t1")
        assert (await begin(box, "t1", session="s2")).number == 2
        with pytest.raises(TurnNotFound):
            await end(box, "t1", session="s3")
        await end(box, "t1", session="s2")


async def test_a_sessions_next_turn_closes_its_last(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        second, _, closed = await box.begin("s1", "t2", "", take_over=False, gate_timeout_s=10)
        assert (second.number, second.parent, closed) == (2, 1, 1)
        first = await kept(box, 1)
        assert (first.state, first.abandoned) == (TurnState.DURABLE, True)
        assert "another turn" in first.state_reason
        assert scene.files_of(first.checkpoint_id) == {b"a": b"2"}


async def test_another_sessions_turn_is_closed_only_by_a_take_over(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await begin(box, "t1")
        with pytest.raises(Conflict, match="another session"):
            await begin(box, "x1", session="s2")
        assert box.open_turn is not None
        assert box.open_turn.number == 1
        taken = await begin(box, "x1", session="s2", take_over=True)
        assert (taken.number, taken.session) == (2, "s2")
        assert "took over" in (await kept(box, 1)).state_reason


async def test_a_late_end_is_recorded_once(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await begin(box, "t1")
        assert await box.abandon_open("its harness was silent") == 1
        assert await box.abandon_open("again") == NO_TURN
        await kept(box, 1)
        late = await end(box, "t1", labels={"k": "v"})
        assert late.labels == {"k": "v"}
        assert (late.state, late.abandoned) == (TurnState.SKIPPED, True)
        assert scene.journal.turn(box.record.id, 1) == late
        with pytest.raises(Conflict):
            await end(box, "t1", labels={"k": "w"})


@pytest.mark.parametrize("wanted", [TurnState.ENDED, TurnState.CAPTURED, TurnState.DURABLE])
async def test_waiting_for_a_skipped_turn_succeeds(tmp_path: Path, wanted: TurnState) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await begin(box, "t1")
        await end(box, "t1")
        assert (await kept(box, 1)).state is TurnState.SKIPPED
        assert (await box.wait(1, wanted, 10)).state is TurnState.SKIPPED


async def test_waiting_for_a_failed_turn_fails_at_once(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        scene.checkpointer.hooks["capture"] = Fault(CaptureFailed("torn", object="x"))
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        for wanted in (TurnState.CAPTURED, TurnState.DURABLE):
            with pytest.raises(TurnFailed, match=r"turn 1 failed: torn \(x\)"):
                await box.wait(1, wanted, 10)
        assert (await box.wait(1, TurnState.ENDED, 10)).state is TurnState.FAILED


async def test_a_wait_ends_with_its_time(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await begin(box, "t1")
        with pytest.raises(WaitTimeout, match="turn 1 is OPEN"):
            await box.wait(1, TurnState.ENDED, 0.01)
        assert (await box.wait(1, TurnState.OPEN, 10)).state is TurnState.OPEN


async def test_a_wait_for_zero_seconds_looks_once(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await play_turn(scene, box, "t1")
        assert (await box.wait(1, TurnState.DURABLE, 0)).state is TurnState.SKIPPED


async def test_the_newest_turn_has_the_number_zero(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        with pytest.raises(TurnNotFound, match="no turn yet"):
            box.turn(0)
        await play_turn(scene, box, "t1")
        await play_turn(scene, box, "t2")
        assert box.turn(0).number == 2
        with pytest.raises(TurnNotFound, match="no turn 3"):
            box.turn(3)


async def test_wait_sees_every_state_on_the_way(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web", a=b"1")
        captured, commit = Stop(), Stop()
        scene.checkpointer.hooks.update(capture=captured, commit=commit)
        await begin(box, "t1")
        scene.containers["web"].files[b"a"] = b"2"
        await end(box, "t1")
        await captured.reached()
        assert (await box.wait(1, TurnState.CLASSIFIED, 10)).state is TurnState.CLASSIFIED
        captured.go()
        await commit.reached()
        turn = await box.wait(1, TurnState.CAPTURED, 10)
        assert (turn.state, turn.checkpoint_id) == (TurnState.CAPTURED, None)
        commit.go()
        assert (await kept(box, 1)).state is TurnState.DURABLE


async def test_numbers_are_never_used_again(tmp_path: Path) -> None:
    async with Scene.open(tmp_path) as scene:
        box = await scene.attach("web")
        await play_turn(scene, box, "t1")
        await play_turn(scene, box, "t2")
        # What a restore to turn 1 records.
        await box.update("restored", "", record={"head_turn": TurnNumber(1)})
        third = await begin(box, "t3")
        assert (third.number, third.parent) == (3, 1)
