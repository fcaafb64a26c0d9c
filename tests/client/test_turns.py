"""Turns through the client: brackets, waits, harness states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.client.handles import EXCEPTION_LABEL
from turnkeep.errors import Conflict, InvalidRequest, TurnFailed, TurnNotFound, WaitTimeout
from turnkeep.model import TurnMetadata, TurnState

from tests.client.fake_daemon import FakeDaemon

pytestmark = pytest.mark.asyncio
Connect = Callable[..., Any]


async def test_a_turn_is_begun_and_ended(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn("pytest", labels={"a": "1"}) as turn:
            turn.labels["b"] = "2"
            turn.metadata = TurnMetadata(model="m", prompt_tokens=3, extra={"k": "v"})
            assert str(turn.info.state) == "OPEN"
        assert (turn.number, turn.gate_wait_ns, turn.error) == (1, 1_500_000, None)
        assert turn.info.state is TurnState.DURABLE
        assert turn.info.labels == {"a": "1", "b": "2"}
        assert turn.info.metadata == TurnMetadata(model="m", prompt_tokens=3, extra={"k": "v"})
    begin, end = daemon.service.last("BeginTurn"), daemon.service.last("EndTurn")
    assert (begin.session, begin.harness_turn_id) == (end.session, end.harness_turn_id)
    assert begin.session == tk.session


async def test_turns_of_one_connection_share_a_session(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn():
            pass
        async with box.turn(harness_turn_id="mine"):
            pass
    sent = [request for name, request in daemon.service.requests if name == "BeginTurn"]
    assert len({request.session for request in sent}) == 1
    assert sent[1].harness_turn_id == "mine"
    assert [turn.number for turn in daemon.service.turns[box.key]] == [1, 2]


async def test_an_exception_passes_through_and_is_labelled(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        with pytest.raises(ZeroDivisionError):
            async with box.turn() as turn:
                raise ZeroDivisionError
        assert turn.info.labels == {EXCEPTION_LABEL: "ZeroDivisionError"}


async def test_an_exception_is_not_replaced_by_a_failing_end(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        daemon.service.refuse("EndTurn", Conflict("it was taken over"))
        with pytest.raises(ZeroDivisionError) as raised:
            async with box.turn() as turn:
                raise ZeroDivisionError
        assert "it was taken over" in raised.value.__notes__[0]
        assert isinstance(turn.error, Conflict)


async def test_a_failing_end_is_raised(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        daemon.service.refuse("EndTurn", Conflict("it was taken over"))
        with pytest.raises(Conflict):
            async with box.turn():
                pass


async def test_a_turn_left_open_is_reported(connect: Connect) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        await box.turn("left open").begin()
        async with box.turn() as turn:
            assert turn.abandoned_turn == 1


async def test_another_session_has_to_take_over(connect: Connect) -> None:
    async with connect() as first, connect() as second:
        await (await first.attach("web")).turn().begin()
        box = await second.attach("web")
        with pytest.raises(Conflict):
            async with box.turn():
                raise AssertionError("the body must not run")
        async with box.turn(take_over=True) as turn:
            assert turn.number == 2


async def test_a_turn_begun_elsewhere_can_be_ended(connect: Connect) -> None:
    async with connect() as first, connect() as second:
        await (await first.attach("web")).turn("from elsewhere").begin()
        box = await second.sandbox("web")
        turn = await box.adopt(1)
        assert turn.label == "from elsewhere"
        await turn.end()
        assert turn.info.state is TurnState.DURABLE
        with pytest.raises(TurnNotFound):
            await box.adopt(2)


@pytest.mark.parametrize("state", ["CAPTURED", "durable", TurnState.DURABLE])
async def test_waiting(connect: Connect, daemon: FakeDaemon, state: str) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn() as turn:
            pass
        assert (await turn.wait(state, timeout_s=0.0001)).state is TurnState.DURABLE
        assert daemon.service.last("WaitTurn").timeout_ms == 1
        assert (await box.wait(turn.number, state)).number == 1
        assert daemon.service.last("WaitTurn").timeout_ms == 0


async def test_a_skipped_turn_has_reached_all(connect: Connect, daemon: FakeDaemon) -> None:
    daemon.service.outcome = pb.TURN_STATE_SKIPPED
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn() as turn:
            pass
        assert (await turn.wait()).state is TurnState.SKIPPED


async def test_waiting_for_a_failed_turn_raises(connect: Connect, daemon: FakeDaemon) -> None:
    daemon.service.outcome = pb.TURN_STATE_FAILED
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn() as turn:
            pass
        with pytest.raises(TurnFailed, match="the disk is full"):
            await turn.wait("CAPTURED")


async def test_waiting_in_vain_raises(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn() as turn:
            with pytest.raises(WaitTimeout):
                await turn.wait()
        with pytest.raises(InvalidRequest, match="no turn state"):
            await turn.wait("DONE")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 64 << 20])
async def test_harness_state(connect: Connect, daemon: FakeDaemon, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn() as turn:
            pass
        stored = await turn.put_state(data)
        assert (stored.turn, stored.size) == (1, size)
        assert await box.state(1) == data
        restored = await box.restore(turn=1)
        assert restored.harness_state == data
    pieces = daemon.service.last("PutTurnState")
    assert max(len(piece.data) for piece in pieces) <= 1 << 20


async def test_listing_turns(connect: Connect) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        for label in "abc":
            async with box.turn(label):
                pass
        assert [turn.label for turn in await box.turns()] == ["a", "b", "c"]
        assert [turn.label for turn in await box.turns(after=1)] == ["b", "c"]
        assert [turn.label for turn in await box.turns(limit=1)] == ["c"]


async def test_detaching_is_heard(connect: Connect) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        await box.detach()
        assert (box.known, box.attached) == (True, False)
        await box.attach()
        assert box.attached


async def test_progress_that_raises_ends_the_call(connect: Connect) -> None:
    def refuse(step: object) -> None:
        raise ZeroDivisionError

    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn():
            pass
        with pytest.raises(ZeroDivisionError):
            await box.restore(turn=1, on_progress=refuse)
        assert (await tk.status()).pid == 42
