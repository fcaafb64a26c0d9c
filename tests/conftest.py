"""What tests of every part share: the engine, or the reason why there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator

import docker
import pytest
from hypothesis import HealthCheck, settings

IMAGE = "turnkeep/sandbox:test"

# How long an example takes says nothing on a machine that does other things as well.
settings.register_profile("turnkeep", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("turnkeep")


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    """A Docker Engine with the test image. Without one, skip on a laptop and fail in CI."""
    try:
        if os.geteuid() != 0:
            raise RuntimeError("not root")
        client = docker.from_env()
        client.images.get(IMAGE)
    except Exception as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs root, a Docker Engine and {IMAGE}: {error}")
        pytest.skip(f"needs root, a Docker Engine and {IMAGE} (make host image): {error}")
    yield client
    client.close()
