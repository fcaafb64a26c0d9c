"""The edge of the server: every error becomes a status, every surprise is logged."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from turnkeep.errors import InternalError
from turnkeep.server.status import rich_status, translate

log = structlog.get_logger()


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Aborts calls that raise with the status that stands for the error."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/turnkeep."):
            return handler
        return wrapped(handler, method, _wrap_unary, _wrap_stream)


def wrapped(
    handler: Any, method: str, unary: Callable[[Any, str], Any], stream: Callable[[Any, str], Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a handler whose behaviour is what `unary` or `stream` make of it, by what it answers."""
    kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
    kind = next(each for each in kinds if getattr(handler, each) is not None)
    wrap = stream if handler.response_streaming else unary
    behaviour = wrap(getattr(handler, kind), method)
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    made: grpc.RpcMethodHandler[Any, Any] = make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


def _wrap_unary(behaviour: Any, method: str) -> Any:
    @functools.wraps(behaviour)
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await _abort(error, method, context)

    return call


def _wrap_stream(behaviour: Any, method: str) -> Any:
    @functools.wraps(behaviour)
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for message in behaviour(request, context):
                yield message
        except Exception as error:
            await _abort(error, method, context)

    return call


async def _abort(error: Exception, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    if isinstance(error, (grpc.aio.AbortError, asyncio.CancelledError)):
        raise error
    known = translate(error)
    if isinstance(known, InternalError):
        log.error("call failed unexpectedly", method=method, exc_info=error)
    await context.abort_with_status(rich_status(known))
