"""Fixtures that start what they need and remove it, also when a test fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import NotFound
from turnkeep.client.sync import Client

from tests.conftest import IMAGE
from tests.e2e.harness import Box, Daemon, make_box


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/e2e/" in str(item.path):
            item.add_marker(pytest.mark.docker)


@pytest.fixture
def daemon(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon."""
    # Short: a socket's path has at most 107 bytes.
    daemon = Daemon(tmp_path_factory.mktemp("tk"))
    daemon.start()
    yield daemon
    daemon.stop()
    missed = [line for line in daemon.log.read_text().splitlines() if "changes were not reported" in line]
    assert not missed, "every look was compared with a scan"


@pytest.fixture
def tk(daemon: Daemon) -> Iterator[Client]:
    """A client of the daemon."""
    with daemon.connect() as client:
        yield client


@pytest.fixture
def make(engine: docker.DockerClient) -> Iterator[Callable[..., Box]]:
    """Starts sandboxes; removes them and what was made of them."""
    boxes: list[Box] = []

    def start(**options: Any) -> Box:
        box = make_box(engine, options.pop("image", IMAGE), **options)
        boxes.append(box)
        return box

    yield start
    for box in boxes:
        with contextlib.suppress(NotFound):
            box.container.remove(force=True, v=True)
    names = tuple(box.name for box in boxes)
    for container in engine.containers.list(all=True, ignore_removed=True):
        if (container.name or "").startswith(names or ("-",)):
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)
    for volume in engine.volumes.list():
        if volume.name.startswith(names or ("-",)):
            volume.remove(force=True)


@pytest.fixture
def box(make: Callable[..., Box]) -> Box:
    """A plain sandbox: `sleep infinity` behind an init shim, no network."""
    return make()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the host's."""
    return tmp_path
