"""Fixtures of the tests of following. They mount, and follow whole file systems: both need root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from turnkeep.watch.tracker import Tracker

from tests.files.overlays import Overlay, build_image, remove_all

from .followed import Followed
from .operations import fill_image, fill_upper

MakeFollowed = Callable[..., Followed]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0 or os.environ.get("CI"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="mounts overlays and follows changes, which needs root"))


@pytest.fixture(scope="session")
def _on_a_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", tmp_path_factory.getbasetemp()],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if kind == "tmpfs":
        pytest.skip("pytest's temporary folder lies in memory; --basetemp names one on a disk")


@pytest.fixture
def disk(tmp_path: Path, _on_a_disk: None) -> Iterator[Path]:
    """A folder on a disk, removed at the end whatever was made in it."""
    yield tmp_path
    remove_all(tmp_path)


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    """A tracker of this host."""
    tracker = Tracker(str(tmp_path_factory.mktemp("scratch")))
    yield tracker
    tracker.close()


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    """The layers of the image that `operations` work on."""
    folder = tmp_path_factory.mktemp("image")
    yield build_image(folder, [fill_image])
    remove_all(folder)


@pytest.fixture
def make_followed(disk: Path, layers: list[Path], tracker: Tracker) -> Iterator[MakeFollowed]:
    """Make mounted overlays on one image; all that happens in their upper layers is followed."""
    with ExitStack() as stack:
        made = 0

        def make() -> Followed:
            nonlocal made
            made += 1
            overlay = Overlay(disk / f"box{made}", layers)
            overlay.mount()
            stack.callback(overlay.unmount, at_any_rate=True)
            fill_upper(overlay.merged)
            followed = Followed(tracker, overlay)
            stack.callback(followed.close)
            return followed

        yield make


@pytest.fixture
def box(make_followed: MakeFollowed) -> Followed:
    """One such overlay."""
    return make_followed()
