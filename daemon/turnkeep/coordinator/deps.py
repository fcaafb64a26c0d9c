"""What every coordinator works with, and where blocking work runs."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from turnkeep_store.repository import Repository

from turnkeep.checkpointer.capture import Checkpointer
from turnkeep.config import Config
from turnkeep.coordinator.grouping import GroupCommit
from turnkeep.journal import Journal
from turnkeep.process.engine import Processes
from turnkeep.runtime.engine import Engine
from turnkeep.runtime.freezer import Freezer

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class Pools:
    """Threads by what they wait for, so that one kind of work never waits for another.

    Captures need a thread at once and for milliseconds; commits compress and
    write for as long as it takes; the journal has one writer; the engine may
    hang; restores, prunes, checks and what is streamed
    at a caller's pace may take long.
    """

    capture: Executor
    commit: Executor
    journal: Executor
    engine: Executor
    long: Executor

    @classmethod
    def start(cls, workers: int) -> Pools:
        """Start the threads."""
        return cls(
            capture=ThreadPoolExecutor(max(8, workers * 4), "capture"),
            commit=ThreadPoolExecutor(max(2, workers), "commit"),
            journal=ThreadPoolExecutor(1, "journal"),
            engine=ThreadPoolExecutor(8, "engine"),
            long=ThreadPoolExecutor(16, "long"),
        )

    def stop(self) -> None:
        """Wait for what runs, and end the threads."""
        for pool in (self.capture, self.commit, self.engine, self.long, self.journal):
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True)
class Deps:
    """The parts that `app` put together."""

    config: Config
    journal: Journal
    repository: Repository
    checkpointer: Checkpointer
    processes: Processes
    engine: Engine
    freezer: Freezer
    pools: Pools
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    commits: GroupCommit = field(init=False)

    def __post_init__(self) -> None:
        self.commits = GroupCommit(self.journal, self.pools.journal)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine that must not be left half done.

    If the caller is cancelled meanwhile, the work still runs to its end before
    the cancellation goes on: what is written is then also known in memory.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


async def run(pool: Executor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call in a pool's thread.

    If the caller is cancelled, the call still runs to its end: a freeze or a
    write is never torn off in the middle.
    """
    future = asyncio.get_running_loop().run_in_executor(pool, functools.partial(call, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
