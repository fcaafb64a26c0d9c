"""Fixtures of the store's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from turnkeep_store import durable
from turnkeep_store.repository import Repository
from turnkeep_store.snapshot import Snapshot

from .trees import FEW, IN_MEMORY, SMALL, commit


@pytest.fixture(autouse=True)
def _small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let even a small file take several writes."""
    monkeypatch.setattr(durable, "BUFFER_BYTES", 500)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory, where the host has that."""
    with tempfile.TemporaryDirectory(prefix="tk-", dir=IN_MEMORY) as name:
        yield Path(name)


@pytest.fixture
def home(in_memory: Path) -> Path:
    """Where a repository may be made."""
    return in_memory / "repo"


@pytest.fixture
def snapshot(home: Path) -> Snapshot:
    """The one snapshot of a repository at `home`, of `FEW` files."""
    with Repository.create(home) as repository:
        return commit(repository, FEW)


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    """An empty repository with small packs."""
    with Repository.create(tmp_path / "repo", options=SMALL) as repository:
        yield repository
