"""What a harness sees when something is wrong: one error of Turnkeep, or nothing."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from turnkeep.errors import (
    Conflict,
    ContainerNotFound,
    DaemonUnavailable,
    GateTimeout,
    InternalError,
    InvalidRequest,
    ResourceExhausted,
    TurnkeepError,
    Unsupported,
    error_classes,
)

from tests.client.fake_daemon import FakeDaemon

Connect = Callable[..., Any]


@pytest.mark.asyncio
@pytest.mark.parametrize("reason", sorted(error_classes()))
async def test_the_daemons_errors_arrive_whole(connect: Connect, daemon: FakeDaemon, reason: str) -> None:
    cls = error_classes()[reason]
    daemon.service.refuse("GetHostStatus", cls("what", object="which", hint="do"))
    async with connect() as tk:
        with pytest.raises(cls) as raised:
            await tk.status()
    error = raised.value
    assert (type(error), error.message, error.object, error.hint) == (cls, "what", "which", "do")
    assert daemon.service.count("GetHostStatus") == 1


@pytest.mark.asyncio
async def test_a_reason_of_a_newer_daemon(connect: Connect, daemon: FakeDaemon) -> None:
    error = TurnkeepError("what", object="which")
    error.reason = "NOT_YET_INVENTED"  # type: ignore[misc]
    daemon.service.refuse("GetHostStatus", error)
    async with connect() as tk:
        with pytest.raises(TurnkeepError, match="what"):
            await tk.status()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, Unsupported),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DaemonUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.PERMISSION_DENIED, DaemonUnavailable),
        (grpc.StatusCode.UNKNOWN, InternalError),
    ],
)
async def test_bare_codes(
    connect: Connect, daemon: FakeDaemon, code: grpc.StatusCode, cls: type[TurnkeepError]
) -> None:
    daemon.service.refuse("GetHostStatus", code)
    async with connect() as tk:
        with pytest.raises(TurnkeepError) as raised:
            await tk.status()
    assert type(raised.value) is cls
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.asyncio
async def test_no_daemon(connect: Connect, tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/nobody"
    async with connect(address, retry_s=0.05) as tk:
        with pytest.raises(DaemonUnavailable, match="no Turnkeep daemon listens there") as raised:
            await tk.attach("web")
    assert raised.value.object == address
    assert "turnkeep serve" in raised.value.hint


@pytest.mark.asyncio
async def test_a_socket_that_nobody_serves(connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "dead").touch()
    async with connect(str(tmp_path / "dead"), retry_s=0.05) as tk:
        with pytest.raises(DaemonUnavailable, match="does not answer"):
            await tk.status()


@pytest.mark.asyncio
async def test_a_closed_connection(connect: Connect) -> None:
    tk = connect()
    await tk.status()
    await tk.close()
    with pytest.raises(InvalidRequest, match="closed"):
        await tk.status()


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_calls_are_repeated_over_a_restart(
    connect: Connect, daemon: FakeDaemon, code: grpc.StatusCode
) -> None:
    for method in ("AttachSandbox", "BeginTurn", "EndTurn", "WaitTurn", "CheckStore", "GetTurnState"):
        daemon.service.refuse(method, code, times=2)
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn() as turn:
            pass
        await turn.wait()
        await turn.put_state(b"abc")
        assert await box.state(1) == b"abc"
        assert (await tk.check()).ok
    assert daemon.service.count("BeginTurn") == 3


@pytest.mark.asyncio
async def test_lost_answers_do_nothing_twice(connect: Connect, daemon: FakeDaemon) -> None:
    service = daemon.service
    methods = ("AttachSandbox", "BeginTurn", "EndTurn", "CreateCheckpoint", "RestoreSandbox")
    for method in (*methods, "PutTurnState"):
        service.lose(method)
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn() as turn:
            pass
        await turn.put_state(b"abc" * 1_000_000)
        await box.checkpoint(name="good")
        await box.restore(turn=1)
        assert len(await box.turns()) == 1
        origins = [item.origin for item in await box.checkpoints()]
        assert origins == ["attach", "turn", "manual", "before-restore"]
    for method in methods:
        first, second = (request for name, request in service.requests if name == method)
        assert first == second


@pytest.mark.asyncio
async def test_what_is_not_safe_is_not_repeated(connect: Connect, daemon: FakeDaemon) -> None:
    daemon.service.lose("DeleteCheckpoint")
    daemon.service.refuse("PruneStore", grpc.StatusCode.UNAVAILABLE)
    daemon.service.lose("DiffCheckpoints")
    async with connect() as tk:
        box = await tk.attach("web")
        made = await box.checkpoint()
        with pytest.raises(DaemonUnavailable):
            await tk.delete_checkpoint(made.id)
        with pytest.raises(DaemonUnavailable):
            await tk.prune()
        [first] = await box.checkpoints()
        changes = tk.diff(first.id, first.id)
        assert [(await anext(changes)).path, (await anext(changes)).path] == ["/work/new", "/work/a"]
        with pytest.raises(DaemonUnavailable):
            await anext(changes)


@pytest.mark.asyncio
async def test_a_daemon_that_comes_back(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect(retry_s=30) as tk:
        box = await tk.attach("web")
        daemon.stop()
        back = threading.Thread(target=daemon.start)
        back.start()
        async with box.turn() as turn:
            back.join()
            daemon.stop()
            daemon.start()
        assert turn.number == 1
        assert (await turn.wait()).number == 1


@pytest.mark.asyncio
async def test_ignoring_an_absent_daemon(
    connect: Connect, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.stop()
    ran = []
    with caplog.at_level(logging.WARNING, "turnkeep"):
        async with connect(on_error="ignore", retry_s=0.2) as tk:
            box = await tk.attach("web")
            assert not box.attached
            with pytest.raises(Conflict, match="not attached yet"):
                _ = box.info
            for _ in range(3):
                async with box.turn() as turn:
                    ran.append(turn.number)
                assert isinstance(turn.error, DaemonUnavailable)
                assert await turn.put_state(b"state") is None
            assert [record.name for record in caplog.records] == ["turnkeep"]
            with pytest.raises(DaemonUnavailable):
                await turn.wait()
            with pytest.raises(DaemonUnavailable):
                await box.restore(turn=1)
            daemon.start()
            async with box.turn() as turn:
                ran.append(turn.number)
            assert box.attached
    assert ran == [None, None, None, 1]
    assert turn.error is None


@pytest.mark.asyncio
async def test_ignoring_a_daemon_that_goes_in_a_turn(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect(on_error="ignore", retry_s=0.2) as tk:
        box = await tk.attach("web")
        async with box.turn() as turn:
            daemon.stop()
        assert turn.number == 1
        assert isinstance(turn.error, DaemonUnavailable)


@pytest.mark.asyncio
async def test_what_ignore_covers(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect(on_error="ignore") as tk:
        with pytest.raises(ContainerNotFound):
            await tk.attach("nothing")
        box = await tk.attach("web")
        daemon.service.refuse("BeginTurn", GateTimeout("a capture takes long"))
        async with box.turn() as turn:
            pass
        assert isinstance(turn.error, GateTimeout)
        daemon.service.refuse("BeginTurn", Conflict("another session's"))
        with pytest.raises(Conflict):
            async with box.turn():
                raise AssertionError("the body must not run")


def test_a_socket_one_may_not_open() -> None:
    # Not in tmp_path: others may not even look into that.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        daemon = FakeDaemon(Path(folder, "s"))
        daemon.start()
        os.chmod(Path(folder, "s"), 0)
        command = [sys.executable, "-c", _ASK_AS_NOBODY, daemon.address]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        daemon.stop()
    assert (done.stdout, done.returncode) == ("you may not open the socket\n", 0), done.stderr


_ASK_AS_NOBODY = """
import os, sys, turnkeep
connect = turnkeep.connect
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    connect(sys.argv[1], retry_s=60).status()
except turnkeep.DaemonUnavailable as error:
    print(error)
"""
