"""Several harnesses at one daemon: none sees, restores or forks what is another's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import turnkeep
from turnkeep.client.sync import Client, Sandbox
from turnkeep.errors import (
    CheckpointNotFound,
    ContainerNotFound,
    NotAllowed,
    ResourceExhausted,
    SandboxNotFound,
    TurnkeepError,
)
from turnkeep.runtime.engine import OWNER_LABEL

from tests.certificates import Certificates
from tests.e2e.harness import Box, Daemon, turn, wait_until


@dataclasses.dataclass
class Parties:
    """A daemon that is called by two harnesses, a viewer and an operator over TLS, and by root."""

    daemon: Daemon
    root: Client
    h1: Client
    h2: Client
    viewer: Client
    operator: Client


@pytest.fixture
def parties(start_daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[Parties]:
    certificates = Certificates(tmp_path)
    settings = certificates.settings()
    daemon = start_daemon(
        f"""
        auto_attach = false
        [access]
        operators = ["cert:ops"]
        harnesses = ["cert:h1", "cert:h2"]
        viewers = ["cert:looker"]
        listen = "{settings.listen}"
        certificate = "{settings.certificate}"
        key = "{settings.key}"
        client_authority = "{settings.client_authority}"
        [access.quota]
        sandboxes = 3
        """
    )
    served = wait_until(
        lambda: [each for each in daemon.events() if each["event"] == "serving TLS"], "TLS is served"
    )
    address = f"tls://localhost:{served[0]['port']}"
    with ExitStack() as stack:

        def connect(name: str) -> Client:
            return stack.enter_context(turnkeep.connect(address, tls=certificates.issue(name, name)))

        yield Parties(
            daemon,
            stack.enter_context(daemon.connect()),
            *(connect(name) for name in ("h1", "h2", "looker", "ops")),
        )


@pytest.fixture
def boxes(make: Callable[..., Box]) -> tuple[Box, Box]:
    """A sandbox of each harness."""
    return make(labels={OWNER_LABEL: "cert:h1"}), make(labels={OWNER_LABEL: "cert:h2"})


def _said(call: Callable[[], Any]) -> tuple[type[TurnkeepError], str, str]:
    with pytest.raises(TurnkeepError) as raised:
        call()
    return type(raised.value), raised.value.message, raised.value.hint


def _as_if_absent(call: Callable[[str], Any], name: str, absent: str) -> type[TurnkeepError]:
    """Assert that another's is refused in the very words for what does not exist; return the error."""
    refused, unknown = _said(lambda: call(name)), _said(lambda: call(absent))
    assert [each.replace(name, "?") for each in refused[1:]] == [
        each.replace(absent, "?") for each in unknown[1:]
    ]
    assert refused[0] is unknown[0]
    return refused[0]


def test_what_is_anothers_is_not_there(parties: Parties, boxes: tuple[Box, Box]) -> None:
    mine, other = boxes
    first = parties.h1.attach(mine.name)
    second = parties.h2.attach(other.name)
    kept = turn(mine, first, "echo 1 > /mine")
    theirs = turn(other, second, "echo 2 > /theirs")
    second.put_state(theirs.number, b"a secret conversation")
    assert [each.name for each in parties.h1.sandboxes()] == [mine.name]
    assert {each.sandbox_id for each in parties.h1.checkpoints()} == {first.info.id}
    assert _as_if_absent(parties.h1.attach, other.name, "nonexistent") is ContainerNotFound
    for name in (other.name, second.info.id, other.container.id or ""):
        absent = "f" * len(name)
        calls: list[Callable[[str], Any]] = [
            lambda name: parties.h1.sandbox(name).info,
            lambda name: parties.h1.sandbox(name).turns(),
            lambda name: parties.h1.sandbox(name).wait(1),
            lambda name: parties.h1.sandbox(name).state(1),
            lambda name: parties.h1.sandbox(name).restore(turn=1),
            lambda name: parties.h1.sandbox(name).fork(1),
            lambda name: parties.h1.sandbox(name).checkpoint(),
            lambda name: parties.h1.sandbox(name).detach(),
            lambda name: list(parties.h1.events(name, after=0)),
        ]
        for call in calls:
            assert _as_if_absent(call, name, absent) is SandboxNotFound
    assert theirs.checkpoint_id is not None
    by_id: list[Callable[[str], Any]] = [
        parties.h1.checkpoint,
        parties.h1.delete_checkpoint,
        lambda name: first.restore(checkpoint=name),
        lambda name: first.restore(checkpoint=name, mode="new", new_name=f"{mine.name}-new"),
        lambda name: first.fork(1, ref=name),
        lambda name: list(parties.h1.diff(name, kept.checkpoint_id or "")),
    ]
    for call in by_id:
        for length in (64, 12, 4):
            name, absent = theirs.checkpoint_id[:length], "f" * length
            assert _as_if_absent(call, name, absent) is CheckpointNotFound
    assert other.sh("cat /theirs") == "2\n"
    assert {each.sandbox_name for each in parties.h1.events(after=0, follow=False)} == {mine.name}
    status = parties.h1.status()
    assert (status.sandboxes, status.recovery) == (1, ())


def test_a_copy_belongs_to_whom_the_original_does(parties: Parties, boxes: tuple[Box, Box]) -> None:
    mine, other = boxes
    first = parties.h1.attach(mine.name)
    parties.h2.attach(other.name)
    turn(mine, first, "echo 1 > /mine")
    (copy,) = first.fork(1)
    assert isinstance(copy, Sandbox)
    assert {each.name for each in parties.h1.sandboxes()} == {mine.name, copy.name}
    assert [each.name for each in parties.h2.sandboxes()] == [other.name]
    result = first.restore(turn=1, mode="new", new_name=f"{mine.name}-new")
    assert result.sandbox.name == f"{mine.name}-new"
    assert _said(lambda: first.fork(1))[0] is ResourceExhausted
    parties.daemon.stop()
    parties.daemon.start()
    with parties.daemon.connect() as root:
        assert len(root.sandboxes()) == 4


def test_roles(parties: Parties, boxes: tuple[Box, Box]) -> None:
    mine, _ = boxes
    sandbox = parties.h1.attach(mine.name)
    turn(mine, sandbox, "echo 1 > /mine")
    assert [each.name for each in parties.viewer.sandboxes()] == [mine.name]
    assert len(parties.viewer.sandbox(mine.name).turns()) == 1
    for call in (
        lambda: parties.viewer.sandbox(mine.name).restore(turn=1),
        lambda: parties.viewer.sandbox(mine.name).state(1),
        lambda: parties.viewer.attach(mine.name),
        lambda: parties.h1.prune(),
        lambda: parties.h1.check(),
        lambda: list(parties.h1.export_journal()),
        lambda: parties.h1.examine(),
    ):
        assert _said(call)[0] is NotAllowed
    assert parties.operator.check().ok
    assert parties.operator.sandbox(mine.name).restore(turn=1).turn == 1
    lines = [json.loads(line) for line in (parties.daemon.state / "audit.jsonl").read_text().splitlines()]
    seen = {(each["caller"], each["call"], each["sandbox"], each["outcome"]) for each in lines}
    assert ("cert:h1", "AttachSandbox", mine.name, "ok") in seen
    assert ("cert:h1", "BeginTurn", sandbox.info.id, "ok") in seen
    assert ("cert:looker", "RestoreSandbox", sandbox.info.id, "NOT_ALLOWED") in seen
    assert ("cert:ops", "RestoreSandbox", sandbox.info.id, "ok") in seen
    assert ("user:root", "GetHostStatus", "", "ok") in seen
