"""Events of many sandboxes are journaled together, and none fails for another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from turnkeep.coordinator.grouping import GroupCommit
from turnkeep.journal import Happened, Journal, Put
from turnkeep.model import Event


class CountedJournal(Journal):
    """The real journal, which counts its transactions and can be held up."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.groups: list[int] = []
        self.entered = threading.Event()
        self.may_go = threading.Event()

    def append_all(self, happened: Sequence[Happened]) -> list[Event]:
        self.groups.append(len(happened))
        self.entered.set()
        assert self.may_go.wait(60)
        return super().append_all(happened)


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    with CountedJournal(tmp_path / "journal.sqlite") as journal:
        yield journal


async def test_what_waits_goes_together(journal: CountedJournal) -> None:
    with ThreadPoolExecutor(1) as pool:
        commits = GroupCommit(journal, pool)
        first = asyncio.create_task(commits.append(Happened.of("a", "0")))
        assert await asyncio.to_thread(journal.entered.wait, 60)
        others = [asyncio.create_task(commits.append(Happened.of("a", str(each)))) for each in range(1, 9)]
        await asyncio.sleep(0)
        journal.may_go.set()
        events = await asyncio.gather(first, *others)
    assert journal.groups == [1, 8]
    assert [event.message for event in events] == [str(each) for each in range(9)]
    assert [event.sequence for event in journal.events()] == [event.sequence for event in events]


async def test_one_that_cannot_be_written_fails_alone(journal: CountedJournal) -> None:
    with ThreadPoolExecutor(1) as pool:
        commits = GroupCommit(journal, pool)
        unwritable = Put("turn", "x", "y", 0, {"never": object()})
        made = [Happened.of("a", "0"), Happened.of("b", "", changes=[unwritable]), Happened.of("a", "1")]
        tasks = [asyncio.create_task(commits.append(each)) for each in made]
        journal.may_go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(found[1], TypeError)
    assert [event.message for event in journal.events()] == ["0", "1"]


async def test_a_caller_that_is_cancelled_leaves_its_event(journal: CountedJournal) -> None:
    with ThreadPoolExecutor(1) as pool:
        commits = GroupCommit(journal, pool)
        task = asyncio.create_task(commits.append(Happened.of("a", "kept")))
        assert await asyncio.to_thread(journal.entered.wait, 60)
        task.cancel()
        await asyncio.sleep(0)
        journal.may_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [event.message for event in journal.events()] == ["kept"]
