"""Turns whatever a handler raises into a status with a machine-readable reason."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from common.errors import InternalError, InvalidRequestError, OutriderError
from common.wire import error_details, status_code

logger = logging.getLogger(__name__)

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Maps our errors to their statuses, and anything else to INTERNAL, logged.

    `on_error` is told the reason of each, for the metrics.
    """

    def __init__(self, on_error: Callable[[str], None]) -> None:
        self._on_error = on_error

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Wraps the handler of one call."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/outrider."):
            return handler
        if handler.unary_unary:
            return self._copy(handler, grpc.unary_unary_rpc_method_handler, handler.unary_unary)
        if handler.unary_stream:
            return self._copy(handler, grpc.unary_stream_rpc_method_handler, handler.unary_stream)
        return self._copy(handler, grpc.stream_stream_rpc_method_handler, handler.stream_stream)

    def _copy(self, handler: Any, make: Any, behaviour: Any) -> grpc.RpcMethodHandler[Any, Any]:
        wrap = self._wrap_stream if handler.response_streaming else self._wrap_unary
        parse = handler.request_deserializer
        served = behaviour
        if not handler.request_streaming:
            # gRPC says UNKNOWN of a request it cannot parse; parsed in here, it finds its status.
            def served(request: bytes, context: Any) -> Any:
                return behaviour(parse(request), context)

        wrapped: grpc.RpcMethodHandler[Any, Any] = make(
            wrap(served),
            request_deserializer=parse if handler.request_streaming else None,
            response_serializer=handler.response_serializer,
        )
        return wrapped

    def _wrap_unary(self, behaviour: Any) -> Any:
        @functools.wraps(behaviour)
        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await behaviour(request, context)
            except Exception as error:
                await self._abort(context, error)

        return handle

    def _wrap_stream(self, behaviour: Any) -> Any:
        @functools.wraps(behaviour)
        async def handle(
            request: Any, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            try:
                async for response in behaviour(request, context):
                    yield response
            except Exception as error:
                await self._abort(context, error)

        return handle

    async def _abort(
        self, context: grpc.aio.ServicerContext[Any, Any], error: Exception
    ) -> NoReturn:
        if isinstance(error, DecodeError):
            error = InvalidRequestError(f"a message is none of this protocol's: {error}")
        if not isinstance(error, OutriderError):
            logger.exception("a request failed")
            error = InternalError(f"{type(error).__name__}: {error}")
        self._on_error(error.reason)
        await abort(context, error)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: OutriderError) -> NoReturn:
    """Ends a call with the status, the message and the machine-readable reason of an error."""
    await context.abort(
        _CODES[status_code(error)],
        str(error),
        (("grpc-status-details-bin", error_details(error)),),
    )
    raise AssertionError("abort raises")
