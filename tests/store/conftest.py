"""Fixtures of the store's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from turnkeep_store import durable
from turnkeep_store.repository import Repository

from .trees import SMALL


@pytest.fixture(autouse=True)
def _small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let even a small file take several writes."""
    monkeypatch.setattr(durable, "BUFFER_BYTES", 500)


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    """An empty repository with small packs."""
    with Repository.create(tmp_path / "repo", options=SMALL) as repository:
        yield repository
