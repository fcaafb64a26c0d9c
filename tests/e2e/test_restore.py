"""Restores: what comes back is what was captured, seen by a program that is not ours."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from turnkeep.client.sync import Client
from turnkeep.errors import (
    CheckpointNotFound,
    Conflict,
    ContainerNotRunning,
    SandboxGone,
    TurnkeepError,
    Unsupported,
)
from turnkeep.model import ContainerState

from tests.e2e.harness import Box, Daemon, turn, wait_until

# Everything a file system can hold that a backup may get wrong.
ZOO = r"""
import ctypes, os, socket, stat
os.makedirs("/zoo/empty"); os.chdir("/zoo")
open(b"not-utf8-\xff\xfe", "wb").write(b"x"); open("new\nline", "w").write("y"); open("n" * 255, "w").close()
with open("sparse", "wb") as f:
    f.seek(5 << 20); f.write(b"middle"); f.truncate(20 << 20)
with open("big", "wb") as f:
    for n in range(40): f.write(os.urandom(1 << 18))
open("one", "w").write("linked"); os.link("one", "two"); os.makedirs("sub"); os.link("one", "sub/three")
os.symlink("/nowhere/at/all", "dangling"); os.symlink("one", "link")
os.link("link", "link2", follow_symlinks=False)
os.mkfifo("fifo"); os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.mknod("loop", stat.S_IFBLK | 0o600, os.makedev(7, 0))
s = socket.socket(socket.AF_UNIX); s.bind("sock"); s.close()
open("suid", "w").write("s"); os.chown("suid", 1234, 4321); os.chmod("suid", 0o6755)
open("secret", "w").write("s"); os.chmod("secret", 0)
os.makedirs("sticky"); os.chmod("sticky", 0o1777); os.chown("sticky", 99, 99)
open("attrs", "w").write("a"); os.setxattr("attrs", "user.colour", b"\x00green")
os.setxattr("sub", "user.dir", b"d")
os.setxattr("attrs", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
open("old", "w").write("o"); os.utime("old", ns=(-5_000_000_001, -5_000_000_001))
open("exact", "w").write("e"); os.utime("exact", ns=(1_234_567_890_123_456_789, 1_234_567_890_123_456_789))
os.utime("dangling", ns=(1, 987_654_321_000_000_001), follow_symlinks=False)
deep = b"/zoo"
for n in range(60): deep += b"/d%d" % n; os.mkdir(deep)
open(deep + b"/leaf", "w").write("deep")
"""

# What an agent may do to all that, and to the image.
WRECK = r"""
import os, shutil
shutil.rmtree("/zoo"); os.makedirs("/zoo/one/dir"); open("/zoo/new", "w").write("n")
os.symlink("/etc", "/zoo/sub")
shutil.rmtree("/etc/apt"); os.makedirs("/etc/apt"); open("/etc/apt/other", "w").write("o")
os.remove("/etc/debian_version"); os.symlink("passwd", "/etc/debian_version")
shutil.rmtree("/usr/share/zoneinfo", ignore_errors=True); open("/usr/share/zoneinfo", "w").write("file now")
os.chmod("/etc/passwd", 0o600); open("/etc/group", "a").write("x"); os.rename("/etc/fstab", "/etc/fstab2")
os.utime("/etc/hostname", ns=(5, 5)); os.setxattr("/etc/shells", "user.x", b"y")
open("/dev/shm/s", "w").write("s"); open("/etc/hosts", "a").write("6.6.6.6 evil")
open("/dev/oops", "w").write("a typing mistake")
os.chmod("/", 0o700)
"""


def python(box: Box, program: str) -> None:
    code, output = box.run(["python3", "-B", "-c", program])
    assert code == 0, output.decode()


@pytest.mark.parametrize("mode", ["live", "cold"])
def test_everything_comes_back_exactly(tk: Client, make: Callable[..., Box], mode: str) -> None:
    box = make(tmpfs={"/scratch": ""}, cap_add=["SYS_ADMIN", "MKNOD", "SETFCAP"])
    box.sh("touch /etc/fstab /etc/shells; echo t > /scratch/t; mkdir /scratch/d")
    sandbox = tk.attach(box.name)
    with sandbox.turn(label="zoo") as made:
        python(box, ZOO)
    before = box.look()
    assert len(before) > 100
    made.wait()
    with sandbox.turn(label="wreck") as wrecked:
        python(box, WRECK)
        box.sh("rm -r /scratch/*; ln -s / /scratch/root")
    wreckage = box.look()
    wrecked.wait()
    assert wreckage != before
    identity = box.container.id, box.state()["Pid"]
    result = sandbox.restore(turn=1, mode=mode)  # type: ignore[arg-type]
    assert result.actual_digest == result.expected_digest
    assert box.look() == before
    if mode == "live":
        assert (box.container.id, box.state()["Pid"]) == identity
        assert result.changed_paths > 0
    sandbox.restore(turn=2, mode=mode)  # type: ignore[arg-type]
    assert box.look() == wreckage
    result = sandbox.restore(turn=1, verify="full")
    assert result.verify == "full"
    assert box.look() == before


def test_live_and_cold_have_one_digest(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "mkdir -p /w/d; echo a > /w/a; rm -rf /etc/apt; chmod 700 /etc")
    turn(box, sandbox, "rm -rf /w; mkdir /etc/apt; chmod 755 /etc")
    live = sandbox.restore(turn=1, mode="live")
    sandbox.restore(turn=2)
    cold = sandbox.restore(turn=1, mode="cold")
    assert live.actual_digest == cold.actual_digest
    # Nothing is left that the next turn would take for a change.
    assert turn(box, sandbox, "true").state.value == "SKIPPED"


def test_a_restore_can_be_undone_and_turns_branch(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /state")
    turn(box, sandbox, "echo 2 > /state")
    box.sh("echo 'not in any turn' > /state")
    result = sandbox.restore(turn=1)
    assert box.sh("cat /state") == "1\n"
    assert result.safety_checkpoint_id
    third = turn(box, sandbox, "echo 3 > /state")
    assert (third.number, third.parent) == (3, 1)
    checkpoints = {each.id: each for each in sandbox.checkpoints()}
    assert third.checkpoint_id is not None
    first_id = checkpoints[third.checkpoint_id].parent_id
    assert first_id is not None
    assert checkpoints[first_id].turn == 1
    sandbox.restore(checkpoint=result.safety_checkpoint_id)
    assert box.sh("cat /state") == "not in any turn\n"


def test_a_named_checkpoint_is_taken_by_hand_and_restored(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    box.sh("echo good > /state")
    made = sandbox.checkpoint(name="good", tags=["release"])
    assert (made.name, made.tags) == ("good", ("release",))
    with pytest.raises(Conflict, match="named good"):
        sandbox.checkpoint(name="good")
    turn(box, sandbox, "echo bad > /state")
    sandbox.restore(checkpoint="good")
    assert box.sh("cat /state") == "good\n"
    changes = {change.path: change.change for change in sandbox.diff("good", 1)}
    assert changes == {"/state": "changed"}


def test_stray_processes_of_the_undone_turns_are_stopped(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 0 > /count")
    box.spawn("bash", "-c", "while true; do echo x >> /count; head -c 1000 /dev/urandom > /noise; done")
    wait_until(lambda: box.sh("wc -l < /count").strip() > "10", "the loop runs")
    result = sandbox.restore(turn=1)
    assert any("bash" in each for each in result.stopped_processes)
    assert box.sh("cat /count") == "0\n"
    assert "while true" not in box.sh("ps ax")


@pytest.mark.parametrize("target", ["/", "../../../../../../../../../.."])
def test_symlinks_planted_where_a_restore_writes_lead_nowhere(
    tk: Client, box: Box, tmp_path: Path, target: str
) -> None:
    """A folder is replaced by a symlink to the host's files right before the restore writes."""
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    (outside / "sub" / "file").write_text("the host's")
    box.sh(f"mkdir -p {outside}/sub && echo inside > {outside}/sub/file")
    sandbox = tk.attach(box.name)
    turn(box, sandbox, f"echo changed > {outside}/sub/file; echo 1 > {outside}/sub/new")
    stop = threading.Event()

    def swap() -> None:
        link = f"{target}{outside}".replace("//", "/")
        there, back = f"mv {outside} {outside}.away", f"mv {outside}.away {outside}"
        while not stop.is_set():
            box.sh(f"{there} && ln -s {link} {outside}; rm {outside}; {back}", check=False)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(3):
            with contextlib.suppress(TurnkeepError):
                sandbox.restore(turn=1, skip_safety_checkpoint=True)
    finally:
        stop.set()
        swapper.join()
    assert (outside / "sub" / "file").read_text() == "the host's"
    assert sorted(path.name for path in (outside / "sub").iterdir()) == ["file"]
    box.sh(f"rm -rf {outside} {outside}.away", check=False)
    sandbox.restore(turn=1)
    assert box.sh(f"cat {outside}/sub/file") == "changed\n"


def test_a_stopped_container_is_restored_and_started(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /state")
    turn(box, sandbox, "echo 2 > /state")
    box.container.stop(timeout=0)
    result = sandbox.restore(turn=1)
    assert result.mode == "cold"
    assert box.sh("cat /state") == "1\n"


def test_a_container_that_stopped_before_the_daemon_started_is_restored(
    own_daemon: Daemon, make: Callable[..., Box]
) -> None:
    box = make(name="turnkeep-test-late", volumes={"turnkeep-test-late-data": {"bind": "/data"}})
    with own_daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "echo 1 > /state; echo 1 > /data/state")
        turn(box, sandbox, "echo 2 > /state; echo 2 > /data/state")
    assert own_daemon.stop() == 0
    box.container.stop(timeout=0)
    own_daemon.start()
    with own_daemon.connect() as tk:
        result = tk.sandbox(box.name).restore(turn=1)
        assert result.mode == "cold"
        assert box.sh("cat /state /data/state") == "1\n1\n"


def test_a_server_as_pid_1_is_restored_cold(tk: Client, make: Callable[..., Box]) -> None:
    box = make(command=["python3", "-m", "http.server", "--directory", "/srv"], init=False)
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /srv/page")
    turn(box, sandbox, "echo 2 > /srv/page")
    result = sandbox.restore(turn=1)
    assert result.mode == "cold"
    assert "holds state" in result.mode_reason
    assert box.sh("cat /srv/page") == "1\n"


def test_a_removed_container_comes_back_as_a_new_one(
    tk: Client, make: Callable[..., Box], engine: docker.DockerClient
) -> None:
    box = make(tmpfs={"/scratch": ""}, environment={"COLOUR": "green"}, name="turnkeep-test-phoenix")
    box.sh("mkdir /work; rm -rf /etc/apt; echo t > /scratch/t")
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /work/a; chmod 700 /work")
    # The last two are the engine's own, made with each container.
    skip = "/proc /sys /dev /etc/hosts /etc/hostname /etc/resolv.conf /.dockerenv /etc/mtab"
    before = box.look(skip=skip)
    box.container.remove(force=True)
    wait_until(
        lambda: tk.sandbox(box.name).info.container_state is ContainerState.GONE, "the daemon sees it go"
    )
    with pytest.raises(SandboxGone, match="removed"):
        sandbox.restore(turn=1)
    result = sandbox.restore(turn=1, mode="new", new_name="turnkeep-test-phoenix-2")
    assert result.actual_digest == result.expected_digest
    reborn = Box(engine.containers.get("turnkeep-test-phoenix-2"))
    assert reborn.look(skip=skip) == before
    assert reborn.sh("echo $COLOUR; cat /scratch/t") == "green\nt\n"
    assert [each.number for each in tk.sandbox(reborn.name).turns()] == [1], "the sandbox goes on in it"
    following = turn(reborn, tk.sandbox(reborn.name), "echo 2 > /work/a")
    assert following.number == 2


def test_a_new_container_beside_the_original_shares_nothing(
    tk: Client, make: Callable[..., Box], engine: docker.DockerClient
) -> None:
    box = make(
        name="turnkeep-test-twin", volumes={"turnkeep-test-twin-data": {"bind": "/data", "mode": "rw"}}
    )
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /data/a; echo 1 > /a")
    sandbox.restore(turn=1, mode="new", new_name="turnkeep-test-twin-2")
    twin = Box(engine.containers.get("turnkeep-test-twin-2"))
    twin.sh("echo 2 > /data/a; echo 2 > /a")
    assert box.sh("cat /data/a /a") == "1\n1\n"
    with pytest.raises(Conflict):
        sandbox.restore(turn=1, mode="new", new_name="turnkeep-test-twin-2")
    assert twin.sh("cat /data/a") == "2\n", "a refused name leaves the other container alone"


def test_a_host_folder_is_restored_only_when_its_label_says_so(
    tk: Client, make: Callable[..., Box], tmp_path: Path
) -> None:
    covered, left = tmp_path / "covered", tmp_path / "left"
    for folder in (covered, left):
        folder.mkdir()
        (folder / "file").write_text("0")
    box = make(
        labels={"turnkeep.binds": "/covered"},
        volumes={str(covered): {"bind": "/covered"}, str(left): {"bind": "/left"}},
    )
    sandbox = tk.attach(box.name)
    assert {each.target: each.covered for each in sandbox.info.mounts}["/left"] is False
    kept = turn(box, sandbox, "echo 1 > /covered/file; echo 1 > /left/file")
    assert kept.decision is not None
    assert kept.decision.changed_paths == ("/covered/file",)
    for number in range(5):
        assert turn(box, sandbox, f"echo {number} > /left/file").state.value == "SKIPPED"
        assert turn(box, sandbox, f"echo {number} > /covered/other").state.value == "DURABLE"
    result = sandbox.restore(turn=1)
    assert (covered / "file").read_text() == "1\n"
    assert not (covered / "other").exists()
    assert (left / "file").read_text() == "4\n"
    assert any("/left is not covered" in note for note in result.notes)


def test_a_container_that_removes_itself_is_not_stopped(tk: Client, make: Callable[..., Box]) -> None:
    box = make(auto_remove=True)
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /a")
    with pytest.raises(Unsupported, match="--rm"):
        sandbox.restore(turn=1, mode="cold")
    assert box.sh("cat /a") == "1\n"
    sandbox.restore(turn=1, mode="live")


def test_a_paused_container_is_refused_and_stays_paused(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /a")
    box.container.pause()
    try:
        with pytest.raises(ContainerNotRunning, match="paused"):
            sandbox.restore(turn=1)
        assert box.state()["Paused"]
    finally:
        box.container.unpause()
    sandbox.restore(turn=1)


def test_a_deleted_checkpoint_is_gone_and_its_children_are_not(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    for number in (1, 2, 3):
        turn(box, sandbox, f"echo {number} > /state; seq {number}000 > /data{number}")
    sandbox.delete_checkpoint(2)
    tk.prune()
    assert tk.check().ok
    with pytest.raises(CheckpointNotFound, match="deleted"):
        sandbox.restore(turn=2)
    with pytest.raises(Conflict, match="head"):
        sandbox.delete_checkpoint(3)
    sandbox.restore(turn=1)
    assert box.sh("cat /state; ls /data*") == "1\n/data1\n"
    sandbox.restore(turn=3)
    assert box.sh("cat /state; ls /data*") == "3\n/data1\n/data2\n/data3\n"
