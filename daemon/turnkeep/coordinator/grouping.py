"""Group commit: what happens at once in many sandboxes is journaled with one sync of the disk.

See Gray and Reuter, "Transaction Processing" (1993), on group commit: whoever
arrives while the disk is busy goes together with the next.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from turnkeep.journal import Happened, Journal
from turnkeep.model import Event


class GroupCommit:
    """Appends events to the journal, as many at once as wait. Lives on the event loop."""

    def __init__(self, journal: Journal, pool: Executor) -> None:
        self._journal = journal
        self._pool = pool
        self._waiting: list[tuple[Happened, asyncio.Future[Event]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def append(self, happened: Happened) -> Event:
        """Journal an event; it is durable when this returns.

        If the caller is cancelled, the event is journaled all the same.

        Raises:
            ResourceExhausted, StoreDamaged: the journal cannot be written.
        """
        loop = asyncio.get_running_loop()
        written: asyncio.Future[Event] = loop.create_future()
        self._waiting.append((happened, written))
        if self._writer is None or self._writer.done():
            self._writer = loop.create_task(self._write())
        try:
            return await asyncio.shield(written)
        except asyncio.CancelledError:
            await asyncio.wait([written])
            raise

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            results = await loop.run_in_executor(
                self._pool, self._append, [happened for happened, _ in group]
            )
            for (_, written), result in zip(group, results, strict=True):
                if isinstance(result, BaseException):
                    written.set_exception(result)
                    # Nobody may be left to look at it.
                    written.exception()
                else:
                    written.set_result(result)

    def _append(self, group: list[Happened]) -> list[Event | BaseException]:
        """Append a group; if that fails, each by itself, so that none fails for another."""
        try:
            return list(self._journal.append_all(group))
        except Exception as error:
            if len(group) == 1:
                return [error]
        return [self._append_one(happened) for happened in group]

    def _append_one(self, happened: Happened) -> Event | BaseException:
        try:
            return self._journal.append_all([happened])[0]
        except Exception as error:
            return error
