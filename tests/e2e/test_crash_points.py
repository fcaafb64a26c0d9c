"""kill -9 at every named point: what was acknowledged is there, and nothing is left half done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum

import docker
import pytest
from turnkeep_store.points import VARIABLE

from tests.conftest import IMAGE
from tests.e2e.conftest import remove_named
from tests.e2e.crash_cases import CASES, KEPT_STATE, Scene
from tests.e2e.crash_checks import (
    assert_nothing_left,
    assert_second_start_changes_nothing,
    assert_settled,
    bring_about,
    start_again,
)
from tests.e2e.harness import Daemon, make_box, turn, wait_until

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


@pytest.mark.parametrize("point", [each for each, case in CASES.items() if not case.whole], ids=str)
def test_a_kill(point: StrEnum, scenes: tuple[Scenes, set[int]], engine: docker.DockerClient) -> None:
    case = CASES[point]
    make, spoilt = scenes
    scene = make(case.server)
    spoilt.add(id(scene))
    bring_about(scene, case, point)
    start_again(scene)
    if case.again:
        with scene.daemon.connect() as tk:
            case.act(scene, tk)
    assert_settled(scene)
    assert_nothing_left(scene, engine)
    _assert_all_is_kept(scene)
    assert_second_start_changes_nothing(scene)
    remove_named(engine, tuple(scene.made))
    spoilt.discard(id(scene))


def _assert_all_is_kept(scene: Scene) -> None:
    """Every checkpoint that was acknowledged comes back exactly; so does one that was not, if it is there."""
    with scene.daemon.connect() as tk:
        sandbox = tk.sandbox(scene.box.name)
        present = scene.look()
        newest = sandbox.turns()[-1]
        is_head = newest.number > 2 and sandbox.info.head_turn == newest.number
        turn(scene.box, sandbox, "date +%N > /work/between")
        assert sandbox.restore(turn=1).expected_digest
        assert scene.look() == scene.wanted[1]
        if is_head:
            sandbox.restore(turn=newest.number)
            assert scene.look() == present
        result = sandbox.restore(turn=2)
        assert result.harness_state == KEPT_STATE
        assert scene.look() == scene.wanted[2]
        if scene.stateful:
            first = scene.box.sh("cat /dev/shm/count")
            wait_until(lambda: scene.box.sh("cat /dev/shm/count") != first, "the server counts on")
