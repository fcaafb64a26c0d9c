"""Every command's happy path, for people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import turnkeep
from turnkeep.api.v1 import turnkeep_pb2 as pb
from typer.testing import Result

from tests.client.fake_daemon import FakeDaemon

Run = Callable[..., Result]


def lines(done: Result) -> list[str]:
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_attach_and_detach(run: Run, daemon: FakeDaemon) -> None:
    said = lines(run("attach", "web"))
    assert said[0].startswith("attached web (sandbox ")
    assert said[1] == "not covered: /host (bind): its label does not say so"
    assert lines(run("detach", "web"))[0].startswith("detached web")
    assert len(lines(run("ps"))) == 1
    assert "running, detached" in lines(run("ps", "--all"))[1]


def test_ps(run: Run, web: FakeDaemon) -> None:
    web.service.sandboxes[next(iter(web.service.sandboxes))].note = "it was restarted"
    head, row = lines(run("ps"))
    assert " ".join(head.split()) == "SANDBOX STATE HEAD TURNS DURABLE SKIPPED FAILED STORED NOTE"
    assert row.split()[:2] == ["web", "running"]
    assert row.endswith("it was restarted; not covered: /host")


def test_log(run: Run, web: FakeDaemon) -> None:
    rows = lines(run("log", "web"))[1:]
    assert [row.split()[0] for row in rows] == ["-*", "2", "1", "-"]
    assert "@good keep" in rows[0]
    assert "FILESYSTEM  2 files changed" in rows[1]
    assert "3.0 ms" in rows[1]
    assert len(lines(run("log", "web", "-n", "1"))) == 2


def test_log_graph(run: Run, web: FakeDaemon) -> None:
    rows = lines(run("log", "web", "--graph"))[1:]
    assert [row[0] for row in rows] == ["◆", "●", "●", "◆"]


def test_show_a_turn(run: Run, web: FakeDaemon) -> None:
    said = "\n".join(lines(run("show", "web@2")))
    for part in (
        "2 of web, after turn 1",
        "pytest -q",
        "2 files changed",
        "/work/a",
        "frozen for 3.0 ms, captured after 9.0 ms",
        "/host (bind) is not covered: its label does not say so",
    ):
        assert part in said


def test_show_a_skipped_turn(run: Run, web: FakeDaemon) -> None:
    web.service.outcome = pb.TURN_STATE_SKIPPED
    with turnkeep.connect(web.address) as tk, tk.sandbox("web").turn("ls"):
        pass
    said = "\n".join(lines(run("show", "web@3")))
    assert "STATELESS" in said
    assert "(that of manual: nothing had to be kept)" in said


def test_show_evidence(run: Run, web: FakeDaemon) -> None:
    turn = next(iter(web.service.turns.values()))[0]
    turn.decision.changed_path_count = 100
    turn.decision.cache_path_count = 40
    turn.decision.processes.append("77 sshd (born)")
    turn.decision.unsure.append("the scan overflowed")
    first = web.service.checkpoints[1]
    first.fidelity = pb.FIDELITY_FILES_ONLY
    first.not_captured.append("the process sshd")
    said = "\n".join(lines(run("show", "web@1")))
    for part in ("… and 98 more paths", "40 of them derived caches", "77 sshd (born)", "the scan overflowed"):
        assert part in said
    assert "files only: stateful processes ran and were not captured" in said
    assert "the process sshd" in said
    assert "(files only)" in "\n".join(lines(run("log", "web")))


def test_show_a_checkpoint(run: Run, web: FakeDaemon) -> None:
    good = web.service.checkpoints[-1].id
    by_name, by_id = run("show", "web@good"), run("show", good[:12])
    assert by_name.stdout == by_id.stdout
    assert good in by_id.stdout
    assert "origin" not in by_id.stdout


def test_diff(run: Run, web: FakeDaemon) -> None:
    wanted = ["A /work/new", "M /work/a  1 B → 2 B"]
    first, second = web.service.checkpoints[1].id, web.service.checkpoints[2].id
    assert lines(run("diff", "web@1")) == wanted
    assert lines(run("diff", "web@1", "2")) == wanted
    assert web.service.last("DiffCheckpoints").to.turn == 2
    assert lines(run("diff", first[:12], second[:12])) == wanted


def test_events(run: Run, daemon: FakeDaemon) -> None:
    daemon.service.add_event("attached", sandbox_name="web")
    daemon.service.add_event("durable", sandbox_name="web", turn=3, message="turn 3 is durable")
    [_, said] = lines(run("events"))
    assert said.split()[0] == "2"
    assert said.endswith("turn 3 is durable")


def test_checkpoints(run: Run, web: FakeDaemon) -> None:
    [made] = lines(run("checkpoint", "create", "web", "--name", "two", "--tag", "a", "--tag", "b"))
    assert len(made) == 64
    rows = lines(run("checkpoint", "list"))[1:]
    assert lines(run("checkpoint", "list", "web"))[1:] == rows
    assert rows[-1].startswith(made[:12] + "*")
    assert rows[-1].endswith("a, b")
    assert lines(run("checkpoint", "delete", "web@two")) == [
        f"deleted {made[:12]}; 1 child moved to its parent"
    ]
    assert run("checkpoint", "delete", made).exit_code == 3


def test_restore(run: Run, web: FakeDaemon, tmp_path: Path) -> None:
    with turnkeep.connect(web.address) as tk:
        tk.sandbox("web").put_state(1, b"chat")
    file = tmp_path / "chat"
    said = "\n".join(lines(run("restore", "web@1", "--verify", "full", "--state-file", str(file))))
    for part in ("web to turn 1", "live: no stateful", "read again: all", "caches were left alone", "4 B"):
        assert part in said
    assert "turnkeep restore web --checkpoint " in said
    assert file.read_bytes() == b"chat"


def test_restore_otherwise(run: Run, web: FakeDaemon) -> None:
    first = web.service.checkpoints[0].id
    lines(run("restore", "web", "--checkpoint", first[:12], "--mode", "cold", "--no-safety-checkpoint"))
    sent = web.service.last("RestoreSandbox")
    assert (sent.ref.checkpoint, sent.mode) == (first[:12], pb.RESTORE_MODE_COLD)
    assert sent.skip_safety_checkpoint
    lines(run("restore", "web@good", "--new", "web2"))
    sent = web.service.last("RestoreSandbox")
    assert (sent.ref.checkpoint, sent.mode, sent.new_name) == ("good", pb.RESTORE_MODE_NEW, "web2")


def test_turns(run: Run, web: FakeDaemon) -> None:
    assert lines(run("turn", "begin", "web", "--label", "make", "--id", "mine")) == ["3"]
    assert lines(run("turn", "begin", "web", "--id", "mine")) == ["3"]
    assert run("turn", "begin", "web", "--session", "other").exit_code == 4
    ended = run("turn", "end", "web", "--label", "code=0", "--model", "m", "--tool", "bash")
    assert lines(ended) == ["turn 3 DURABLE: 2 files changed"]
    turn = next(iter(web.service.turns.values()))[2]
    assert (dict(turn.labels), turn.metadata.model, turn.metadata.tool_name) == ({"code": "0"}, "m", "bash")
    assert lines(run("turn", "wait", "web", "3", "--state", "captured")) == [
        "turn 3 DURABLE: 2 files changed"
    ]
    assert lines(run("turn", "end", "web", "3")) == ["turn 3 DURABLE: 2 files changed"]
    assert run("turn", "end", "web").exit_code == 4


def test_prune(run: Run, daemon: FakeDaemon) -> None:
    said = lines(run("prune", "--dry-run", "--keep-last", "3", "--keep-tag", "*", "--max-bytes", "1.5GiB"))
    assert said[0] == "pruned   1 checkpoint would be deleted, 2 kept"
    policy = daemon.service.last("PruneStore").policy
    assert (policy.keep_last, list(policy.keep_tags), policy.max_bytes) == (3, ["*"], 3 << 29)
    lines(run("prune"))
    assert not daemon.service.last("PruneStore").HasField("policy")
    assert run("prune", "--max-bytes", "much").exit_code == 2


def test_check(run: Run, daemon: FakeDaemon) -> None:
    assert lines(run("check")) == ["all is well: 3 checkpoints, 9 blobs, 1.0 MiB read"]
    daemon.service.problems = ["pack 1 is cut"]
    done = run("check")
    assert done.exit_code == 8
    assert done.stdout.splitlines()[0] == "pack 1 is cut"


def test_the_journal(run: Run, daemon: FakeDaemon, tmp_path: Path) -> None:
    head = f"5:{'a' * 64}"
    assert lines(run("journal", "head")) == [head]
    assert lines(run("check", "--journal")) == [f"all is well: the journal ends with {head}"]
    kept = tmp_path / "head"
    kept.write_text(f"{head}\n")
    assert run("check", "--journal", "--head", f"@{kept}").exit_code == 0
    assert daemon.service.last("CheckStore").journal_head == head
    assert lines(run("journal", "export", "--after", "3")) == ['{"sequence": 4}', '{"sequence": 5}']
    daemon.service.problems = ["event 3 is missing"]
    done = run("journal", "head")
    assert (done.exit_code, done.stdout) == (8, "")
    assert "event 3 is missing" in done.stderr


@pytest.mark.parametrize(
    "options",
    [("--journal", "--live", "web"), ("--journal", "--skip-data"), ("--head", "1:2")],
    ids=" ".join,
)
def test_what_cannot_be_checked_at_once(run: Run, daemon: FakeDaemon, options: tuple[str, ...]) -> None:
    assert run("check", *options).exit_code == 2


def test_a_head_that_cannot_be_read(run: Run, daemon: FakeDaemon, tmp_path: Path) -> None:
    done = run("check", "--journal", "--head", f"@{tmp_path / 'none'}")
    assert done.exit_code == 2
    assert "cannot be read" in done.stderr


def test_doctor(run: Run, daemon: FakeDaemon) -> None:
    daemon.service.status.version = turnkeep.__version__
    said = lines(run("doctor"))
    whats = ("daemon", "engine", "storage", "cgroups", "kernel", "space", "tracker", "criu")
    assert [line.split()[:2] for line in said] == [*([what, "ok"] for what in whats), ["runtime", "degraded"]]
    assert said[-1].split("  ")[-1] == "not registered; register it"
    assert not daemon.service.last("ExamineHost").self_test


def test_doctor_looks_at_a_sandbox(run: Run, web: FakeDaemon) -> None:
    web.service.status.version = turnkeep.__version__
    said = lines(run("doctor", "web", "--self-test"))
    assert said[-1].split() == ["container", "ok", "web", "runs"]
    sent = web.service.last("ExamineHost")
    assert (sent.sandbox, sent.self_test) == ("web", True)
    assert run("doctor", "nobody").exit_code == 3


def test_doctor_says_a_thing_once(run: Run, daemon: FakeDaemon) -> None:
    daemon.service.status.degraded.append("there is no CRIU")
    missing = pb.Finding(what="criu", verdict=pb.VERDICT_MISSING, detail="there is no CRIU", fix="get it")
    daemon.service.findings = [missing]
    done = run("doctor")
    assert done.exit_code == 1
    assert done.stdout.count("there is no CRIU") == 1


def test_doctor_asks_an_older_daemon(run: Run, daemon: FakeDaemon) -> None:
    daemon.service.status.version = "0.0.1"
    daemon.service.refuse("ExamineHost", grpc.StatusCode.UNIMPLEMENTED)
    said = lines(run("doctor"))
    assert said[0].split()[:2] == ["daemon", "degraded"]
    assert said[-1].split()[:2] == ["host", "degraded"]


def test_doctor_finds_what_is_wrong(run: Run, daemon: FakeDaemon) -> None:
    status = daemon.service.status
    status.version, status.engine_version, status.storage_driver = "0.0.1", "", "btrfs"
    status.cgroup_version, status.kernel, status.free_bytes = 0, "5.4.0", 1 << 20
    status.degraded.append("no fanotify")
    done = run("doctor")
    assert done.exit_code == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["daemon", "degraded"],
        ["engine", "missing"],
        ["storage", "missing"],
        ["cgroups", "missing"],
        ["kernel", "missing"],
        ["space", "missing"],
        ["tracker", "ok"],
        ["host", "degraded"],
        ["criu", "ok"],
        ["runtime", "degraded"],
    ]
    done = run("doctor", address="unix:///nowhere/s")
    assert done.exit_code == 5
    assert done.stdout.startswith("daemon  missing")


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_the_unit_needs_systemd(run: Run, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnkeep.cli.install._HOST_RUNS_SYSTEMD", Path("/nonexistent"))
    done = run(command, "--no-runtime")
    assert (done.exit_code, done.stderr) == (
        9,
        "turnkeep: this host does not run systemd. start the daemon with: turnkeep serve\n",
    )


def test_help_and_version(run: Run) -> None:
    for command in ("serve", "exec", "restore", "turn begin", "checkpoint create"):
        assert "Usage: " in run(*command.split(), "--help").stdout
    assert run("--version").stdout.startswith("turnkeep ")


def test_fork(run: Run, web: FakeDaemon) -> None:
    said = lines(run("fork", "web@1", "-n", "2"))
    assert said[0].split()[:2] == ["forked", "web"]
    assert any("web-fork-1" in line for line in said)
    assert any("web-fork-2" in line for line in said)
    assert run("fork", "web", "-n", "0").exit_code == 2
