"""Recorded commands and looks at sandboxes, on a real engine."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from bench.recovery.looks import look
from bench.replay import checkouts, commands, sizes
from bench.replay.traces import Step

pytestmark = pytest.mark.docker

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def checkout(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield checkouts.prepare(engine, f"turnkeep-test-{secrets.token_hex(4)}", "")


@pytest.fixture
def name(engine: docker.DockerClient, checkout: Path) -> Iterator[str]:
    drawn = f"turnkeep-test-{secrets.token_hex(4)}"
    with checkouts.sandbox(engine, drawn, checkout):
        yield drawn


def step(command: str, *, limit_s: float | None = None) -> Step:
    return Step(
        turn=1, command=command, cwd="/testbed", shell=("bash", "-lc"), exit=0, limit_s=limit_s, probe=False
    )


def digest(*outputs: bytes) -> str:
    return " ".join(hashlib.sha256(each).hexdigest() for each in outputs)


def test_a_command_runs_as_the_harness_ran_it(name: str) -> None:
    found = commands.run(name, step("pwd; echo wrong >&2; exit 3"), LIMIT_S)
    assert (found.exit, found.shown) == (3, "/testbed\nwrong\n")
    assert found.digest == digest(b"/testbed\n", b"wrong\n")


def test_long_output_is_digested_and_not_kept(name: str) -> None:
    found = commands.run(name, step("seq 100000"), LIMIT_S)
    whole = "".join(f"{number}\n" for number in range(1, 100001)).encode()
    assert found.digest == digest(whole, b"")
    assert len(found.shown) == 2000


def test_what_is_cut_off_at_its_limit_runs_on(engine: docker.DockerClient, name: str) -> None:
    found = commands.run(name, step("echo begun; sleep 1234", limit_s=2), LIMIT_S)
    assert (found.exit, found.shown) == (None, "begun\n")
    assert "sleep 1234" in {each.command for each in look(engine, name).processes}


def test_a_background_job_that_keeps_the_output_is_cut_off(engine: docker.DockerClient, name: str) -> None:
    assert commands.run(name, step("sleep 1234 &", limit_s=2), LIMIT_S).exit is None
    assert [each.name for each in look(engine, name).processes] == ["sleep"]


def test_the_checkout_is_committed_and_clean(name: str) -> None:
    assert commands.run(name, step("git status --short && git log --format=%s"), LIMIT_S).shown == "release\n"


def test_a_look_sees_files_and_the_living_but_neither_zombies_nor_init(
    engine: docker.DockerClient, name: str
) -> None:
    script = "setsid sleep 0.01 & setsid sleep 1234 > /dev/null 2>&1 & ln -s x link; echo 1 > /dev/shm/a"
    commands.run(name, step(script), LIMIT_S)
    commands.run(name, step("until ps -eo stat | grep -q Z; do :; done"), LIMIT_S)
    found = look(engine, name)
    assert [each.command for each in found.processes] == ["sleep 1234"]
    assert found.files["/testbed/link"].target == "x"
    assert found.files["/dev/shm/a"].size == 2
    assert found.files["/etc/hostname"].type == "file"
    assert not [path for path in found.files if path.startswith(("/proc/", "/sys/", "/dev/pts/"))]


def test_the_measured_layer_is_the_one_that_a_commit_stores(engine: docker.DockerClient, name: str) -> None:
    container = engine.containers.get(name)
    before = sizes.measure(sizes.upperdir(container))
    commands.run(name, step("head -c 100000 /dev/urandom > file"), LIMIT_S)
    after = sizes.measure(sizes.upperdir(container))
    assert after.layer - before.layer == 100_000
    assert after.files - before.files == 1
    assert after.snapshot - before.snapshot > 100_000
