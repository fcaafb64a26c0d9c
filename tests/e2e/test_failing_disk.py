"""The disk under the state fails: input/output errors, and a file system that turns read-only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import docker
import pytest
from turnkeep.client.sync import Client, Sandbox
from turnkeep.errors import TurnkeepError
from turnkeep.model import TurnState

from tests.block_device import RecordedDisk, mount_options, mounted, recorded_disk, require_block_devices
from tests.e2e.harness import Box, Daemon, turn

SIZE_BYTES = 48 << 20


@pytest.fixture
def disk(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordedDisk]:
    """A disk that fails when it is told to, with an empty ext4."""
    require_block_devices()
    with recorded_disk(tmp_path_factory.mktemp("disk"), SIZE_BYTES) as made:
        yield made


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the disk is mounted. Short: a socket's path has at most 107 bytes."""
    return tmp_path_factory.mktemp("d")


def _kept(tk: Client, box: Box, sandbox: Sandbox, text: str) -> int:
    """Keep a turn in which a file got a text, and see that it and the first come back."""
    with sandbox.turn(label=text, take_over=True) as after:
        box.sh(f"echo {text} > /a")
    info = after.wait()
    assert info is not None
    assert info.state is TurnState.DURABLE
    assert tk.check().ok
    for number, wanted in ((1, "first"), (info.number, text)):
        sandbox.restore(turn=number)
        assert box.sh("cat /a") == f"{wanted}\n"
    return info.number


def _fails(box: Box, sandbox: Sandbox) -> TurnkeepError:
    with pytest.raises(TurnkeepError) as caught:
        turn(box, sandbox, "head -c 300000 /dev/urandom > /b", take_over=True)
    assert box.freezer() == "THAWED"
    assert box.sh("echo alive") == "alive\n"
    return caught.value


def _fail(disk: RecordedDisk, call: str, daemon: Daemon, box: Box) -> list[str]:
    """Keep a turn, then have the disk fail for two more; return what was said of these."""
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "echo first > /a")
        with disk.failing(call):
            return [_fails(box, sandbox).message for _ in range(2)]


def test_writes_that_fail_and_then_do_not(disk: RecordedDisk, folder: Path, box: Box) -> None:
    """As long as ext4 itself goes on, the daemon does, and what it says is kept is on the disk."""
    daemon = Daemon(folder)
    # ext4 is not to write of its own accord meanwhile: it would stay read-only for that.
    with mounted(disk.device, daemon.state, "nodiscard,commit=300"):
        daemon.start()
        try:
            said = _fail(disk, "write", daemon, box)
            assert "Input/output error" in said[0]
            assert all("error" in each for each in said), said
            with daemon.connect() as tk:
                number = _kept(tk, box, tk.sandbox(box.name), "second")
        finally:
            assert daemon.stop() == 0
    # What was only in the page cache is gone now.
    with mounted(disk.device, daemon.state):
        _comes_back(daemon, box, {1: "first", number: "second"})


def test_an_ext4_that_turned_read_only(disk: RecordedDisk, folder: Path, box: Box) -> None:
    """A flush that fails ends ext4's writing for good: the daemon says so, and goes on on a repaired one."""
    daemon = Daemon(folder)
    with mounted(disk.device, daemon.state):
        daemon.start()
        try:
            said = _fail(disk, "sync", daemon, box)
            assert "Input/output error" in said[0]
            assert "emergency_ro" in mount_options(daemon.state)
            with daemon.connect() as tk:
                sandbox = tk.sandbox(box.name)
                # What there is can still be read, though the cause is gone only for the disk.
                assert "the journal cannot be written" in _fails(box, sandbox).message
                assert sandbox.turns()[0].state is TurnState.DURABLE
        finally:
            assert daemon.stop() == 1, "it could not record that it stopped"
        assert {"level": "error", "event": "a call is not in the audit log"}.items() <= {
            key: value for each in daemon.events() if "audit" in each["event"] for key, value in each.items()
        }.items()
        assert "Traceback" not in daemon.log.read_text()
    with mounted(disk.repaired(), daemon.state):
        _comes_back(daemon, box, {1: "first"})


def _comes_back(daemon: Daemon, box: Box, wanted: Mapping[int, str]) -> None:
    """Start the daemon on what is on the disk: all that was kept is there, and more can be."""
    daemon.start()
    try:
        with daemon.connect() as tk:
            sandbox = tk.sandbox(box.name)
            for number, text in wanted.items():
                sandbox.restore(turn=number)
                assert box.sh("cat /a") == f"{text}\n"
            assert tk.check(journal=True).ok
            _kept(tk, box, sandbox, "third")
    finally:
        assert daemon.stop() == 0


def test_a_log_that_cannot_be_written(own_folder: Callable[[], Daemon], box: Box) -> None:
    daemon = own_folder()
    daemon.prefix = ["sh", "-c", 'exec "$@" 2>/dev/full', "sh"]
    daemon.start()
    try:
        with daemon.connect() as tk:
            assert turn(box, tk.attach(box.name), "echo first > /a").state is TurnState.DURABLE
    finally:
        daemon.stop()
