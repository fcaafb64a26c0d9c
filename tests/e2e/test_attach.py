"""Attaching, and what happens to a container meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from turnkeep.client.sync import Client
from turnkeep.errors import Conflict, ContainerNotRunning, SandboxNotFound, Unsupported
from turnkeep.model import ContainerState, TurnState

from tests.conftest import IMAGE
from tests.e2e.harness import Box, Daemon, turn, wait_until
from tests.e2e.image_layers import add_layers


def test_by_name_by_id_and_twice(tk: Client, box: Box) -> None:
    by_name = tk.attach(box.name)
    by_id = tk.attach((box.container.id or "")[:12])
    assert by_name.info.id == by_id.info.id
    assert [each.name for each in tk.sandboxes()].count(box.name) == 1
    assert {each.target for each in by_name.info.mounts if each.covered} >= {"/", "/dev/shm", "/etc/hosts"}


def test_containers_with_the_label_are_attached_by_themselves(
    start_daemon: Callable[..., Daemon], make: Callable[..., Box]
) -> None:
    before = make(labels={"turnkeep.enable": "true"})
    with start_daemon("auto_attach = true").connect() as tk:
        wait_until(
            lambda: before.name in {each.name for each in tk.sandboxes()}, "the running one is attached"
        )
        after = make(labels={"turnkeep.enable": "true"})
        plain = make()
        wait_until(
            lambda: after.name in {each.name for each in tk.sandboxes()}, "the started one is attached"
        )
        kept = turn(after, tk.sandbox(after.name), "echo 1 > /a")
        assert kept.state is TurnState.DURABLE
        with pytest.raises(SandboxNotFound):
            tk.sandbox(plain.name)


def test_a_restart_is_survived_and_a_stop_is_reported(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /a; echo 1 > /dev/shm/s")
    box.container.restart(timeout=0)
    after = turn(box, sandbox, "echo 2 > /a")
    assert after.state is TurnState.DURABLE
    sandbox.restore(turn=1)
    assert box.sh("cat /a /dev/shm/s") == "1\n1\n"
    box.container.stop(timeout=0)
    wait_until(lambda: sandbox.refresh().container_state is ContainerState.STOPPED, "the stop is seen")
    assert "stopped" in sandbox.info.note
    box.container.start()
    wait_until(lambda: sandbox.refresh().container_state is ContainerState.RUNNING, "the start is seen")


def test_what_a_dying_container_wrote_is_captured(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    with sandbox.turn(label="last") as last:
        box.sh("echo last > /a")
        box.container.kill()
    done = last.wait()
    assert done.state is TurnState.DURABLE
    sandbox.restore(turn=1)
    assert box.sh("cat /a") == "last\n"


def test_a_rename_is_followed(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    new = f"{box.name}-renamed"
    box.container.rename(new)
    wait_until(lambda: new in {each.name for each in tk.sandboxes()}, "the rename is seen")
    assert box.name not in {each.name for each in tk.sandboxes()}
    assert tk.sandbox(new).info.id == sandbox.info.id


def test_a_pause_is_reported_and_a_paused_container_is_captured_as_it_stands(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    with sandbox.turn(label="paused") as paused:
        box.sh("echo 1 > /a")
        box.container.pause()
    try:
        assert paused.wait().state is TurnState.DURABLE
        assert box.freezer() == "FROZEN", "it is not ours to let it run"
        wait_until(lambda: sandbox.refresh().container_state is ContainerState.PAUSED, "the pause is seen")
    finally:
        box.container.unpause()
    wait_until(lambda: sandbox.refresh().container_state is ContainerState.RUNNING, "the end of it is seen")


def test_detached_means_left_alone_and_comes_back(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 1 > /a")
    sandbox.detach()
    assert box.name not in {each.name for each in tk.sandboxes()}
    with pytest.raises(Conflict, match="detached"):
        sandbox.turn(label="refused").begin()
    box.sh("echo 2 > /a")
    again = tk.attach(box.name)
    assert again.info.id == sandbox.info.id
    assert turn(box, again, "echo 3 > /a").number == 2
    again.restore(turn=1)
    assert box.sh("cat /a") == "1\n"


def test_what_cannot_be_handled_is_refused_with_the_reason(tk: Client, make: Callable[..., Box]) -> None:
    with pytest.raises(Unsupported, match="pid=host"):
        tk.attach(make(pid_mode="host").name)
    stopped = make()
    stopped.container.stop(timeout=0)
    with pytest.raises(ContainerNotRunning, match="does not run"):
        tk.attach(stopped.name)


def test_a_shared_volume_is_not_covered_and_says_so(
    tk: Client, make: Callable[..., Box], engine: docker.DockerClient
) -> None:
    shared = {"turnkeep-test-shared": {"bind": "/data", "mode": "rw"}}
    try:
        first, second = make(volumes=shared), make(volumes=shared)
        for box in (first, second):
            mounts = {each.target: each for each in tk.attach(box.name).info.mounts}
            assert mounts["/data"].covered is False
            assert "shared" in mounts["/data"].reason
        kept = turn(first, tk.sandbox(first.name), "echo 1 > /data/a; echo 1 > /a")
        assert kept.decision is not None
        assert kept.decision.changed_paths == ("/a",)
        for box in (first, second):
            box.container.remove(force=True)
    finally:
        engine.volumes.get("turnkeep-test-shared").remove(force=True)


def test_many_layers_are_read_through_relative_paths(
    tk: Client, engine: docker.DockerClient, make: Callable[..., Box]
) -> None:
    """Docker mounts with relative paths when there are many layers."""
    layers = [{f"layer{number}": b"%d\n" % number} for number in range(70)]
    image = add_layers(engine, IMAGE, "turnkeep/test-layers:70", layers)
    try:
        box = make(image=image.id)
        mounted = Path(f"/proc/{box.state()['Pid']}/mountinfo").read_text().splitlines()[0]
        assert re.search(r"upperdir=[^/]", mounted) or "lowerdir=l/" in mounted, "not the case this is about"
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "rm /layer3 /layer69; echo new > /layer5")
        turn(box, sandbox, "echo back > /layer3; rm -f /layer10")
        sandbox.restore(turn=1)
        assert box.sh("ls /layer3 /layer69 2>/dev/null; cat /layer5 /layer10", check=False) == "new\n10\n"
        box.container.remove(force=True)
    finally:
        # By its id, for the daemon has a tag for it, too.
        engine.images.remove(str(image.id), force=True)


def test_the_cli_speaks_to_the_same_daemon(daemon: Daemon, box: Box) -> None:
    assert daemon.cli("attach", box.name).returncode == 0
    assert daemon.cli("exec", box.name, "--", "sh", "-c", "echo 1 > /a").returncode == 0
    assert daemon.cli("exec", box.name, "--", "sh", "-c", "exit 7", check=False).returncode == 7
    daemon.cli("turn", "wait", box.name)
    assert box.name in daemon.cli("ps").stdout
    assert "FILESYSTEM" in daemon.cli("log", box.name).stdout
    assert "/a" in daemon.cli("show", f"{box.name}@1").stdout
    box.sh("rm /a")
    restored = daemon.cli("restore", f"{box.name}@1")
    assert restored.returncode == 0, restored.stderr
    assert box.sh("cat /a") == "1\n"
    assert daemon.cli("restore", f"{box.name}@99", check=False).returncode == 3
    assert daemon.cli("check").returncode == 0
    assert daemon.cli("prune", "--dry-run").returncode == 0
    assert daemon.cli("doctor", check=False).returncode in (0, 1)


def test_health_and_reflection_are_served(daemon: Daemon) -> None:
    with grpc.insecure_channel(daemon.address) as channel:
        # The stubs of these two packages leave the generated methods out.
        health: Any = health_pb2_grpc.HealthStub(channel)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(service="turnkeep.v1.Turnkeep"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        listed = next(iter(reflection.ServerReflectionInfo(asked)))
        assert "turnkeep.v1.Turnkeep" in {each.name for each in listed.list_services_response.service}
