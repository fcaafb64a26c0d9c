"""Fixtures of the file tests. They mount, so they need root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from turnkeep.config import Limits
from turnkeep.watch import scan
from turnkeep_store.repository import Repository

from .overlays import Overlay, Step, build_image, remove_all
from .sandboxes import Sandbox

MakeSandbox = Callable[..., Sandbox]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0 or os.environ.get("CI"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="mounts overlays, which needs root"))


@pytest.fixture(autouse=True)
def _trusted_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust a status from the first moment on.

    Tests are so fast that all they write would be too fresh to be trusted, and
    be read again each time: nothing would be incremental. From Linux 6.13 on two
    changes have two ctimes if somebody looked in between.
    """
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    if (major, minor) >= (6, 13):
        monkeypatch.setattr(scan, "TICK_NS", 0)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """An empty repository."""
    with Repository.create(tmp_path / "repository") as repository:
        yield repository


@pytest.fixture
def make_sandbox(tmp_path: Path, repository: Repository) -> Iterator[MakeSandbox]:
    """Make sandboxes, mounted: `make_sandbox(steps)` on an image of those layers, or on another's image."""
    with ExitStack() as stack:
        made = 0

        def make(image: Sequence[Step] | Sandbox = (), *, limits: Limits | None = None) -> Sandbox:
            nonlocal made
            made += 1
            folder = tmp_path / f"sandbox{made}"
            if isinstance(image, Sandbox):
                layers = list(image.overlay.layers)
            else:
                layers = build_image(folder / "image", image)
            stack.callback(remove_all, folder)
            overlay = Overlay(folder, layers)
            sandbox = Sandbox(overlay, repository, limits)
            stack.callback(sandbox.close)
            overlay.mount()
            return sandbox

        yield make
