"""A daemon whose state is encrypted: all works, and the disk says nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from turnkeep.errors import ExitCode
from turnkeep_store.keys import MasterKey

from tests.e2e.harness import TURNKEEP, Box, Daemon, turn

SECRETS = ("hidden-name", "hidden content", "hidden-variable", "hidden value")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(str(MasterKey.new()))
    path.chmod(0o600)
    return path


def _found(state: Path) -> list[str]:
    """The secrets that a state's files hold as they are, and who does."""
    return [
        f"{path}: {secret}"
        for path in state.rglob("*")
        if path.is_file()
        for secret in SECRETS
        if secret.encode() in path.read_bytes() or secret in path.name
    ]


def test_an_encrypted_state(make: Callable[..., Box], own_folder: Callable[[], Daemon], key: Path) -> None:
    daemon = own_folder()
    daemon.configure(f'auto_attach = false\nencryption_key = "file:{key}"')
    daemon.start()
    box = make()
    try:
        with daemon.connect() as tk:
            sandbox = tk.attach(box.name)
            first = turn(
                box, sandbox, "for n in $(seq 50); do echo hidden content $n > /root/hidden-name-$n; done"
            )
            box.spawn("sh", "-c", "hidden_variable='hidden value'; export hidden_variable; sleep 1000")
            second = turn(box, sandbox, "rm /root/hidden-name-7; echo hidden content > /srv/hidden-name")
            assert sandbox.find_checkpoint(second.number).processes is not None
        assert list(daemon.state.rglob("packs/*"))
        assert _found(daemon.state) == []
        daemon.kill()
        assert _found(daemon.state) == []

        daemon.cli("key", "rotate", "--config", str(daemon.folder / "turnkeep.toml"))
        daemon.start()
        refused = daemon.cli("key", "rotate", check=False)
        assert refused.returncode == ExitCode.CONFLICT
        assert "daemon has it open" in refused.stderr

        with daemon.connect() as tk:
            assert tk.check(journal=True).ok
            sandbox = tk.sandbox(box.name)
            sandbox.restore(turn=first.number)
            assert box.sh("cat /root/hidden-name-7") == "hidden content 7\n"
            sandbox.restore(turn=second.number)
            assert "sleep 1000" in box.sh("ps ax")
        assert daemon.stop() == 0
        done = daemon.cli("key", "rotate", "--rewrite")
        assert "2 old keys forgotten" in done.stderr
        assert _found(daemon.state) == []

        key.write_text(str(MasterKey.new()))
        daemon.begin()
        assert daemon.wait() == ExitCode.USAGE
        assert "another key" in daemon.log.read_text()
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop()


def test_a_new_key_is_printed() -> None:
    done = subprocess.run([TURNKEEP, "key", "new"], check=True, capture_output=True, text=True)
    assert MasterKey.parse(done.stdout)
