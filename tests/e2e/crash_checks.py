"""The daemon killed at a point, started again, and what has to be true then."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path

import docker
import turnkeep
from turnkeep.coordinator.creation import INTENT_LABEL, SET_ASIDE
from turnkeep.errors import TurnkeepError
from turnkeep.model import TurnState
from turnkeep_store.points import VARIABLE

from tests.e2e.crash_cases import Case, Scene
from tests.e2e.harness import Box, Daemon


def bring_about(scene: Scene, case: Case, point: StrEnum) -> None:
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


def start_again(scene: Scene) -> None:
    """Start the daemon again; it could do all that it had to."""
    daemon = scene.daemon
    daemon.start()
    with daemon.connect() as tk:
        assert not any("could not" in each for each in tk.status().recovery), tk.status().recovery


def assert_settled(scene: Scene) -> None:
    """Every turn has ended well, the sandbox runs, and what was recorded agrees with itself."""
    with scene.daemon.connect() as tk:
        sandbox = tk.sandbox(scene.box.name)
        assert sandbox.info.name == scene.box.name
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


def assert_nothing_left(scene: Scene, engine: docker.DockerClient) -> None:
    """Nothing half made is there: no container, no file of the store, no mount."""
    with scene.daemon.connect() as tk:
        known = {each.container_id for each in tk.sandboxes()}
        # Others' come and go meanwhile.
        found = engine.containers.list(all=True, ignore_removed=True, filters={"name": scene.box.name})
        ours = [each for each in found if INTENT_LABEL in each.labels]
        assert not [each for each in found if SET_ASIDE in (each.name or "")]
        assert {each.id for each in ours} <= known, "a half-made container"
        for each in ours:
            assert Box(each).freezer() == "THAWED"
    store = scene.daemon.state / "store"
    assert list(store.rglob("tmp-*")) == []
    assert str(scene.daemon.state) not in Path("/proc/self/mounts").read_text()


def assert_second_start_changes_nothing(scene: Scene) -> None:
    """The start after the one that recovered finds nothing to do."""
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
