"""The client for asyncio: `async with turnkeep.aio.connect() as tk`."""

from __future__ import annotations

from turnkeep.client.aio import AsyncClient, AsyncSandbox, AsyncTurn, connect

__all__ = ["AsyncClient", "AsyncSandbox", "AsyncTurn", "connect"]
