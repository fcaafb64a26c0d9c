"""Receiving a harness state: messages on the loop, storing in a thread, a few pieces between them."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator

from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.coordinator.deps import Deps, run
from turnkeep.errors import InvalidRequest
from turnkeep.harness_state import store_state
from turnkeep.model import HarnessState, SandboxId, TurnNumber

_PIECES_AHEAD = 8
_FULL_S = 0.001


async def receive_state(
    deps: Deps,
    sandbox_id: SandboxId,
    turn: TurnNumber,
    first: bytes,
    messages: AsyncIterator[pb.PutTurnStateRequest],
) -> tuple[HarnessState, int]:
    """Store what arrives; return where it lies, and how many bytes that added.

    If the caller hangs up, nothing is kept.

    Raises:
        ResourceExhausted: it is too long.
    """
    pieces: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=_PIECES_AHEAD)

    def received() -> Iterator[bytes]:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    limit = deps.config.limits.harness_state_bytes
    storing = asyncio.ensure_future(
        run(deps.pools.long, store_state, deps.repository, sandbox_id, turn, received(), limit)
    )

    async def feed(piece: bytes | Exception | None) -> None:
        while not storing.done():
            try:
                pieces.put_nowait(piece)
            except queue.Full:
                await asyncio.sleep(_FULL_S)
            else:
                return

    try:
        await feed(first)
        async for message in messages:
            await feed(message.data)
    except BaseException:
        await feed(InvalidRequest("the caller hung up", object=f"turn {turn}"))
        await asyncio.wait([storing])
        storing.exception()
        raise
    await feed(None)
    return await storing
