"""How many calls one client may have under way at once, whatever they ask for."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio

from cloud_server.authentication import client_of
from cloud_server.interceptors import abort
from common.config import CloudSection
from common.errors import OverloadedError

_MAKE = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
_SPARE = 16
_RETRY_AFTER_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


class CallLimitInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses a client's call where it has as many under way in that service as it may have.

    Sessions are counted elsewhere (cloud_server/admission.py); this is for calls that are none:
    streams that open nothing, answers that nobody reads. Twice the sessions a client may have,
    and some to spare, so that nobody meets it by using what is granted. Each client is counted
    apart, and each service: health is answered whatever else is asked, and by whom.
    `on_error` is told the reason of each refusal, for the metrics.
    """

    def __init__(self, limits: CloudSection, on_error: Callable[[str], None]) -> None:
        own = limits.max_client_sessions
        is_own = own is not None and own < limits.max_sessions
        self._key = "max_client_sessions" if is_own else "max_sessions"
        self._most: int = 2 * getattr(limits, self._key) + _SPARE
        self._under_way: Counter[tuple[str, str]] = Counter()
        self._on_error = on_error

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler of one call."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        kind, make = _MAKE[handler.request_streaming, handler.response_streaming]
        service = handler_call_details.method.rpartition("/")[0]
        return make(
            self._counted(getattr(handler, kind), service),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _counted(self, behaviour: Any, service: str) -> Any:
        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._enter(service, context)
            async for response in behaviour(request, context):
                yield response

        async def call(request: Any, context: Context) -> Any:
            await self._enter(service, context)
            return await behaviour(request, context)

        return stream if inspect.isasyncgenfunction(behaviour) else call

    async def _enter(self, service: str, context: Context) -> None:
        """Counts a call until all of it is over, its answer delivered; or refuses it."""
        whose = client_of(context), service
        if self._under_way[whose] >= self._most:
            error = OverloadedError(
                f"this client has {self._most} calls under way, as many as it may; end some, or "
                f"raise cloud.{self._key}",
                _RETRY_AFTER_S,
            )
            self._on_error(error.reason)
            await abort(context, error)
        self._under_way[whose] += 1
        leave: Any = partial(self._leave, whose)  # the library's stubs know of no callback
        context.add_done_callback(leave)

    def _leave(self, whose: tuple[str, str], _: Context) -> None:
        self._under_way[whose] -= 1
        if not self._under_way[whose]:
            del self._under_way[whose]
