"""Sandboxes whose own process holds state: the daemon dumps and restores the whole container."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from turnkeep.client.sync import Client
from turnkeep.model import Fidelity
from turnkeep.runtime import registration

from tests.conftest import IMAGE
from tests.e2e.harness import Box as Sandbox
from tests.e2e.harness import Daemon, turn
from tests.runtime.boxes import ASK, SERVER, Box
from tests.runtime.engines import OwnEngine
from tests.runtime.test_whole_container import Make

pytestmark = pytest.mark.docker

SERVE = ("python3", "-c", SERVER)


@pytest.fixture
def daemon(
    own: OwnEngine, settings: registration.Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon for the engine of our own."""
    made = Daemon(tmp_path_factory.mktemp("tk"), DOCKER_HOST=own.host)
    made.configure(
        f'auto_attach = false\n[process]\norders = "{settings.orders}"\ncriu = "{settings.criu_bin.parent}"'
    )
    made.start()
    yield made
    made.stop()


@pytest.fixture
def tk(daemon: Daemon) -> Iterator[Client]:
    """A client of it."""
    with daemon.connect() as client:
        yield client


def number(box: Box) -> int:
    """Return the server's next number; under plain runc an exec may meet a capture's freeze."""
    code, output = Sandbox(box.container).run(["python3", "-c", ASK, "8000"])
    assert code == 0, output
    return int(output)


def ready(box: Box) -> Box:
    box.wait_ready()
    return box


def test_a_server_as_process_1_goes_on(tk: Client, make: Make) -> None:
    box = ready(make(*SERVE))
    sandbox = tk.attach(box.container.name or "")
    assert [number(box), number(box)] == [1, 2]
    kept = turn(Sandbox(box.container), sandbox, "echo one > /root/file")
    checkpoint = sandbox.find_checkpoint(kept.number)
    assert checkpoint.fidelity is Fidelity.COMPLETE
    assert checkpoint.processes is not None
    assert checkpoint.processes.engine == "the whole container"
    assert number(box) == 3
    box.run("sh", "-c", "echo two > /root/file")
    for _ in range(2):
        done = sandbox.restore(turn=kept.number)
        assert done.mode == "cold"
        box.container.reload()
        assert number(box) == 3
        assert box.run("cat", "/root/file") == "one\n"
    box.stop()
    box.start()
    box.wait_ready(again=True)
    assert number(box) == 1


def test_with_an_exec_session_beside_it(tk: Client, make: Make) -> None:
    box = ready(make(*SERVE))
    sandbox = tk.attach(box.container.name or "")
    count = "n=0; while true; do n=$((n+1)); echo $n > /root/n; sleep 0.02; done"
    Sandbox(box.container).spawn("sh", "-c", count)
    number(box)
    kept = turn(Sandbox(box.container), sandbox, "true")
    checkpoint = sandbox.find_checkpoint(kept.number)
    assert checkpoint.processes is not None
    assert checkpoint.processes.engine == "both"
    sandbox.restore(turn=kept.number)
    assert number(box) == 2
    assert "echo $n" in box.run("ps", "ax")


def test_a_container_of_plain_runc_is_replaced_when_asked(
    tk: Client, make: Make, own: OwnEngine, settings: registration.Settings, tmp_path: Path
) -> None:
    box = ready(make(*SERVE, runtime="runc", labels={"mine": "yes"}))
    name = box.container.name or ""
    sandbox = tk.attach(name)
    number(box)
    kept = turn(Sandbox(box.container), sandbox, "true")
    assert number(box) == 2
    done = sandbox.restore(turn=kept.number)
    assert any("--replace" in note for note in done.notes)
    box.wait_ready(again=True)
    done = sandbox.restore(turn=kept.number, replace=True)
    assert done.mode == "cold"
    new = own.client.containers.get(name)
    assert new.id != box.id
    assert new.labels["mine"] == "yes"
    assert new.attrs["HostConfig"]["Runtime"] == registration.NAME
    box = Box(own, settings, new, tmp_path)
    assert number(box) == 2
    assert not [each for each in own.client.containers.list(all=True) if "replaced" in (each.name or "")]
    assert sandbox.refresh().container_id == new.id
    turn(Sandbox(new), sandbox, "echo > /root/later")
    sandbox.restore(turn=kept.number)
    assert number(box) == 2


def test_a_replaced_container_that_the_engine_does_not_remove(tk: Client, make: Make, own: OwnEngine) -> None:
    box = ready(make(*SERVE, runtime="runc", restart_policy={"Name": "always"}))
    name = box.container.name or ""
    sandbox = tk.attach(name)
    Sandbox(box.container).sh("echo > /root/pinned")
    earlier = own.client.containers.create(IMAGE, name=f"{name}-turnkeep-replaced")
    pinned = [Path(box.container.attrs["GraphDriver"]["Data"]["UpperDir"]) / "root" / "pinned"]
    subprocess.run(["chattr", "+i", *pinned], check=True)
    try:
        kept = turn(Sandbox(box.container), sandbox, "true")
        done = sandbox.restore(turn=kept.number, replace=True)
        assert any(f"docker rm -fv {(box.container.id or '')[:12]}" in note for note in done.notes), (
            done.notes
        )
        left = own.client.containers.get(box.container.id or "")
        assert (left.name or "").startswith(f"{earlier.name}-")
        assert left.attrs["HostConfig"]["RestartPolicy"]["Name"] == "no"
        assert sandbox.refresh().container_id != box.container.id
        new = own.client.containers.get(name)
        assert Sandbox(new).sh("ls /root/pinned") == "/root/pinned\n"
        after = turn(Sandbox(new), sandbox, "echo > /root/later")
        sandbox.restore(turn=after.number)
    finally:
        subprocess.run(["chattr", "-i", *pinned], check=True)
        for each in (box.container, earlier):
            own.client.api.remove_container(each.id or "", force=True, v=True)


def test_a_fork_of_a_whole_container(tk: Client, make: Make, own: OwnEngine) -> None:
    box = ready(make(*SERVE))
    sandbox = tk.attach(box.container.name or "")
    assert [number(box), number(box)] == [1, 2]
    (fork,) = sandbox.fork()
    copy = own.client.containers.get(fork.name)
    try:
        code, output = Sandbox(copy).run(["python3", "-c", ASK, "8000"])
        assert (code, int(output)) == (0, 3)
        assert number(box) == 3
    finally:
        copy.remove(force=True, v=True)
