"""kill -9 while a whole container is dumped, restored or replaced (see `tests/e2e/test_crash_points.py`)."""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest
import turnkeep
from turnkeep.errors import TurnkeepError
from turnkeep.runtime import registration
from turnkeep.runtime.shim.carry_out import TAKEN

from tests.conftest import IMAGE
from tests.e2e.crash_cases import AGAIN_WHOLE, CASES, TOKEN_SERVER, Act, Scene, change, replace, restore_whole
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
    with _spoilt_by_failure(scenes, scene):
        _kill_and_look(lambda: bring_about(scene, case, point), case.act, scene, settings)


@pytest.mark.parametrize("work", ["dump", "start"])
def test_a_kill_in_the_middle(
    work: str, scenes: list[Scene], scene: Scene, settings: registration.Settings
) -> None:
    """While runc dumps the container, or restores it: both go on without the daemon."""
    act = {"dump": change, "start": restore_whole}[work]

    def under_way() -> bool:
        if work == "start":
            return any(settings.orders.glob(f"*{TAKEN}"))
        assert scene.daemon.process is not None
        descendants = psutil.Process(scene.daemon.process.pid).children(recursive=True)
        return any("checkpoint" in _words(each) for each in descendants)

    with _spoilt_by_failure(scenes, scene):
        _kill_and_look(lambda: _kill_when(under_way, act, scene), act, scene, settings)


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _kill_when(under_way: Callable[[], bool], act: Act, scene: Scene) -> None:
    if scene.daemon.process is None or scene.daemon.process.poll() is not None:
        scene.daemon.start()

    def begin() -> None:
        with (
            contextlib.suppress(turnkeep.DaemonUnavailable, TurnkeepError),
            scene.daemon.connect(retry_s=0) as tk,
        ):
            act(scene, tk)

    acting = threading.Thread(target=begin)
    acting.start()
    try:
        wait_until(under_way, "runc works")
    finally:
        scene.daemon.kill()
        acting.join()


@contextlib.contextmanager
def _spoilt_by_failure(scenes: list[Scene], scene: Scene) -> Iterator[None]:
    """Have the next case make a scene of its own if this one fails."""
    scenes.clear()
    try:
        yield
        scenes.append(scene)
    finally:
        if not scenes:
            _remove(scene)


def _kill_and_look(kill: Callable[[], None], act: Act, scene: Scene, settings: registration.Settings) -> None:
    box, client = scene.box, scene.box.container.client
    assert client is not None
    replaced = box.container.id
    kill()
    start_again(scene)
    box.container = client.containers.get(box.name)
    assert_settled(scene)
    assert_nothing_left(scene, client)
    _assert_no_trace(scene, settings)
    assert (box.container.id != replaced) is (act is replace)
    assert box.container.attrs["HostConfig"]["Runtime"] == registration.NAME
    _assert_all_is_kept(scene, act)
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


def _assert_all_is_kept(scene: Scene, act: Act) -> None:
    """The server goes on, and so it does in every checkpoint."""
    assert said(scene) == scene.token
    others = [1, 2]
    if act in (restore_whole, replace):
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
