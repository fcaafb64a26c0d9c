"""Full disks, lost engines, hostile sandboxes: a clear failure of that turn alone, and then on."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from turnkeep.client.sync import Client
from turnkeep.errors import ExitCode, ResourceExhausted, TurnFailed, TurnkeepError
from turnkeep.model import TurnState

from tests.e2e.harness import Box, Daemon, turn, wait_until


def test_a_full_disk_fails_turns_clearly_and_passes(small_disk: Callable[[str], Path], box: Box) -> None:
    folder = small_disk("size=24m")
    daemon = Daemon(folder)
    daemon.start()
    ballast = folder / "ballast"
    try:
        with daemon.connect() as tk:
            sandbox = tk.attach(box.name)
            turn(box, sandbox, "echo 1 > /a")
            with sandbox.turn(label="too much") as big:
                box.sh("head -c 40000000 /dev/urandom > /big")
            with pytest.raises(TurnkeepError, match="full"):
                big.wait()
            assert box.freezer() == "THAWED"
            assert box.sh("echo alive") == "alive\n"
            box.sh("rm /big")
            again = turn(box, sandbox, "echo 2 > /a")
            assert again.state is TurnState.DURABLE
            # To the last byte: now nothing can be recorded at all.
            _fill(ballast)
            with pytest.raises(TurnkeepError):
                turn(box, sandbox, "head -c 300000 /dev/urandom > /b")
            ballast.unlink()
            tk.prune()
            after = sandbox.turn(label="after", take_over=True)
            with after:
                box.sh("echo 3 > /a")
            assert after.wait().state is TurnState.DURABLE
            assert tk.check().ok
            sandbox.restore(turn=1)
            assert box.sh("cat /a") == "1\n"
    finally:
        daemon.stop()


def _fill(path: Path) -> None:
    """Write until there is no room."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    with contextlib.suppress(OSError):
        while os.write(fd, bytes(4096)):
            pass
    os.close(fd)
    assert os.statvfs(path).f_bavail == 0


def test_a_harness_state_that_does_not_fit_is_refused(small_disk: Callable[[str], Path], box: Box) -> None:
    daemon = Daemon(small_disk("size=24m"))
    daemon.start()
    try:
        with daemon.connect() as tk:
            sandbox = tk.attach(box.name)
            with sandbox.turn(label="x") as open_turn:
                pass
            open_turn.put_state(b"fits")
            with pytest.raises(ResourceExhausted):
                open_turn.put_state(os.urandom(40_000_000))
            assert sandbox.state(1) == b"fits"
    finally:
        daemon.stop()


def test_an_engine_that_is_gone_is_said_to_be(start_daemon: Callable[..., Daemon], box: Box) -> None:
    with start_daemon('docker_host = "unix:///nowhere/docker.sock"').connect() as tk:
        with pytest.raises(TurnkeepError, match="does not answer"):
            tk.attach(box.name)
        assert any("does not answer" in each for each in tk.status().degraded)


def test_nobody_else_may_read_the_state_or_call(daemon: Daemon, box: Box, tk: Client) -> None:
    turn(box, tk.attach(box.name), "echo 1 > /a")
    assert stat.S_IMODE(daemon.state.stat().st_mode) == 0o700
    for path in daemon.state.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    socket = daemon.folder / "turnkeep.sock"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o660


