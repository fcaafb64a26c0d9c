"""`--json`: the keys that scripts may rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from turnkeep.errors import ExitCode, TurnkeepError, error_classes
from typer.testing import Result

from tests.client.fake_daemon import FakeDaemon

Ask = Callable[..., Any]
Run = Callable[..., Result]


def keys(names: str) -> set[str]:
    return set(names.split())


TURN = keys(
    "sandbox_id number harness_turn_id session state state_reason parent label labels "
    "metadata decision checkpoint_id began_at_ns ended_at_ns timings changed_files "
    "changed_bytes stored_bytes harness_state_bytes abandoned"
)
CHECKPOINT = keys(
    "id sandbox_id parent_id turn name tags created_at_ns digest fidelity decision mounts "
    "not_captured changed_files changed_bytes stored_bytes origin is_head image processes"
)
SANDBOX = keys(
    "id name container_id image_id container_state attached attached_at_ns last_turn "
    "open_turn head_checkpoint_id head_turn mounts turns stored_bytes note"
)


def test_sandboxes(ask: Ask, web: FakeDaemon) -> None:
    [row] = ask("ps")
    assert set(row) == SANDBOX
    assert row["mounts"][1] == {
        "target": "/host",
        "kind": "bind",
        "covered": False,
        "reason": "its label does not say so",
    }
    assert set(ask("attach", "web")) == set(ask("detach", "web")) == SANDBOX


def test_log_and_show(ask: Ask, web: FakeDaemon) -> None:
    log = ask("log", "web")
    assert set(log) == {"sandbox", "turns", "checkpoints"}
    assert (set(log["turns"][0]), set(log["checkpoints"][0])) == (TURN, CHECKPOINT)
    assert len(ask("log", "web", "-n", "1")["turns"]) == 1
    assert len(ask("log", "web", "-n", "1")["checkpoints"]) == 4
    shown = ask("show", "web@2")
    assert shown["turn"] == log["turns"][1]
    assert shown["checkpoint"]["id"] == log["turns"][1]["checkpoint_id"]
    assert shown["turn"]["decision"]["changed_paths"] == ["/work/a", "/work/new"]
    assert ask("show", "web@good")["turn"] is None


def test_checkpoints(ask: Ask, web: FakeDaemon) -> None:
    assert set(ask("checkpoint", "create", "web")) == CHECKPOINT
    assert [set(item) for item in ask("checkpoint", "list")] == [CHECKPOINT] * 5
    assert set(ask("checkpoint", "delete", "web@good")) == {"checkpoint_id", "reparented"}
    assert set(ask("diff", "web@1")[0]) == keys(
        "path change before_type after_type before_size after_size before_mode after_mode"
    )


def test_turns(ask: Ask, web: FakeDaemon) -> None:
    assert set(ask("turn", "begin", "web")) == TURN | {"gate_wait_ns", "abandoned_turn"}
    assert set(ask("turn", "end", "web")) == set(ask("turn", "wait", "web")) == TURN


def test_restore(ask: Ask, web: FakeDaemon) -> None:
    done = ask("restore", "web@1")
    assert set(done) == keys(
        "sandbox checkpoint_id turn mode mode_reason safety_checkpoint_id expected_digest "
        "actual_digest verify changed_paths written_bytes freeze_ns total_ns notes "
        "stopped_processes harness_state_bytes"
    )
    assert done["harness_state_bytes"] is None


def test_the_store_and_the_host(ask: Ask, daemon: FakeDaemon) -> None:
    assert set(ask("prune")) == keys(
        "deleted_checkpoints kept_checkpoints freed_bytes stored_bytes dry_run notes"
    )
    assert set(ask("check")) == keys(
        "ok problems checkpoints blobs bytes index_rebuilt followed journal_head repaired"
    )
    assert {tuple(item) for item in ask("doctor")} == {("what", "verdict", "detail", "fix")}
    daemon.service.add_event("attached")
    daemon.service.add_event("durable", turn=3, details_json='{"a": 1}')
    [_, event] = ask("events")
    assert set(event) == keys("sequence time_ns kind sandbox_id sandbox_name turn message details")
    assert event["details"] == {"a": 1}


@pytest.mark.parametrize("reason", sorted(error_classes()))
def test_every_error_has_its_exit_code(run: Run, daemon: FakeDaemon, reason: str) -> None:
    cls = error_classes()[reason]
    for _ in range(2):
        daemon.service.refuse("ListSandboxes", cls("it went wrong.", object="web", hint="try this"))
    done = run("ps", "--json")
    assert done.exit_code == cls.exit_code
    assert done.stdout == ""
    assert json.loads(done.stderr) == {
        "error": {
            "reason": reason,
            "message": "it went wrong.",
            "object": "web",
            "hint": "try this",
            "exit_code": int(cls.exit_code),
        }
    }
    done = run("ps")
    assert (done.exit_code, done.stderr) == (cls.exit_code, "turnkeep: it went wrong. (web). try this\n")


def test_exit_codes_are_distinct_from_the_shells() -> None:
    assert {int(code) for code in ExitCode} == set(range(12))
    assert TurnkeepError.exit_code is ExitCode.FAILED
