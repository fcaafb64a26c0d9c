"""Every other call of the client: what is sent, what comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.client.values import Change, Progress
from turnkeep.errors import InternalError, InvalidRequest, SandboxNotFound, Unsupported
from turnkeep.model import ContainerState, Fidelity, MountKind, RetentionPolicy, TurnClass, Verdict

from tests.client.fake_daemon import FakeDaemon

pytestmark = pytest.mark.asyncio
Connect = Callable[..., Any]


async def test_sandboxes(connect: Connect) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        assert (box.name, box.attached, len(box.key)) == ("web", True, 16)
        assert box.info.container_state is ContainerState.RUNNING
        assert [(mount.kind, mount.covered) for mount in box.info.mounts] == [
            (MountKind.ROOTFS, True),
            (MountKind.BIND, False),
        ]
        assert (box.info.last_turn, box.info.open_turn) == (None, None)
        await (await tk.attach("job")).detach()
        assert [item.name for item in await tk.sandboxes()] == ["web"]
        assert [item.name for item in await tk.sandboxes(include_detached=True)] == ["job", "web"]
        assert (await tk.sandbox("job")).info.attached is False
        assert (await box.refresh()) == box.info


async def test_checkpoints(connect: Connect) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn():
            pass
        made = await box.checkpoint(name="good", tags=["keep"])
        assert (made.name, made.tags, made.turn, made.origin) == ("good", ("keep",), None, "manual")
        first, second, third = await box.checkpoints()
        assert (first.parent_id, second.parent_id, third.parent_id) == (None, first.id, second.id)
        assert (first.is_head, third.is_head) == (False, True)
        assert second.decision is not None
        assert second.decision.turn_class is TurnClass.FILESYSTEM
        assert (first.decision, first.fidelity) == (None, Fidelity.COMPLETE)
        assert await tk.checkpoints() == await box.checkpoints()
        assert await tk.checkpoint(second.id[:12]) == await box.find_checkpoint(1)
        assert (await box.find_checkpoint("good")).id == made.id
        assert (await box.delete_checkpoint("good")).checkpoint_id == made.id
        assert (await tk.delete_checkpoint(second.id)).reparented == 1


async def test_a_restore_by_turn(connect: Connect, daemon: FakeDaemon) -> None:
    steps: list[Progress] = []
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn():
            pass
        done = await box.restore(turn=1, on_progress=steps.append)
    assert [(step.phase, step.done, step.total) for step in steps] == [("write", 0, 3), ("write", 3, 3)]
    assert (done.turn, done.mode, done.verify, done.harness_state) == (1, "live", "changed", None)
    assert done.safety_checkpoint_id is not None
    assert done.expected_digest == done.actual_digest
    assert box.info.head_checkpoint_id == done.checkpoint_id


async def test_a_restore_with_everything(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        [first] = await box.checkpoints()
        done = await box.restore(
            checkpoint=first.id, mode="new", new_name="web2", skip_safety_checkpoint=True, verify="full"
        )
    sent = daemon.service.last("RestoreSandbox")
    assert (sent.mode, sent.new_name, sent.verify) == (pb.RESTORE_MODE_NEW, "web2", pb.VERIFY_MODE_FULL)
    assert sent.ref.checkpoint == first.id
    assert (done.mode, done.verify, done.safety_checkpoint_id) == ("new", "full", None)


@pytest.mark.parametrize(
    "wrong", [{}, {"turn": 1, "checkpoint": "x"}, {"turn": 1, "mode": "warm"}, {"turn": 1, "verify": "some"}]
)
async def test_a_restore_that_makes_no_sense(connect: Connect, wrong: dict[str, Any]) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        with pytest.raises(InvalidRequest):
            await box.restore(**wrong)


async def test_differences(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        async with box.turn():
            pass
        found = [item async for item in box.diff(1)]
        assert not daemon.service.last("DiffCheckpoints").HasField("to")
        first, second = await box.checkpoints()
        assert [item async for item in tk.diff(first.id, second.id)] == found
    assert [item.path for item in found] == ["/work/new", "/work/a"]
    assert found[0] == Change(
        path="/work/new", change="added", before_type=None, after_type="file",
        before_size=0, after_size=5, before_mode=0, after_mode=0,
    )  # fmt: skip


async def test_events_go_on_where_they_broke(connect: Connect, daemon: FakeDaemon) -> None:
    for kind in ("attached", "turn_begun", "turn_ended"):
        daemon.service.add_event(kind, details_json='{"a": 1}')
    daemon.service.lose("WatchEvents")
    async with connect() as tk, contextlib.aclosing(tk.events(after=1)) as events:
        seen = [(await anext(events)).kind, (await anext(events)).kind]
        daemon.service.add_event("durable", details_json="not json", turn=3)
        last = await anext(events)
    assert seen == ["turn_begun", "turn_ended"]
    assert (last.kind, last.turn, last.details) == ("durable", 3, {"raw": "not json"})
    assert daemon.service.last("WatchEvents").after_sequence == 3


async def test_events_end_with_their_time(connect: Connect, daemon: FakeDaemon) -> None:
    daemon.service.add_event("attached")
    daemon.service.add_event("detached")
    async with connect() as tk:
        assert [item.kind async for item in tk.events(after=1, for_s=0.2)] == ["detached"]


async def test_pruning_and_checking(connect: Connect, daemon: FakeDaemon) -> None:
    steps: list[Progress] = []
    async with connect() as tk:
        pruned = await tk.prune(RetentionPolicy(keep_last=3, keep_tags=("*",)), on_progress=steps.append)
        assert (pruned.freed_bytes, pruned.dry_run) == (2048, False)
        sent = daemon.service.last("PruneStore").policy
        assert (sent.keep_last, list(sent.keep_tags)) == (3, ["*"])
        assert (await tk.prune(dry_run=True)).dry_run
        assert not daemon.service.last("PruneStore").HasField("policy")
        assert (await tk.check(on_progress=steps.append)).ok
        daemon.service.problems = ["pack 1 is cut"]
        assert (await tk.check(skip_data=True)).problems == ("pack 1 is cut",)
    assert [(step.phase, step.total) for step in steps] == [("mark", 2), ("read", None)]


async def test_status(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        assert (await tk.status()).engine_version == "27.1"
        daemon.service.status.engine_version = ""
        assert (await tk.status()).engine_version is None


async def test_an_examination(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        await tk.attach("web")
        criu, runtime = await tk.examine()
        assert (criu.what, criu.verdict, criu.fix) == ("criu", Verdict.OK, "")
        assert (runtime.verdict, runtime.fix) == (Verdict.DEGRADED, "register it")
        assert (await tk.examine("web", self_test=True))[-1].detail == "web runs"
        sent = daemon.service.last("ExamineHost")
        assert (sent.sandbox, sent.self_test) == ("web", True)
        with pytest.raises(SandboxNotFound):
            await tk.examine("nobody")
        daemon.service.findings[0].verdict = 9  # type: ignore[assignment]
        with pytest.raises(Unsupported, match="verdict 9"):
            await tk.examine()


async def test_work_without_a_result_is_a_defect(connect: Connect, daemon: FakeDaemon) -> None:
    def nothing(request: Any, context: grpc.ServicerContext) -> Any:
        return iter(())

    daemon.stop()
    daemon.service.CheckStore = nothing  # type: ignore[method-assign]
    daemon.start()
    async with connect() as tk:
        with pytest.raises(InternalError, match="CheckStore without a result"):
            await tk.check()


async def test_what_a_newer_daemon_says_is_an_error(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        daemon.service.sandboxes[box.key].mounts[0].kind = "quantum"
        with pytest.raises(Unsupported, match="mount kind 'quantum'"):
            await box.refresh()
        daemon.service.outcome = 77  # type: ignore[assignment]
        with pytest.raises(Unsupported, match="turn state 77"):
            async with box.turn():
                pass


async def test_fork(connect: Connect, daemon: FakeDaemon) -> None:
    async with connect() as tk:
        box = await tk.attach("web")
        copies = await box.fork(2)
        assert [copy.name for copy in copies] == ["web-fork-1", "web-fork-2"]
        assert all(copy.attached for copy in copies)
        seen: list[Progress] = []
        done = await tk.fork("web", names=["a"], on_progress=seen.append)
        assert [each.name for each in done.sandboxes] == ["a"]
        assert seen
        with pytest.raises(InvalidRequest):
            await box.fork(0)