DEEP = """
import os
os.chdir("/")
for n in range(1500):
    os.mkdir("deep%d" % n)
    os.chdir("deep%d" % n)
"""
MANY = """
for n in range(20000):
    open(b"/tmp/\\xff%d" % n, "w").close()
"""
HARDLINKS = """
import os
open("/linked", "w").close()
for n in range(2000):
    os.link("/linked", "/l%d" % n)
"""
# Every byte that a name may have, alone; the longest ones; and a path as long as the kernel takes.
NAMES = """
import os
os.mkdir("/names")
os.chdir("/names")
for byte in range(1, 256):
    if byte not in b"/.":
        open(bytes([byte]), "w").close()
for last in b"ab\\xff\\n":
    open(bytes([0xe9]) * 254 + bytes([last]), "w").close()
for n in range(15):
    os.mkdir("d" * 255)
    os.chdir("d" * 255)
open("end", "w").close()
os.symlink("x" * 4095, "long")
"""
ATTRIBUTES = """
import os
os.mkdir("/attributes")
for n in range(700):
    open("/attributes/%d" % n, "w").close()
    for key in range(3):
        os.setxattr("/attributes/%d" % n, "user.%d" % key + "k" * 200, bytes([n % 256]) * 700)
"""
ATTACKS = {
    "names": f"python3 -c '{NAMES}'",
    "attributes": f"python3 -c '{ATTRIBUTES}'",
    "allocated": "fallocate -l 3G /allocated; fallocate -l 1G --offset 7G /allocated; echo end >> /allocated",
    "fifos": "mkfifo /etc/fifo; mknod /dev/kmsg2 p",
    "deep": f"python3 -c '{DEEP}'",
    "sparse": "truncate -s 1P /huge 2>/dev/null || truncate -s 15T /huge",
    "many": f"python3 -c '{MANY}'",
    "hardlinks": f"python3 -c '{HARDLINKS}'",
    "loops": "ln -s / /loop; ln -s /proc/self/root /root2; mkdir /x; cd /x; ln -s ../x x",
    "suid": "cp /bin/ls /suid; chmod 6777 /suid; touch /etc/.wh.passwd /etc/.wh..wh..opq",
    "imitation": "python3 -c \"open('/tmp/pack', 'wb').write(b'TURNPACK' * 10000)\"",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_hostile_turn_is_captured_and_restored(tk: Client, box: Box, attack: str) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 0 > /calm")
    hostile = turn(box, sandbox, attack)
    assert hostile.state is TurnState.DURABLE
    assert box.freezer() == "THAWED"
    sandbox.restore(turn=1)
    result = sandbox.restore(turn=2, verify="full")
    assert result.actual_digest == result.expected_digest
    sandbox.restore(turn=1, mode="cold")
    result = sandbox.restore(turn=2, mode="cold")
    assert result.actual_digest == result.expected_digest


def test_what_is_nested_too_deeply_fails_that_turn_alone(
    tk: Client, make: Callable[..., Box], box: Box
) -> None:
    """Neither does anybody else wait for it, nor is the sandbox lost by it."""
    other = make()
    sandbox, second = tk.attach(box.name), tk.attach(other.name)
    turn(box, sandbox, "echo 0 > /calm")
    with sandbox.turn() as deep:
        box.sh(f"python3 -c '{DEEP.replace('1500', '10000')}'")
    turn(other, second, "echo served > /file")
    with pytest.raises(TurnFailed, match="nested so deeply"):
        deep.wait()
    assert box.freezer() == "THAWED"
    turn(other, second, "echo still > /file")
    sandbox.restore(turn=1, mode="cold", skip_safety_checkpoint=True)
    assert "deep0" not in box.sh("ls /")
    after = turn(box, sandbox, "echo 1 > /calm")
    assert after.state is TurnState.DURABLE


def test_a_sandbox_that_never_rests_is_captured_consistently(tk: Client, box: Box) -> None:
    """Two files that a process keeps equal are equal in every checkpoint, to the write."""
    writer = (
        "import os\n"
        "files = [os.open(path, os.O_WRONLY | os.O_CREAT) for path in ('/first', '/second')]\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    for file in files: os.pwrite(file, b'%020d' % number, 0)\n"
    )
    box.spawn("python3", "-c", writer)
    wait_until(lambda: box.sh("cat /second", check=False).strip().isdigit(), "the writer runs")
    sandbox = tk.attach(box.name)
    for _ in range(10):
        turn(box, sandbox, "true")
    for number in range(1, 11):
        sandbox.restore(turn=number)
        # It came back with its files, and writes on; stopped, it cannot be between two looks.
        box.sh("pkill -STOP -f [o]s.pwrite")
        wait_until(lambda: "T" in box.sh("ps -o stat= -p $(pgrep -f [o]s.pwrite)"), "it stopped")
        first, second = (int(box.sh(f"cat /{name}")) for name in ("first", "second"))
        assert first - second in (0, 1), f"turn {number}: {first} and {second} are not of one instant"


def test_a_folder_swapped_for_a_symlink_in_a_tight_loop_reaches_nothing_outside(
    tk: Client, make: Callable[..., Box], tmp_path: Path
) -> None:
    """The sandbox races every inspection and capture; what is captured is its own."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("the host's secret")
    box = make()
    box.sh(f"mkdir -p {secret.parent} /real && echo own > /real/key")
    swap = f"while true; do mv /real {secret}; mv {secret} /real; ln -s {secret} /l; mv /l /real; done"
    box.spawn("bash", "-c", swap)
    sandbox = tk.attach(box.name)
    for _ in range(8):
        turn(box, sandbox, "true", wait=False)
        sandbox.wait()
    store = b"".join(path.read_bytes() for path in sorted((tmp_path).rglob("*")) if path.is_file())
    assert store == b"the host's secret"
    for change in sandbox.diff(sandbox.checkpoints()[0].id):
        assert "secret" not in change.path or str(secret) in change.path
    assert tk.check().ok


def test_a_damaged_store_is_repaired(own_daemon: Daemon, box: Box) -> None:
    with own_daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        first = turn(box, sandbox, "echo first > /a")
        pack, *_ = (own_daemon.state / "store" / "packs").iterdir()
        second = turn(box, sandbox, "echo second > /a")
        assert own_daemon.cli("check").returncode == 0
        data = bytearray(pack.read_bytes())
        data[-60] ^= 1  # in its table of contents
        pack.write_bytes(data)
        assert own_daemon.cli("check", check=False).returncode == ExitCode.DAMAGED
        done = own_daemon.cli("check", "--repair")
        assert "sound blobs of damaged packs saved" in done.stdout
        assert list(pack.parent.glob("*.damaged"))

        assert first.checkpoint_id is not None
        (own_daemon.state / "store" / "snapshots" / first.checkpoint_id).write_bytes(b"")
        done = own_daemon.cli("check", "--repair")
        assert f"checkpoint {first.checkpoint_id[:12]} is lost" in done.stdout
        assert own_daemon.cli("check").returncode == 0
        assert [each.turn for each in sandbox.checkpoints()][-1:] == [second.number]
        assert first.checkpoint_id not in {each.id for each in sandbox.checkpoints()}
        sandbox.restore(turn=second.number)
        assert box.sh("cat /a") == "second\n"
        assert own_daemon.cli("check", "--journal").returncode == 0


# A file system of the sandbox's own that answers to be mounted, and then never again.
SILENT = r"""
import ctypes, os, struct, time
fd = os.open("/dev/fuse", os.O_RDWR)
os.makedirs("/silent", exist_ok=True)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
if libc.mount(b"silent", b"/silent", b"fuse", 0, options):
    raise SystemExit(os.strerror(ctypes.get_errno()))
unique = struct.unpack_from("<IIQ", os.read(fd, 1 << 17))[2]
body = struct.pack("<4I2H4I8I", 7, 31, 0, 0, 8, 6, 131072, 1, *[0] * 10)[:64]
os.write(fd, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
open("/ready", "w").close()
time.sleep(100000)
"""


def test_a_file_system_that_never_answers(tk: Client, make: Callable[..., Box]) -> None:
    """Who waits for it cannot be frozen on cgroup v1: that turn fails, in bounded time, and nothing else."""
    box = make(cap_add=["SYS_ADMIN"], devices=["/dev/fuse"], security_opt=["apparmor=unconfined"])
    other = make()
    sandbox, second = tk.attach(box.name), tk.attach(other.name)
    turn(box, sandbox, "echo 1 > /calm")
    box.spawn("python3", "-c", SILENT)
    wait_until(lambda: box.run(["test", "-e", "/ready"])[0] == 0, "it is mounted")
    box.spawn("cat", "/silent/file")
    wait_until(lambda: "cat /silent/file" in box.sh("ps ax"), "somebody waits for it")
    with sandbox.turn() as stuck:
        box.sh("echo 2 > /calm")
    turn(other, second, "echo served > /file")
    with contextlib.suppress(TurnFailed):
        stuck.wait()
    assert sandbox.turns()[-1].state in (TurnState.DURABLE, TurnState.FAILED)
    assert box.freezer() == "THAWED"
    box.sh("pkill -KILL -f [/]silent/file; pkill -KILL -f [/]dev/fuse; umount -l /silent; true")
    after = turn(box, sandbox, "echo 3 > /calm")
    assert after.state is TurnState.DURABLE
    sandbox.restore(turn=1)
    assert box.sh("cat /calm") == "1\n"
    sandbox.restore(turn=after.number)
    assert box.sh("cat /calm") == "3\n"


def test_what_others_may_read_of_the_state_is_closed_at_the_start(own_daemon: Daemon) -> None:
    own_daemon.stop()
    stranger = own_daemon.state / "stranger"
    stranger.touch(0o644)
    ours = [
        own_daemon.state / "journal.sqlite",
        own_daemon.state / "store" / "packs",
        own_daemon.state / "store",
    ]
    for path in ours:
        path.chmod(0o755)
    own_daemon.start()
    assert [stat.S_IMODE(path.stat().st_mode) & 0o077 for path in ours] == [0, 0, 0]
    assert stat.S_IMODE(stranger.stat().st_mode) == 0o644
