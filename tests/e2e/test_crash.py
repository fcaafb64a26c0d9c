"""kill -9 and worse: nothing acknowledged is lost, nothing is left frozen or half done."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable

import docker
import pytest
import turnkeep
from turnkeep.errors import TurnkeepError
from turnkeep.model import TurnState
from turnkeep.runtime.cgroup import find_cgroup

from tests.e2e.freezes import Freezes
from tests.e2e.harness import LIMIT_S, Box, Daemon, turn, wait_until


@pytest.fixture
def daemon(own_daemon: Daemon) -> Daemon:
    """Each of these tests kills its own."""
    return own_daemon


def test_what_was_durable_survives_a_kill(daemon: Daemon, box: Box) -> None:
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "mkdir /work; echo 1 > /work/a")
        with sandbox.turn(label="two") as second:
            box.sh("echo 2 > /work/a")
        second.put_state(b"the conversation")
        second.wait()
    daemon.kill()
    box.sh("rm -rf /work")
    daemon.start()
    with daemon.connect() as tk:
        sandbox = tk.sandbox(box.name)
        assert [each.state for each in sandbox.turns()] == [TurnState.DURABLE] * 2
        assert tk.check().ok
        result = sandbox.restore(turn=2)
        assert result.harness_state == b"the conversation"
        assert box.sh("cat /work/a") == "2\n"
        sandbox.restore(turn=1)
        assert box.sh("cat /work/a") == "1\n"
        third = turn(box, sandbox, "echo 3 > /work/a")
        assert third.number == 3


def test_a_turn_open_at_a_kill_is_ended_by_its_harness_afterwards(daemon: Daemon, box: Box) -> None:
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        with sandbox.turn(label="long") as open_turn:
            box.sh("echo 1 > /a")
            daemon.kill()
            box.sh("echo 2 > /a")
            daemon.start()
        done = open_turn.wait()
        assert (done.number, done.state) == (1, TurnState.DURABLE)
        box.sh("rm /a")
        sandbox.restore(turn=1)
        assert box.sh("cat /a") == "2\n"


@pytest.mark.parametrize("after_s", [0.0, 0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.02, 0.03, 0.05])
def test_a_kill_at_any_moment_of_a_capture_loses_nothing_acknowledged(
    daemon: Daemon, box: Box, after_s: float
) -> None:
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "mkdir /work; seq 1000 > /work/kept")
        with sandbox.turn(label="cut"):
            box.sh(
                "for i in $(seq 300); do seq $i > /work/f$i; done; head -c 5000000 /dev/urandom > /work/big"
            )
    # Not synchronisation: each value hits another moment of inspect, freeze,
    # commit or idling, and all of them have to end well.
    time.sleep(after_s)
    daemon.kill()
    wait_until(lambda: box.freezer() == "THAWED", "the watchdog thaws")
    expected = box.sh("cat /work/* | sha256sum")
    daemon.start()
    with daemon.connect() as tk:
        sandbox = tk.sandbox(box.name)
        assert sandbox.wait(2).state is TurnState.DURABLE
        assert tk.check().ok
        box.sh("rm -rf /work")
        sandbox.restore(turn=2)
        assert box.sh("cat /work/* | sha256sum") == expected
        sandbox.restore(turn=1)
        assert box.sh("ls /work") == "kept\n"


@pytest.mark.parametrize("mode", ["live", "cold"])
@pytest.mark.parametrize("seed", range(3))
def test_a_kill_in_a_restore_is_finished_by_the_next_start(
    daemon: Daemon, box: Box, mode: str, seed: int
) -> None:
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "mkdir /work; for i in $(seq 3000); do echo $i > /work/f$i; done")
        wanted = box.sh("cd /work; ls | sort | xargs sha256sum | sha256sum")
        turn(
            box,
            sandbox,
            "rm -rf /work/f1*; for i in $(seq 2000 3000); do echo x > /work/f$i; done; rm -rf /etc/apt",
        )
    begun = threading.Event()
    failures: list[TurnkeepError] = []

    def restore() -> None:
        def on_progress(step: object) -> None:
            if getattr(step, "phase", "") in ("write", "stop", "compare"):
                begun.set()

        try:
            with daemon.connect(retry_s=0) as tk:
                tk.sandbox(box.name).restore(turn=1, mode=mode, on_progress=on_progress)  # type: ignore[arg-type]
        except turnkeep.DaemonUnavailable:
            pass
        except TurnkeepError as error:
            failures.append(error)
        begun.set()

    worker = threading.Thread(target=restore)
    worker.start()
    assert begun.wait(60)
    time.sleep(random.Random(seed).random() * 0.1)
    daemon.kill()
    worker.join()
    assert failures == []
    daemon.start()
    with daemon.connect() as tk:
        assert not any("could not" in each for each in tk.status().recovery), tk.status().recovery
        sandbox = tk.sandbox(box.name)
        assert box.sh("cd /work; ls | sort | xargs sha256sum | sha256sum") == wanted
        assert box.sh("ls -d /etc/apt") == "/etc/apt\n"
        assert box.freezer() == "THAWED"
        assert sandbox.info.head_turn == 1
        assert turn(box, sandbox, "true").state is TurnState.SKIPPED
        assert tk.check().ok
    assert daemon.stop() == 0
    daemon.start()
    with daemon.connect() as tk:
        assert tk.status().recovery == (), "a second recovery finds nothing to do"


def test_a_kill_in_a_restore_into_a_new_container_leaves_none(
    daemon: Daemon, make: Callable[..., Box], engine: docker.DockerClient
) -> None:
    box = make(name="turnkeep-test-halfmade", volumes={"turnkeep-test-halfmade-v": {"bind": "/data"}})
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "for i in $(seq 5000); do echo $i > /data/f$i; done")
    created = threading.Event()

    def restore() -> None:
        try:
            with daemon.connect(retry_s=0) as tk:
                tk.sandbox(box.name).restore(
                    turn=1,
                    mode="new",
                    new_name="turnkeep-test-halfmade-2",
                    on_progress=lambda step: created.set() if step.phase == "write" else None,
                )
        except TurnkeepError:
            pass
        created.set()

    worker = threading.Thread(target=restore)
    worker.start()
    assert created.wait(60)
    daemon.kill()
    worker.join()
    daemon.start()
    names = [each.name for each in engine.containers.list(all=True, ignore_removed=True)]
    if "turnkeep-test-halfmade-2" in names:
        # The restore was done before the kill came.
        reborn = Box(engine.containers.get("turnkeep-test-halfmade-2"))
        assert reborn.sh("ls /data | wc -l") == "5000\n"
    else:
        volumes = [
            each.name for each in engine.volumes.list() if each.name.startswith("turnkeep-test-halfmade-2")
        ]
        assert volumes == []
    assert box.sh("ls /data | wc -l") == "5000\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_watchdog_thaws_when_the_daemon_cannot(daemon: Daemon, box: Box, number: signal.Signals) -> None:
    """The daemon is hit while it holds a freeze: a capture of much data, caught in the act."""
    assert daemon.process is not None
    pid = daemon.process.pid
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "mkdir /work; for i in $(seq 4000); do echo $i > /work/$i; done")
        # What never rests, and touches so many files, has them read again inside each freeze.
        box.spawn("bash", "-c", "while true; do touch /work/*; done")
        cgroup = find_cgroup(box.state()["Pid"], box.container.id or "")
        with Freezes(cgroup) as freezes:
            for attempt in range(50):
                with sandbox.turn(label=f"turn {attempt}"):
                    box.sh("touch /work/*")
                    freezes.forget()
                if caught := freezes.met(LIMIT_S):
                    os.kill(pid, number)
                    break
        assert caught, "no freeze was met"
    try:
        wait_until(lambda: not cgroup.is_frozen(), "the watchdog thaws the sandbox")
    finally:
        os.kill(pid, signal.SIGCONT) if number is signal.SIGSTOP else daemon.process.wait()
    if number is signal.SIGKILL:
        daemon.start()
    with daemon.connect() as tk:
        sandbox = tk.sandbox(box.name)
        for each in sandbox.turns():
            last = sandbox.wait(each.number, TurnState.ENDED)
        assert last.number >= 2
        assert tk.check().ok


def test_a_lost_journal_is_made_anew_from_the_store(daemon: Daemon, box: Box) -> None:
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "echo 1 > /a")
        turn(box, sandbox, "echo 2 > /a")
        with sandbox.turn(label="skipped") as skipped:
            pass
        skipped.put_state(b"the conversation")
        skipped.wait()
        before = [(each.id, each.turn, each.parent_id, each.digest) for each in sandbox.checkpoints()]
    daemon.kill()
    for path in daemon.state.glob("journal.sqlite*"):
        path.unlink()
    daemon.start()
    with daemon.connect() as tk:
        sandbox = tk.sandbox(box.name)
        after = [(each.id, each.turn, each.parent_id, each.digest) for each in sandbox.checkpoints()]
        assert after == before
        sandbox.restore(turn=1)
        assert box.sh("cat /a") == "1\n"
        assert sandbox.restore(turn=3).harness_state == b"the conversation"
        assert box.sh("cat /a") == "2\n"
        assert turn(box, sandbox, "echo 3 > /a").number == 4, "no number is used again"


def test_a_damaged_journal_is_moved_aside(daemon: Daemon, box: Box) -> None:
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "echo 1 > /a")
    daemon.stop()
    (daemon.state / "journal.sqlite").write_bytes(b"no database at all" * 1000)
    daemon.start()
    assert list(daemon.state.glob("journal.sqlite.damaged*"))
    with daemon.connect() as tk:
        tk.sandbox(box.name).restore(turn=1)


def test_two_daemons_do_not_share_a_state_directory(daemon: Daemon) -> None:
    second = daemon.cli("serve", check=False)
    assert second.returncode == 4
    assert "another daemon" in second.stderr
    assert second.stderr.count("\n") == 1
    with daemon.connect() as tk:
        tk.status()


def test_sigterm_waits_for_the_capture_in_flight(daemon: Daemon, box: Box) -> None:
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        with sandbox.turn(label="last words"):
            box.sh("head -c 30000000 /dev/urandom > /big")
    assert daemon.stop() == 0
    assert not (daemon.folder / "turnkeep.sock").exists()
    daemon.start()
    with daemon.connect() as tk:
        assert tk.sandbox(box.name).turns()[0].state is TurnState.DURABLE
        assert tk.status().recovery == ()


def test_without_a_daemon_the_harness_gets_one_clear_error_or_goes_on(daemon: Daemon, box: Box) -> None:
    daemon.kill()
    with daemon.connect(retry_s=0) as tk, pytest.raises(turnkeep.DaemonUnavailable, match="daemon"):
        tk.attach(box.name)
    ran = []
    with daemon.connect(retry_s=0, on_error="ignore") as tk:
        sandbox = tk.attach(box.name)
        with sandbox.turn(label="without") as open_turn:
            ran.append(True)
        assert open_turn.number is None
    assert ran
    daemon.start()


def test_a_journal_that_lost_its_end_to_a_power_cut(daemon: Daemon, box: Box) -> None:
    """What was on the way may be gone from it while the checkpoint is there: that is what counts."""
    journal, before = daemon.state / "journal.sqlite", daemon.folder / "before.sqlite"
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        first = turn(box, sandbox, "echo 1 > /a")
        with (
            contextlib.closing(sqlite3.connect(journal)) as now,
            contextlib.closing(sqlite3.connect(before)) as kept,
        ):
            now.backup(kept)
        second = turn(box, sandbox, "echo 2 > /a")
    daemon.kill()
    for path in daemon.state.glob("journal.sqlite*"):
        path.unlink()
    shutil.copy(before, journal)
    journal.chmod(0o600)
    daemon.start()
    with daemon.connect() as tk:
        sandbox = tk.sandbox(box.name)
        found = sandbox.turns()[-1]
        assert (found.number, found.state, found.parent) == (second.number, TurnState.DURABLE, first.number)
        third = turn(box, sandbox, "echo 3 > /a")
        assert third.number == second.number + 1
        for number, content in ((first.number, "1\n"), (second.number, "2\n"), (third.number, "3\n")):
            sandbox.restore(turn=number)
            assert box.sh("cat /a") == content
        assert tk.check(journal=True).ok
