"""Fixtures that start what they need and remove it, also when a test fails."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


@pytest.fixture(scope="module")
def daemon(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A running daemon for all tests of a module, which leave it as it is."""
    # Short: a socket's path has at most 107 bytes.
    daemon = Daemon(tmp_path_factory.mktemp("tk"))
    daemon.start()
    yield daemon
    assert daemon.stop() == 0
    daemon.assert_nothing_missed()


@pytest.fixture
def start_daemon(
    engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons of a test's own, with a configuration of its own; stops them."""
    with contextlib.ExitStack() as started:

        def start(configuration: str = "auto_attach = false") -> Daemon:
            daemon = Daemon(tmp_path_factory.mktemp("tk"))
            daemon.configure(configuration)
            started.callback(daemon.assert_nothing_missed)
            started.callback(daemon.stop)
            daemon.start()
            return daemon

        yield start


@pytest.fixture
def own_folder(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Daemon]:
    """Makes daemons that a test starts and stops by itself."""
    return lambda: Daemon(tmp_path_factory.mktemp("tk"))


@pytest.fixture
def own_daemon(start_daemon: Callable[..., Daemon]) -> Daemon:
    """A running daemon for a test that stops or kills it, or wants nobody else there."""
    return start_daemon()


@pytest.fixture
def tk(daemon: Daemon) -> Iterator[Client]:
    """A client of the daemon."""
    with daemon.connect() as client:
        yield client


@pytest.fixture(scope="session")
def later() -> Iterator[Callable[..., object]]:
    """Has something done in the background, before the end of the session."""
    with ThreadPoolExecutor(2) as pool:
        begun: list[Future[None]] = []
        yield lambda *call: begun.append(pool.submit(*call))
        for each in begun:
            each.result()


@pytest.fixture
def make(engine: docker.DockerClient, later: Callable[..., object]) -> Iterator[Callable[..., Box]]:
    """Starts sandboxes; has them and what was made of them removed."""
    boxes: list[Box] = []

    def start(**options: Any) -> Box:
        box = make_box(engine, options.pop("image", IMAGE), **options)
        boxes.append(box)
        return box

    yield start
    if boxes:
        # It takes the engine half a second, for which no test has to wait.
        later(remove_named, engine, tuple(box.name for box in boxes))


def remove_named(engine: docker.DockerClient, names: tuple[str, ...]) -> None:
    """Remove the containers and volumes whose names begin so."""
    for container in engine.containers.list(all=True, ignore_removed=True):
        if (container.name or "").startswith(names):
            with contextlib.suppress(NotFound):
                container.remove(force=True, v=True)
    for volume in engine.volumes.list():
        if volume.name.startswith(names):
            volume.remove(force=True)


@pytest.fixture
def box(make: Callable[..., Box]) -> Box:
    """A plain sandbox: `sleep infinity` behind an init shim, no network."""
    return make()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the host's."""
    return tmp_path


@pytest.fixture
def small_disk(
    engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Path]]:
    """Mounts small file systems, of a size and with as many inodes as tmpfs is told."""
    with contextlib.ExitStack() as mounted:

        def mount(options: str) -> Path:
            # Short: a socket's path has at most 107 bytes.
            folder = tmp_path_factory.mktemp("small")
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", str(folder)], check=True)
            mounted.callback(subprocess.run, ["umount", str(folder)], check=True)
            return folder

        yield mount
