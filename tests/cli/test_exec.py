"""`turnkeep exec`, with a docker that says how it was called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client.fake_daemon import FakeDaemon


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    """A folder with a `docker` that prints its arguments and stdin, and exits with 7."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text('#!/bin/sh\nprintf "<%s>" "$@"\ncat\necho failed >&2\nexit 7\n')
    program.chmod(0o755)
    return folder


def execute(address: str, path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = "from turnkeep.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, "--address", address, "--retry", "0.1", "exec", *arguments],
        env={**os.environ, "PATH": f"{path}:/usr/bin:/bin"},
        input="from stdin",
        check=False,
        capture_output=True,
        text=True,
    )


def test_it_is_one_turn(daemon: FakeDaemon, docker: Path) -> None:
    done = execute(
        daemon.address, docker, "-it", "-w", "/work", "-e", "A=1", "-e", "B=2", "-u", "me", "web",
        "--", "sh", "-c", "exit 7", "--json",
    )  # fmt: skip
    container = "c" * 64
    assert done.stdout == (
        f"<exec><-i><-t><-w></work><-e><A=1><-e><B=2><-u><me><{container}><sh><-c><exit 7><--json>from stdin"
    )
    assert (done.stderr, done.returncode) == ("failed\n", 7)
    [turn] = next(iter(daemon.service.turns.values()))
    assert (turn.label, dict(turn.labels)) == ("sh -c 'exit 7' --json", {"exit_code": "7"})


def test_options_behind_the_sandbox_are_the_commands(daemon: FakeDaemon, docker: Path) -> None:
    done = execute(daemon.address, docker, "--label", "mine", "web", "ls", "-d")
    assert done.stdout.startswith(f"<exec><{'c' * 64}><ls><-d>")
    assert next(iter(daemon.service.turns.values()))[0].label == "mine"


def test_without_a_daemon(tmp_path: Path, docker: Path) -> None:
    address = f"unix://{tmp_path}/nobody"
    done = execute(address, docker, "web", "true")
    assert (done.returncode, done.stdout) == (5, "")
    done = execute(address, docker, "--on-error", "ignore", "web", "true")
    assert (done.returncode, done.stdout) == (7, "<exec><web><true>from stdin")
    assert "this was no turn: no Turnkeep daemon listens there" in done.stderr


def test_without_docker(daemon: FakeDaemon, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    script = "from turnkeep.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "--address", daemon.address, "exec", "web", "true"],
        env={**os.environ, "PATH": str(empty)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("turnkeep: cannot run docker: No such file or directory (docker).")
    assert next(iter(daemon.service.turns.values()))[0].ended_at_ns
