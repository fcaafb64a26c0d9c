"""kill -9 at every named point: what was acknowledged is there, and nothing is left half done."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

import docker
import pytest
import turnkeep
from turnkeep.coordinator.creation import INTENT_LABEL
from turnkeep.errors import TurnkeepError
from turnkeep.model import TurnState
from turnkeep_store.points import VARIABLE

from tests.conftest import IMAGE
from tests.e2e.conftest import remove_named
from tests.e2e.crash_cases import CASES, KEPT_STATE, Case, Scene
from tests.e2e.harness import Box, Daemon, make_box, turn, wait_until

Scenes = Callable[[bool], Scene]


@pytest.fixture(scope="module")
def scenes(
    engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Scenes, set[int]]]:
    """Returns the scene with a server in it, or the one without; one that was spoilt is made anew."""
    made: list[Scene] = []
    spoilt: set[int] = set()

    def scene(server: bool) -> Scene:
        for each in made:
            if each.stateful is server and id(each) not in spoilt:
                return each
        new = Scene(
            Daemon(tmp_path_factory.mktemp("tk")),
            make_box(engine, IMAGE),
            lambda **options: make_box(engine, IMAGE, **options),
        )
        made.append(new)
        new.prepare(server=server)
        return new

    yield scene, spoilt
    for each in made:
        each.daemon.environment.pop(VARIABLE, None)
        each.daemon.stop()
        remove_named(engine, (each.box.name,))


@pytest.mark.parametrize("point", CASES, ids=str)
def test_a_kill(point: StrEnum, scenes: tuple[Scenes, set[int]], engine: docker.DockerClient) -> None:
    case = CASES[point]
    make, spoilt = scenes
    scene = make(case.server)
    spoilt.add(id(scene))
    _bring_about(scene, case, point)
    _start_again(scene)
    if case.again:
        with scene.daemon.connect() as tk:
            case.act(scene, tk)
    _assert_settled(scene)
    _assert_nothing_left(scene, engine)
    _assert_all_is_kept(scene)
    _assert_second_start_changes_nothing(scene)
    remove_named(engine, tuple(scene.made))
    spoilt.discard(id(scene))


def _bring_about(scene: Scene, case: Case, point: StrEnum) -> None:
    """Have the daemon killed at a point; fail if it never came by."""
    daemon = scene.daemon
    if daemon.process is not None:
        daemon.stop()
    daemon.environment[VARIABLE] = case.before or point
    daemon.start()
    try:
        with daemon.connect(retry_s=0) as tk:
            case.act(scene, tk)
    except (turnkeep.DaemonUnavailable, TurnkeepError):
        pass
    assert daemon.wait() == -signal.SIGKILL, f"{daemon.environment[VARIABLE]} was not reached"
    if case.before is not None:
        daemon.environment[VARIABLE] = point
        daemon.begin()
        assert daemon.wait() == -signal.SIGKILL, f"{point} was not reached"
    del daemon.environment[VARIABLE]


def _start_again(scene: Scene) -> None:
    daemon = scene.daemon
    daemon.start()
    with daemon.connect() as tk:
        assert not any("could not" in each for each in tk.status().recovery), tk.status().recovery


def _assert_settled(scene: Scene) -> None:
    """Every turn has ended well, the sandbox runs, and what was recorded agrees with itself."""
    with scene.daemon.connect() as tk:
        sandbox = tk.sandbox(scene.box.name)
        if sandbox.info.open_turn is not None:
            # Its harness would end it; another one takes over.
            with sandbox.turn(take_over=True):
                pass
        for each in sandbox.turns():
            settled = sandbox.wait(each.number)
            assert settled.state in (TurnState.DURABLE, TurnState.SKIPPED), settled
        scene.box.container.reload()
        assert scene.box.sh("echo runs") == "runs\n"
        assert scene.box.freezer() == "THAWED"
        assert tk.check().problems == ()
        assert tk.check(journal=True).problems == ()


def _assert_nothing_left(scene: Scene, engine: docker.DockerClient) -> None:
    with scene.daemon.connect() as tk:
        known = {each.container_id for each in tk.sandboxes()}
        found = engine.containers.list(all=True, filters={"label": INTENT_LABEL})
        ours = [each for each in found if (each.name or "").startswith(scene.box.name)]
        assert {each.id for each in ours} <= known, "a half-made container"
        for each in ours:
            assert Box(each).freezer() == "THAWED"
    store = scene.daemon.state / "store"
    assert list(store.rglob("tmp-*")) == []
    assert str(scene.daemon.state) not in Path("/proc/self/mounts").read_text()


def _assert_second_start_changes_nothing(scene: Scene) -> None:
    daemon = scene.daemon
    assert daemon.stop() == 0
    before = _files(daemon)
    daemon.start()
    with daemon.connect() as tk:
        assert tk.status().recovery == ()
        assert tk.check(journal=True).problems == ()
    assert daemon.stop() == 0
    assert _files(daemon) == before


def _files(daemon: Daemon) -> dict[str, int]:
    """Return the packs and records, with their sizes."""
    folders = [daemon.state / "store" / name for name in ("packs", "snapshots")]
    return {path.name: path.stat().st_size for folder in folders for path in folder.iterdir()}


def _assert_all_is_kept(scene: Scene) -> None:
    """Every checkpoint that was acknowledged comes back exactly; so does one that was not, if it is there."""
    with scene.daemon.connect() as tk:
        sandbox = tk.sandbox(scene.box.name)
        present = scene.look()
        newest = sandbox.turns()[-1]
        is_head = newest.number > 2 and sandbox.info.head_turn == newest.number
        turn(scene.box, sandbox, "date +%N > /work/between")
        assert sandbox.restore(turn=1).expected_digest
        assert scene.box.look() == scene.wanted[1]
        if is_head:
            sandbox.restore(turn=newest.number)
            assert scene.look() == present
        result = sandbox.restore(turn=2)
        assert result.harness_state == KEPT_STATE
        assert scene.look() == scene.wanted[2]
        if scene.stateful:
            first = scene.box.sh("cat /dev/shm/count")
            wait_until(lambda: scene.box.sh("cat /dev/shm/count") != first, "the server counts on")
