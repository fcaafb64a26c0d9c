"""Cgroups and namespaces, or the reason why there are none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.unit.cgroups import Group, hierarchy
from tests.unit.namespaces import Namespace


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A mount namespace of one's own."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = Namespace.make()
    yield made
    made.close()


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> int:
    """A version of cgroups that can freeze here."""
    found: int = request.param
    if hierarchy(found) is None:
        if os.environ.get("CI") and hierarchy(3 - found) is None:
            pytest.fail("CI needs root and cgroups")
        pytest.skip(f"cgroup v{found} is not mounted, or not writable")
    return found


@pytest.fixture
def make_group(version: int) -> Iterator[Callable[..., Group]]:
    """Makes cgroups; they are removed afterwards."""
    made: list[Group] = []

    def make(below: str = "turnkeep-test") -> Group:
        made.append(Group.make(version, below))
        return made[-1]

    yield make
    for group in made:
        group.close()


@pytest.fixture
def group(make_group: Callable[..., Group]) -> Group:
    """A cgroup."""
    return make_group()
