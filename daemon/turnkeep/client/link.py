"""The connection with blocking calls: attempts, deadlines, errors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import grpc

from turnkeep.api.v1 import turnkeep_pb2_grpc
from turnkeep.client import faults, handles
from turnkeep.client.calls import Call, Stream, Upload
from turnkeep.client.session import CHANNEL_OPTIONS, TLS_SCHEME, Session
from turnkeep.client.values import Progress

T = TypeVar("T")


class Link:
    """Carries out calls, again after a broken connection where that is safe.

    Raises only errors of Turnkeep. May be used from several threads.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        if session.tls is None:
            self._channel = grpc.insecure_channel(session.address, options=CHANNEL_OPTIONS)
        else:
            target = session.address.removeprefix(TLS_SCHEME)
            self._channel = grpc.secure_channel(target, session.tls.credentials(), options=CHANNEL_OPTIONS)
        self._stub = turnkeep_pb2_grpc.TurnkeepStub(self._channel)

    def close(self) -> None:
        """Hang up. Calls that are under way fail."""
        self.session.closed = True
        self._channel.close()

    def call(self, call: Call[T]) -> T:
        """Return the answer to a call."""
        method = self._method(call.method)
        return self._attempt(
            lambda: call.read(method(call.request, timeout=call.timeout_s)), repeatable=call.repeatable
        )

    def upload(self, upload: Upload[T]) -> T:
        """Return the answer to a call that sends in pieces."""
        method = self._method(upload.method)
        return self._attempt(lambda: upload.read(method(upload.requests())))

    def stream(self, stream: Stream[T]) -> Generator[T, None, None]:
        """Yield the answers to a call. Leaving the loop early hangs up on the daemon."""
        method = self._method(stream.method)
        request, repeatable = stream.request, stream.repeatable
        patience = self.session.patience(repeatable=repeatable)
        while True:
            answers = method(request, timeout=stream.for_s)
            try:
                for answer in answers:
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
            time.sleep(delay_s)

    def work(self, stream: Stream[Progress | T], on_progress: Callable[[Progress], object] | None) -> T:
        """Return the result of long work, which comes after its progress."""
        with contextlib.closing(self.stream(stream)) as steps:
            for step in steps:
                if not isinstance(step, Progress):
                    return step
                if on_progress is not None:
                    on_progress(step)
        raise handles.unfinished(stream.method)

    def _attempt(self, once: Callable[[], T], *, repeatable: bool = True) -> T:
        patience = self.session.patience(repeatable=repeatable)
        while True:
            try:
                answer = once()
            except grpc.RpcError as failure:
                delay_s = patience.delay_s(faults.from_rpc(failure, self.session.address))
            else:
                self.session.recovered()
                return answer
            time.sleep(delay_s)

    def _method(self, name: str) -> Any:
        self.session.ensure_open()
        return getattr(self._stub, name)
