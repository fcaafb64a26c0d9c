"""Long work as a stream: its progress as it comes, and at last its result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from turnkeep.api.v1 import turnkeep_pb2 as pb

T = TypeVar("T")

Tell = Callable[[str, int, int], None]
"""Called with a phase, the units done, and the units in all, from any thread."""

_QUICK_S = 0.05

_running: set[asyncio.Future[Any]] = set()
"""Work in flight, held so that it is not collected when its caller hangs up."""


async def with_progress(
    work: Callable[[Tell], Awaitable[T]],
) -> AsyncIterator[pb.Progress | T]:
    """Run `work` to its end, yielding its progress once that takes a while, and then its result.

    If the caller hangs up, the work goes on: it is not half done because
    somebody stopped looking.
    """
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[pb.Progress | None] = asyncio.Queue()
    started = time.monotonic()

    def tell(phase: str, done: int, total: int) -> None:
        # What takes milliseconds has no progress to look at.
        if time.monotonic() - started < _QUICK_S:
            return
        step = pb.Progress(phase=phase, done=done, total=total)
        loop.call_soon_threadsafe(steps.put_nowait, step)

    async def whole() -> T:
        try:
            return await work(tell)
        finally:
            loop.call_soon(steps.put_nowait, None)

    task = asyncio.ensure_future(whole())
    _running.add(task)
    task.add_done_callback(_running.discard)
    while (step := await steps.get()) is not None:
        yield step
    yield await asyncio.shield(task)
