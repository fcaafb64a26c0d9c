"""The connection for asyncio: `link`, with awaits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from turnkeep.api.v1 import turnkeep_pb2_grpc
from turnkeep.client import faults, handles
from turnkeep.client.calls import Call, Stream, Upload
from turnkeep.client.session import CHANNEL_OPTIONS, TLS_SCHEME, Session
from turnkeep.client.values import Progress

T = TypeVar("T")


class AsyncLink:
    """Carries out calls, again after a broken connection where that is safe.

    Raises only errors of Turnkeep. Belongs to the event loop of its first call.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._channel: grpc.aio.Channel | None = None

    async def close(self) -> None:
        """Hang up. Calls that are under way fail."""
        self.session.closed = True
        if self._channel is not None:
            await self._channel.close()

    async def call(self, call: Call[T]) -> T:
        """Return the answer to a call."""
        method = self._method(call.method)
        return call.read(
            await self._attempt(
                lambda: method(call.request, timeout=call.timeout_s), repeatable=call.repeatable
            )
        )

    async def upload(self, upload: Upload[T]) -> T:
        """Return the answer to a call that sends in pieces."""
        method = self._method(upload.method)
        return upload.read(await self._attempt(lambda: method(upload.requests())))

    async def stream(self, stream: Stream[T]) -> AsyncGenerator[T, None]:
        """Yield the answers to a call. Closing the iterator hangs up on the daemon."""
        method = self._method(stream.method)
        request, repeatable = stream.request, stream.repeatable
        patience = self.session.patience(repeatable=repeatable)
        while True:
            answers = method(request, timeout=stream.for_s)
            try:
                async for answer in answers:
                    item = stream.read(answer)
                    repeatable = repeatable and stream.resume is not None
                    patience = self.session.patience(repeatable=repeatable)
                    if stream.resume is not None:
                        request = stream.resume(item)
                    yield item
                return
            except grpc.RpcError as failure:
                if stream.for_s is not None and faults.is_over(failure):
                    return
                delay_s = patience.delay_s(faults.from_rpc(failure, self.session.address))
            finally:
                answers.cancel()
            await asyncio.sleep(delay_s)

    async def work(self, stream: Stream[Progress | T], on_progress: Callable[[Progress], object] | None) -> T:
        """Return the result of long work, which comes after its progress."""
        async with contextlib.aclosing(self.stream(stream)) as steps:
            async for step in steps:
                if not isinstance(step, Progress):
                    return step
                if on_progress is not None:
                    on_progress(step)
        raise handles.unfinished(stream.method)

    async def _attempt(self, once: Callable[[], Awaitable[Any]], *, repeatable: bool = True) -> Any:
        patience = self.session.patience(repeatable=repeatable)
        while True:
            try:
                answer = await once()
            except grpc.RpcError as failure:
                delay_s = patience.delay_s(faults.from_rpc(failure, self.session.address))
            else:
                self.session.recovered()
                return answer
            await asyncio.sleep(delay_s)

    def _method(self, name: str) -> Any:
        self.session.ensure_open()
        if self._channel is None:
            # Only now: a channel binds to the event loop that runs when it is made.
            session = self.session
            if session.tls is None:
                self._channel = grpc.aio.insecure_channel(session.address, options=CHANNEL_OPTIONS)
            else:
                self._channel = grpc.aio.secure_channel(
                    session.address.removeprefix(TLS_SCHEME),
                    session.tls.credentials(),
                    options=CHANNEL_OPTIONS,
                )
            self._stub = turnkeep_pb2_grpc.TurnkeepStub(self._channel)
        return getattr(self._stub, name)
