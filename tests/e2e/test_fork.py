"""Forks: copies that begin where the original is, and go their own way from there."""

from __future__ import annotations

import re
from collections.abc import Callable

import docker
import pytest
from turnkeep.client.sync import Client
from turnkeep.errors import Conflict, InvalidRequest

from tests.e2e.harness import Box, Daemon, turn
from tests.e2e.test_processes import SERVER, get, start


@pytest.fixture
def copies(engine: docker.DockerClient) -> Callable[..., list[Box]]:
    """Returns the containers of sandboxes."""

    def containers(*names: str) -> list[Box]:
        return [Box(engine.containers.get(name)) for name in names]

    return containers


def test_copies_go_their_own_way(box: Box, tk: Client, copies: Callable[..., list[Box]]) -> None:
    sandbox = tk.attach(box.name)
    start(box, SERVER, "server")
    box.sh("echo one > /root/file; echo 0123456789abcdef0123456789abcdef > /etc/machine-id")
    assert get(box) == 1
    turn(box, sandbox, "true")
    forks = sandbox.fork(2)
    first, second = copies(*(each.name for each in forks))
    assert [get(first), get(first), get(second)] == [2, 3, 2]
    assert get(box) == 2
    first.sh("echo two > /root/file")
    assert box.sh("cat /root/file") == second.sh("cat /root/file") == "one\n"
    names = {each.sh("cat /etc/hostname; hostname").split()[0] for each in (box, first, second)}
    assert len(names) == 3
    assert first.sh("cat /etc/hostname") == first.sh("hostname")
    machines = {each.sh("cat /etc/machine-id").strip() for each in (box, first, second)}
    assert len(machines) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in machines)


def test_a_copy_is_a_sandbox_of_its_own(box: Box, tk: Client, copies: Callable[..., list[Box]]) -> None:
    sandbox = tk.attach(box.name)
    start(box, SERVER, "server")
    get(box)
    turn(box, sandbox, "echo 1 > /root/at")
    turn(box, sandbox, "echo 2 > /root/at")
    (fork,) = sandbox.fork(ref=1, names=[f"{box.name}-side"])
    assert fork.name == f"{box.name}-side"
    (copy,) = copies(fork.name)
    assert copy.sh("cat /root/at") == "1\n"
    kept = turn(copy, fork, "echo 3 > /root/at")
    assert get(copy) == 2
    turn(copy, fork, "echo 4 > /root/at")
    fork.restore(turn=kept.number)
    assert copy.sh("cat /root/at") == "3\n"
    assert get(copy) == 2
    assert box.sh("cat /root/at") == "2\n"
    assert not sandbox.refresh().note


def test_published_ports_are_free_ones(
    make: Callable[..., Box], tk: Client, copies: Callable[..., list[Box]]
) -> None:
    box = make(network_mode="bridge", ports={"8000/tcp": None})
    sandbox = tk.attach(box.name)
    (fork,) = sandbox.fork()
    (copy,) = copies(fork.name)
    ports = []
    for each in (box, copy):
        each.container.reload()
        ports.append(each.container.attrs["NetworkSettings"]["Ports"]["8000/tcp"][0]["HostPort"])
    assert len(set(ports)) == 2
    own = copy.container.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    hosts = copy.sh("cat /etc/hosts")
    assert own in hosts
    assert box.sh("hostname").strip() not in hosts


def test_all_copies_or_none(box: Box, tk: Client, engine: docker.DockerClient, daemon: Daemon) -> None:
    sandbox = tk.attach(box.name)
    taken = f"{box.name}-taken"
    engine.containers.create("turnkeep/sandbox:test", name=taken)
    before = _named(engine, box.name)
    assert before == {box.name, taken}
    with pytest.raises(Conflict, match="taken"):
        sandbox.fork(names=[f"{box.name}-a", taken])
    with pytest.raises(InvalidRequest, match="2 names for 3 copies"):
        sandbox.fork(3, names=[f"{box.name}-a", f"{box.name}-b"])
    assert _named(engine, box.name) == before
    done = daemon.cli("fork", box.name, "-n", "2")
    assert f"{box.name}-fork-1" in done.stdout
    assert f"{box.name}-fork-2" in done.stdout


def _named(engine: docker.DockerClient, start: str) -> set[str]:
    """Return the containers whose names begin so."""
    found = engine.containers.list(all=True, ignore_removed=True, filters={"name": f"^/{start}"})
    return {each.name or "" for each in found}


def test_volumes_are_copied(make: Callable[..., Box], tk: Client, engine: docker.DockerClient) -> None:
    box = make(name="turnkeep-test-volumes", volumes={"turnkeep-test-volumes-data": {"bind": "/data"}})
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo one > /data/file")
    (fork,) = sandbox.fork()
    copy = Box(engine.containers.get(fork.name))
    copy.sh("echo two > /data/file")
    assert box.sh("cat /data/file") == "one\n"


def test_a_volume_that_is_there_already_is_left_alone(
    make: Callable[..., Box], tk: Client, engine: docker.DockerClient
) -> None:
    box = make(name="turnkeep-test-kept", volumes={"turnkeep-test-kept-data": {"bind": "/data"}})
    sandbox = tk.attach(box.name)
    theirs = "turnkeep-test-kept-x-turnkeep-test-kept-data"
    engine.volumes.create(theirs)
    with pytest.raises(Conflict, match="volume of this name"):
        sandbox.fork(names=["turnkeep-test-kept-x"])
    assert engine.volumes.get(theirs)
