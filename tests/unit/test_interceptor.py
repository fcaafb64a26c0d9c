"""The server's edge, over a real gRPC server on a unix socket."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from turnkeep.client.faults import from_rpc
from turnkeep.errors import Conflict, DigestMismatch, InternalError, StoreDamaged, TurnkeepError
from turnkeep.server.interceptor import ErrorInterceptor
from turnkeep_store.errors import Damaged

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]

Call = Callable[..., Awaitable[bytes]]


class Service(grpc.GenericRpcHandler):
    """Every method, of each kind, does what it was told to."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.abort = False

    def service(self, details: Any) -> Any:
        kind = details.method.rpartition("/")[2]
        if kind not in KINDS:
            return None
        behaviour = self._stream if kind.endswith("stream") else self._unary
        return getattr(grpc, f"{kind}_rpc_method_handler")(behaviour)

    async def _unary(self, request: Any, context: Any) -> bytes:
        if self.abort:
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "its own")
        if self.error is not None:
            raise self.error
        return b"done"

    async def _stream(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self._unary(request, context)


@contextlib.asynccontextmanager
async def served(service: Service, folder: Path) -> AsyncIterator[Call]:
    """Serve, and give what calls: (package, kind) → the last message."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    server.add_generic_rpc_handlers((service,))
    address = f"unix:{folder}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:

        async def call(package: str, kind: str, method_name: str = "") -> bytes:
            method = getattr(channel, kind)(f"/{package}.Any/{method_name or kind}")
            request = iter([b"x"]) if kind.startswith("stream") else b"x"
            if kind.endswith("unary"):
                answer: bytes = await method(request)
                return answer
            messages = [message async for message in method(request)]
            assert messages[0] == b"first"
            last: bytes = messages[-1]
            return last

        yield call
    await server.stop(None)


async def failed(call: Call, kind: str, package: str = "turnkeep.v1") -> TurnkeepError:
    """Call, and return the error that a client makes of the failure."""
    with pytest.raises(grpc.RpcError) as raised:
        await call(package, kind)
    return from_rpc(raised.value, "unix:///s").error


@pytest.mark.parametrize("kind", KINDS)
async def test_what_works_passes(tmp_path: Path, kind: str) -> None:
    async with served(Service(), tmp_path) as call:
        assert await call("turnkeep.v1", kind) == b"done"


@pytest.mark.parametrize("kind", KINDS)
async def test_our_errors_arrive_and_are_not_logged(tmp_path: Path, kind: str) -> None:
    service = Service()
    service.error = Conflict("taken", object="turn 7", hint="wait")
    async with served(service, tmp_path) as call:
        with capture_logs() as logs:
            error = await failed(call, kind)
    assert (type(error), error.message, error.object, error.hint) == (Conflict, "taken", "turn 7", "wait")
    assert logs == []


async def test_the_stores_errors_are_translated(tmp_path: Path) -> None:
    service = Service()
    service.error = Damaged("pack 1: torn")
    async with served(service, tmp_path) as call:
        assert isinstance(await failed(call, "unary_unary"), StoreDamaged)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_surprise_is_logged_once_and_tells_nothing(tmp_path: Path, kind: str) -> None:
    service = Service()
    service.error = ValueError("secret of a sandbox")
    async with served(service, tmp_path) as call:
        with capture_logs() as logs, pytest.raises(grpc.RpcError) as raised:
            await call("turnkeep.v1", kind)
    assert "secret" not in repr(raised.value)
    assert "secret" not in repr(raised.value.trailing_metadata())
    error = from_rpc(raised.value, "unix:///s").error
    assert (type(error), error.message) == (InternalError, "unexpected ValueError")
    (line,) = logs
    assert (line["log_level"], line["method"]) == ("error", f"/turnkeep.v1.Any/{kind}")
    assert line["exc_info"] is service.error


async def test_a_status_that_was_set_stays(tmp_path: Path) -> None:
    service = Service()
    service.abort = True
    async with served(service, tmp_path) as call:
        with capture_logs() as logs, pytest.raises(grpc.RpcError) as raised:
            await call("turnkeep.v1", "unary_unary")
    assert raised.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert logs == []


async def test_an_unknown_method_is_grpcs_matter(tmp_path: Path) -> None:
    async with served(Service(), tmp_path) as call:
        with pytest.raises(grpc.RpcError) as raised:
            await call("turnkeep.v1", "unary_unary", "none")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "length",
    [
        100,
        4_000,
        pytest.param(
            80_000,
        ),
    ],
)
async def test_a_long_message_arrives_as_the_same_error(tmp_path: Path, length: int) -> None:
    """A digest mismatch names twenty paths, each up to 4096 bytes long."""
    service = Service()
    service.error = DigestMismatch("x" * length, object="checkpoint 12")
    async with served(service, tmp_path) as call:
        error = await failed(call, "unary_unary")
    assert isinstance(error, DigestMismatch)
    assert error.object == "checkpoint 12"
