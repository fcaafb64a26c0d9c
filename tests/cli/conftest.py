"""The command line in this process, against the fake daemon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import turnkeep
from turnkeep.cli import root
from typer.testing import CliRunner, Result

from tests.client.fake_daemon import FakeDaemon


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "s")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def web(daemon: FakeDaemon) -> FakeDaemon:
    """The daemon with a sandbox that had two turns and a checkpoint by hand."""
    with turnkeep.connect(daemon.address) as tk:
        box = tk.attach("web")
        for label in ("pip install", "pytest -q"):
            with box.turn(label):
                pass
        box.checkpoint(name="good", tags=["keep"])
    return daemon


@pytest.fixture
def run(daemon: FakeDaemon) -> Callable[..., Result]:
    def call(*arguments: str, address: str | None = None) -> Result:
        return CliRunner().invoke(root.app, ["--address", address or daemon.address, *arguments])

    return call


@pytest.fixture
def ask(run: Callable[..., Result]) -> Callable[..., Any]:
    """Run a command with --json, and read what it prints."""

    def call(*arguments: str) -> Any:
        done = run(*arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    return call
