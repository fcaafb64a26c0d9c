"""kill -9 while a whole container is dumped, restored or replaced (see `tests/e2e/test_crash_points.py`)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from enum import StrEnum

import pytest
from turnkeep.runtime import registration

from tests.conftest import IMAGE
from tests.e2e.crash_cases import AGAIN_WHOLE, CASES, TOKEN_SERVER, Case, Scene, replace, restore_whole
from tests.e2e.crash_checks import (
    assert_nothing_left,
    assert_second_start_changes_nothing,
    assert_settled,
    bring_about,
    start_again,
)
from tests.e2e.harness import Daemon, make_box, wait_until
from tests.runtime.engines import OwnEngine

pytestmark = pytest.mark.docker

WHOLE = {**{str(point): (point, case) for point, case in CASES.items() if case.whole}, **AGAIN_WHOLE}


@pytest.fixture(scope="module")
def scenes(
    own: OwnEngine, settings: registration.Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Scene]]:
    """The scene that is used from case to case, if it was not spoilt."""
    made: list[Scene] = []
    yield made
    for scene in made:
        scene.daemon.kill()
    for container in own.client.containers.list(all=True):
        container.remove(force=True, v=True)


@pytest.fixture
def scene(
    scenes: list[Scene],
    own: OwnEngine,
    settings: registration.Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scene:
    """A sandbox whose own process is a server, with two turns."""
    if scenes:
        return scenes[-1]
    daemon = Daemon(tmp_path_factory.mktemp("tk"), DOCKER_HOST=own.host)
    daemon.configure(
        f'auto_attach = false\n[process]\norders = "{settings.orders}"\ncriu = "{settings.criu_bin.parent}"'
    )
    box = make_box(
        own.client,
        IMAGE,
        name=f"tk-{secrets.token_hex(4)}",
        init=False,
        runtime=registration.NAME,
        command=["python3", "-c", TOKEN_SERVER],
    )
    made = Scene(daemon, box, lambda **options: make_box(own.client, IMAGE, **options))
    wait_until(lambda: said(made), "the server counts")
    made.token = said(made)
    made.prepare(server=True)
    scenes.append(made)
    return made


def said(scene: Scene) -> str:
    """Return the server's token."""
    return scene.box.sh("cut -d ' ' -f 1 /dev/shm/count", check=False).strip()


@pytest.mark.parametrize("name", WHOLE)
def test_a_kill(name: str, scenes: list[Scene], scene: Scene, settings: registration.Settings) -> None:
    point, case = WHOLE[name]
    scenes.clear()
    try:
        _kill_and_look(point, case, scene, settings)
        scenes.append(scene)
    finally:
        if not scenes:
            _remove(scene)


def _kill_and_look(point: StrEnum, case: Case, scene: Scene, settings: registration.Settings) -> None:
    box, client = scene.box, scene.box.container.client
    assert client is not None
    replaced = box.container.id
    bring_about(scene, case, point)
    start_again(scene)
    box.container = client.containers.get(box.name)
    assert_settled(scene)
    assert_nothing_left(scene, client)
    _assert_no_trace(scene, settings)
    assert (box.container.id != replaced) is (case.act is replace)
    assert box.container.attrs["HostConfig"]["Runtime"] == registration.NAME
    _assert_all_is_kept(scene, case)
    assert_second_start_changes_nothing(scene)


def _assert_no_trace(scene: Scene, settings: registration.Settings) -> None:
    """No order lies there, no images, and no container but the sandboxes'."""
    assert list(settings.orders.glob("*")) == []
    run = scene.daemon.state / "run"
    assert [*run.glob("whole-*"), *run.glob("images-*")] == []
    client = scene.box.container.client
    assert client is not None
    with scene.daemon.connect() as tk:
        names = {each.name for each in tk.sandboxes()}
        assert {each.name for each in client.containers.list(all=True)} == names
        assert scene.box.name in names


def _assert_all_is_kept(scene: Scene, case: Case) -> None:
    """The server goes on, and so it does in every checkpoint."""
    assert said(scene) == scene.token
    others = [1, 2]
    if case.act in (restore_whole, replace):
        assert scene.look() == scene.wanted[2]
        others.remove(2)
    with scene.daemon.connect() as tk:
        sandbox = tk.sandbox(scene.box.name)
        for number in others:
            sandbox.restore(turn=number)
            assert scene.look() == scene.wanted[number]
            assert said(scene) == scene.token
    first = scene.box.sh("cat /dev/shm/count")
    wait_until(lambda: scene.box.sh("cat /dev/shm/count") != first, "the server counts on")


def _remove(scene: Scene) -> None:
    scene.daemon.kill()
    client = scene.box.container.client
    assert client is not None
    for container in client.containers.list(all=True):
        if (container.name or "").startswith(scene.box.name):
            container.remove(force=True, v=True)
