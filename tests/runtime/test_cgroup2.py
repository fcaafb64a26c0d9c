"""The same on cgroup v2: the tests run again, in a view of this host that has nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from tests.runtime.engines import LIMIT_S, own_engine

pytestmark = pytest.mark.docker

DOCKERD = """#!/bin/sh
exec unshare --mount sh -ec '
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec /usr/sbin/dockerd "$@"' dockerd "$@"
"""
CHOSEN = "plain or init or confined or stand_still or gets_at_nothing or exec"


@pytest.mark.skipif("TURNKEEP_TEST_ENGINE" in os.environ, reason="this is that run")
def test_whole_containers_on_cgroup_v2(
    engine: docker.DockerClient, criu_bin: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    programs = tmp_path_factory.mktemp("bin")
    (programs / "dockerd").write_text(DOCKERD)
    (programs / "dockerd").chmod(0o755)
    with own_engine(programs=str(programs)) as own:
        assert own.client.info()["CgroupVersion"] == "2"
        inside = ["nsenter", "--mount", f"--target={own.pid}"]
        tests = [str(Path(__file__).with_name("test_whole_container.py")), "-k", CHOSEN]
        options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path_factory.mktemp('t')}"]
        done = subprocess.run(
            [*inside, sys.executable, "-m", "pytest", *options, *tests],
            env={**os.environ, "TURNKEEP_TEST_ENGINE": str(own.folder)},
            check=False,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT_S,
        )
        assert done.returncode == 0, done.stdout[-5000:]
        assert " passed" in done.stdout
        assert "skipped" not in done.stdout
