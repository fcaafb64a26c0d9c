"""Turns: what is kept, what is skipped, and what the calls promise."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import turnkeep
from turnkeep.client.sync import Client
from turnkeep.errors import Conflict, ContainerNotFound, InvalidRequest, SandboxNotFound, TurnNotFound
from turnkeep.model import Fidelity, TurnClass, TurnState

from tests.e2e.harness import Box, Daemon, turn, wait_until

# It has come to rest when the turn ends: its shell and `nohup` ran before it under the same pid.
SLEEPER = "nohup sleep 1000 > /dev/null 2>&1 & until ps -o comm=,stat= $! | grep -q '^sleep *S'; do :; done"


def test_only_what_changed_is_kept(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    read = turn(box, sandbox, "ls -la / && cat /etc/passwd")
    write = turn(box, sandbox, "mkdir /work && echo one > /work/a")
    again = turn(box, sandbox, "cat /work/a")
    assert read.state is TurnState.SKIPPED
    assert read.decision is not None
    assert read.decision.turn_class is TurnClass.STATELESS
    assert write.state is TurnState.DURABLE
    assert write.decision is not None
    assert write.decision.turn_class is TurnClass.FILESYSTEM
    assert set(write.decision.changed_paths) == {"/work", "/work/a"}
    assert again.state is TurnState.SKIPPED
    assert again.checkpoint_id == write.checkpoint_id


@pytest.mark.parametrize(
    "command",
    [
        "echo x > /tmp/x && rm /tmp/x",
        "chmod 600 /etc/motd && chmod 644 /etc/motd",
        "cp -a /etc/hostname /tmp/h; rm /tmp/h",
        "mkdir /tmp/d; rmdir /tmp/d; touch /tmp",
    ],
)
def test_what_is_put_back_is_no_change(tk: Client, box: Box, command: str) -> None:
    box.sh("[ -e /etc/motd ] || echo motd > /etc/motd; chmod 644 /etc/motd")
    sandbox = tk.attach(box.name)
    assert turn(box, sandbox, command).state is TurnState.SKIPPED


def test_a_change_of_time_alone_counts_for_a_file_and_not_for_a_folder(tk: Client, box: Box) -> None:
    box.sh("mkdir -p /work/d; echo a > /work/a; touch -d 2001-01-01 /work/a /work/d")
    sandbox = tk.attach(box.name)
    assert turn(box, sandbox, "touch -d 2002-02-02 /work/d").state is TurnState.SKIPPED
    touched = turn(box, sandbox, "touch -d 2003-03-03 /work/a")
    assert touched.state is TurnState.DURABLE
    assert touched.changed_bytes == 0


def test_derived_caches_alone_are_skipped_and_kept_with_the_next_capture(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "mkdir /work && echo 'x = 1' > /work/m.py")
    cached = turn(box, sandbox, "cd /work && PYTHONDONTWRITEBYTECODE= python3 -c 'import m'")
    assert cached.state is TurnState.SKIPPED
    assert cached.decision is not None
    assert cached.decision.cache_path_count > 0
    kept = turn(box, sandbox, "echo 2 > /work/other")
    box.sh("rm -rf /work/__pycache__")
    restored = sandbox.restore(turn=cached.number)
    assert any("derived caches" in note for note in restored.notes)
    sandbox.restore(turn=kept.number)
    assert "m.cpython" in box.sh("ls /work/__pycache__")


def test_without_criu_a_process_left_running_is_said_not_to_be_captured(
    start_daemon: Callable[..., Daemon], box: Box
) -> None:
    with start_daemon("auto_attach = false\n[process]\nenabled = false").connect() as tk:
        assert any("processes are not captured" in each for each in tk.status().degraded)
        sandbox = tk.attach(box.name)
        kept = turn(box, sandbox, SLEEPER)
        checkpoint = sandbox.find_checkpoint(kept.number)
        assert checkpoint.fidelity is Fidelity.FILES_ONLY
        assert any("sleep" in line for line in checkpoint.not_captured)
        assert checkpoint.processes is None or not checkpoint.processes.trees
        assert any("files only" in note for note in sandbox.restore(turn=kept.number).notes)


def test_a_process_left_running_is_captured_once(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    started = turn(box, sandbox, SLEEPER)
    assert started.decision is not None
    assert started.decision.turn_class in (TurnClass.PROCESS, TurnClass.FULL)
    checkpoint = sandbox.find_checkpoint(started.number)
    assert checkpoint.fidelity is Fidelity.COMPLETE
    assert checkpoint.processes is not None
    assert [each.name for each in checkpoint.processes.trees[0].processes if each.pid > 7] == ["sleep"]
    asleep = turn(box, sandbox, "true")
    assert asleep.state is TurnState.SKIPPED, "it never ran since"
    died = turn(box, sandbox, "pkill -x sleep -n; true")
    assert died.decision is not None
    assert any("died" in each for each in died.decision.processes)


def test_a_store_through_a_shared_mapping_is_seen(tk: Client, box: Box) -> None:
    box.sh("mkdir /work; head -c 8192 /dev/zero > /work/mapped")
    box.sh(
        "cat > /work/writer.py <<'END'\n"
        "import mmap, sys, os\n"
        "f = open('/work/mapped', 'r+b'); m = mmap.mmap(f.fileno(), 8192)\n"
        "m[0:1] = b'a'\n"
        "fifo = '/work/fifo'\n"
        "while True:\n"
        "    with open(fifo) as order: value = order.read().strip()\n"
        "    m[0:1] = value.encode()\n"
        "    with open(fifo, 'w') as done: done.write('ok\\n')\n"
        "END\nmkfifo /work/fifo"
    )
    box.spawn("python3", "/work/writer.py")
    wait_until(lambda: box.sh("head -c 1 /work/mapped") == "a", "the writer has mapped the file")
    sandbox = tk.attach(box.name)
    for value in "bcde":
        kept = turn(box, sandbox, f"echo {value} > /work/fifo; read < /work/fifo")
        assert kept.state is TurnState.DURABLE
        assert kept.decision is not None
        assert "/work/mapped" in kept.decision.changed_paths


def test_begin_and_end_are_idempotent(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    first = sandbox.turn(label="a", harness_turn_id="id-1")
    first.begin()
    again = sandbox.turn(label="a", harness_turn_id="id-1")
    again.begin()
    assert first.number == again.number == 1
    with pytest.raises(Conflict, match="label"):
        sandbox.turn(label="b", harness_turn_id="id-1").begin()
    first.end()
    first.end()
    again.end()
    assert [each.number for each in sandbox.turns()] == [1]


def test_a_turn_whose_harness_died_is_abandoned_and_captured(daemon: Daemon, tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    lost = sandbox.turn(label="lost")
    lost.begin()
    box.sh("mkdir /work; echo lost > /work/a")
    with daemon.connect() as other:
        elsewhere = other.sandbox(box.name)
        with pytest.raises(Conflict, match="another session"):
            elsewhere.turn(label="refused").begin()
        with elsewhere.turn(label="next", take_over=True) as following:
            pass
        assert following.number == 2
    done = sandbox.wait(1)
    assert done.abandoned
    assert done.state is TurnState.DURABLE
    box.sh("rm -r /work")
    sandbox.restore(turn=1)
    assert box.sh("cat /work/a") == "lost\n"


def test_a_silent_harness_is_abandoned_by_a_time_limit(start_daemon: Callable[..., Daemon], box: Box) -> None:
    with start_daemon("auto_attach = false\n[limits]\nturn_timeout_s = 0.2").connect() as tk:
        sandbox = tk.attach(box.name)
        sandbox.checkpoint()
        # Before the turn, whose end nobody here determines.
        box.sh("echo 1 > /kept")
        silent = sandbox.turn(label="silent")
        silent.begin()
        done = sandbox.wait(1)
        assert done.abandoned
        assert done.state is TurnState.DURABLE


def test_harness_state_comes_back_with_the_turn_also_a_skipped_one(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    conversation = b"".join(b'{"role": "tool", "content": "%d"}\n' % n for n in range(60_000))
    stored = []
    for number, command in enumerate(("echo 1 > /a", "cat /a", "echo 2 > /a"), start=1):
        with sandbox.turn(label=command) as open_turn:
            box.sh(command)
        state = conversation + b"turn %d" % number
        answer = open_turn.put_state(state)
        assert answer is not None
        assert answer.size == len(state)
        stored.append(answer.stored_bytes)
    assert sandbox.wait(2).state is TurnState.SKIPPED
    assert stored[1] < stored[0] / 3, "what repeats is stored once"
    assert sandbox.state(2) == conversation + b"turn 2"
    restored = sandbox.restore(turn=2)
    assert restored.harness_state == conversation + b"turn 2"
    assert box.sh("cat /a") == "1\n"


def test_a_harness_state_and_a_capture_that_meet_lose_neither(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    for number in range(1, 31):
        with sandbox.turn(label=str(number)) as open_turn:
            box.sh(f"echo {number} > /a" if number % 2 else "true")
        open_turn.put_state(b"state %d" % number)
        done = open_turn.wait()
        assert done.state is (TurnState.DURABLE if number % 2 else TurnState.SKIPPED)
        assert done.checkpoint_id
        assert sandbox.state(number) == b"state %d" % number


def test_a_harness_state_over_the_limit_is_refused_and_nothing_is_lost(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    with sandbox.turn(label="x") as open_turn:
        pass
    open_turn.put_state(b"small")
    with pytest.raises(turnkeep.TurnkeepError, match="longer than"):
        open_turn.put_state(bytes(65 * 1024 * 1024))
    assert sandbox.state(1) == b"small"


def test_the_gate_opens_at_the_consistent_point(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    box.sh("mkdir /work")
    for number in range(8):
        turn(box, sandbox, f"echo {number} > /work/f; head -c 3000000 /dev/urandom > /work/big", wait=False)
    for number in range(8):
        sandbox.restore(turn=number + 1)
        assert box.sh("cat /work/f") == f"{number}\n"


def test_unknown_names_are_not_found(tk: Client, box: Box) -> None:
    with pytest.raises(ContainerNotFound):
        tk.attach("no-such-container-anywhere")
    with pytest.raises(SandboxNotFound):
        tk.sandbox("no-such-sandbox")
    sandbox = tk.attach(box.name)
    with pytest.raises(TurnNotFound):
        sandbox.restore(turn=99)
    with pytest.raises(TurnNotFound):
        sandbox.wait(99)


def test_events_tell_a_turn_from_begin_to_durable(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /a")
    turn(box, sandbox, "cat /a")
    kinds = []
    for event in tk.events(box.name, after=1):
        kinds.append((event.kind, event.turn))
        if event.kind == "skipped":
            break
    ours = [kind for kind, number in kinds if number == 1]
    assert ours == ["turn_begun", "turn_ended", "classified", "captured", "durable"]


def test_twenty_sandboxes_take_turns_at_once(make: Callable[..., Box], tk: Client) -> None:
    with ThreadPoolExecutor(4) as pool:
        boxes = list(pool.map(lambda _: make(), range(20)))
    sandboxes = [tk.attach(box.name) for box in boxes]
    turns = []
    for index, (box, sandbox) in enumerate(zip(boxes, sandboxes, strict=True)):
        open_turn = sandbox.turn(label=f"sandbox {index}")
        open_turn.begin()
        box.sh(f"mkdir /work; echo {index} > /work/mine; seq 1000 > /work/common")
        turns.append(open_turn)
    for open_turn in turns:
        open_turn.end()
    assert {open_turn.wait().state for open_turn in turns} == {TurnState.DURABLE}
    for index, (box, sandbox) in enumerate(zip(boxes, sandboxes, strict=True)):
        if index % 5 == 0:
            box.sh("rm -r /work")
            sandbox.restore(turn=1)
            assert box.sh("cat /work/mine") == f"{index}\n"


def test_what_is_followed_is_what_a_scan_finds(box: Box, tk: Client) -> None:
    sandbox = tk.attach(box.name)
    before = tk.status().tracker
    turn(box, sandbox, "mkdir -p /srv/a; cd /srv/a; echo 1 > f; ln f g; rm f; echo 2 >> g")
    box.sh("echo 3 > /srv/a/late")
    found = tk.check(live=box.name)
    assert found.ok
    assert not found.problems
    assert found.followed == ("/",)
    after = tk.status().tracker
    assert after.followed > before.followed
    assert after.audits > before.audits
    assert after.missed == 0


def test_the_journal_is_a_chain(box: Box, tk: Client) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /srv/a")
    found = tk.check(journal=True)
    assert found.ok
    turn(box, sandbox, "echo 2 > /srv/a")
    assert tk.check(journal=True, head=found.journal_head).ok
    lines = list(tk.export_journal())
    assert [each.sequence for each in lines] == list(range(1, len(lines) + 1))
    number, _, digest = found.journal_head.partition(":")
    assert json.loads(lines[int(number) - 1].line)["hash"] == digest
    forged = f"{number}:{'0' * 64}"
    assert "not the one whose hash was kept" in tk.check(journal=True, head=forged).problems[0]
    with pytest.raises(InvalidRequest, match="is no head"):
        tk.check(journal=True, head="5")
