"""An engine with the runtime registered, containers, and a CRIU, or the reason why there is none."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import NotFound
from turnkeep.runtime import registration

from tests.conftest import IMAGE
from tests.runtime.boxes import Box
from tests.runtime.engines import OwnEngine, own_engine


@pytest.fixture(scope="session")
def criu_bin() -> Path:
    """The folder with the CRIU that a restore is to use."""
    installed = Path(os.environ.get("TURNKEEP_CRIU_ROOT", registration.CRIU_BIN.parent), "bin", "criu")
    found = installed if installed.exists() else Path(shutil.which("criu") or "/nonexistent")
    if not found.exists():
        if os.environ.get("CI"):
            pytest.fail("CI needs a CRIU (make host)")
        pytest.skip("needs a CRIU (make host)")
    return found.parent


@pytest.fixture(scope="session")
def own(engine: docker.DockerClient) -> Iterator[OwnEngine]:
    """An engine of our own. `engine` says whether there can be one at all.

    TURNKEEP_TEST_ENGINE is the folder of one that another test has started.
    """
    if "TURNKEEP_TEST_ENGINE" in os.environ:
        given = OwnEngine(Path(os.environ["TURNKEEP_TEST_ENGINE"]))
        given.connect()
        yield given
        given.client.close()
        return
    with own_engine() as made:
        yield made


@pytest.fixture(scope="session")
def settings(own: OwnEngine, criu_bin: Path) -> registration.Settings:
    """The runtime, registered with our engine."""
    made = registration.Settings(folder=own.folder / "lib", orders=own.folder / "orders", criu_bin=criu_bin)
    with contextlib.closing(registration.RuntimeEngine(own.host)) as connected:
        registration.register(connected, own.host, made)
    return made


@pytest.fixture
def make(own: OwnEngine, settings: registration.Settings, tmp_path: Path) -> Iterator[Callable[..., Box]]:
    """Starts containers under our runtime; removes them, and what has taken their place."""
    made: list[Box] = []

    def start(*command: str, runtime: str = registration.NAME, **options: Any) -> Box:
        container = own.client.containers.run(
            IMAGE,
            list(command) or None,
            name=f"tk-{secrets.token_hex(4)}",
            detach=True,
            runtime=runtime,
            **options,
        )
        made.append(Box(own, settings, container, tmp_path))
        return made[-1]

    yield start
    for box in made:
        with contextlib.suppress(NotFound):
            box.thaw()
            box.container.remove(force=True, v=True)
        with contextlib.suppress(NotFound):  # it was replaced
            own.client.containers.get(box.container.name or "").remove(force=True, v=True)
    assert not own.client.containers.list(all=True)
