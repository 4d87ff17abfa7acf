"""Turns whatever a handler raises into a status with a machine-readable reason."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from common.errors import EvictedError, InternalError, InvalidRequestError, OutriderError
from common.wire import error_details, status_code

logger = logging.getLogger(__name__)

_NO_MORE = object()
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Maps our errors to their statuses, and anything else to INTERNAL, logged.

    A stream whose client takes no response for `patience_s` is ended with EvictedError, raised
    in the handler where it waits. `on_error` is told the reason of each, for the metrics.
    """

    def __init__(self, on_error: Callable[[str], None], patience_s: float) -> None:
        self._on_error = on_error
        self._patience_s = patience_s

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
        async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                generating = behaviour(request, context)
            except Exception as error:  # a request that is none
                await self._abort(context, error)
            async with aclosing(generating) as responses:
                step = anext(responses)
                while (response := await self._made(context, step)) is not _NO_MORE:
                    if await self._taken(context, response):
                        step = anext(responses)
                    else:  # told where it waits, the handler frees what it holds
                        step = responses.athrow(self._not_taken())

        return handle

    async def _made(self, context: grpc.aio.ServicerContext[Any, Any], step: Awaitable[Any]) -> Any:
        try:
            return await step
        except StopAsyncIteration:
            return _NO_MORE
        except Exception as error:
            await self._abort(context, error)

    async def _taken(self, context: grpc.aio.ServicerContext[Any, Any], response: Any) -> bool:
        """Writes a response; a client that does not read leaves it waiting for room on the way."""
        try:
            async with asyncio.timeout(self._patience_s):
                await context.write(response)
        except TimeoutError:
            return False
        return True

    def _not_taken(self) -> EvictedError:
        return EvictedError(
            f"no answer was read for {self._patience_s:g} s (cloud.idle_session_seconds); open the "
            "session again with all its tokens"
        )

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
