"""Who calls: a call without a known token is refused before anything of it is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from cloud_server.credentials import Credentials
from cloud_server.interceptors import abort
from common.errors import RefusedError

_NO_TOKEN = (
    "this server asks for a token and none came; "
    "name the file with yours in security.token_file (--token-file)"
)
_UNKNOWN_TOKEN = (
    "this server does not know the token that came; "
    "the first token of security.token_file (--token-file) must be one of the server's"
)

_client: ContextVar[str | None] = ContextVar("client", default=None)


def client_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Names the client of the running call: its token's name, or its host where tokens are off."""
    return _client.get() or _host(context.peer())


def _host(peer: str) -> str:
    """Takes the host from `ipv4:HOST:PORT` or `ipv6:[HOST]:PORT`; `unix:...` has none."""
    kind, _, address = peer.partition(":")
    return unquote(address).rpartition(":")[0].strip("[]") or kind


class AuthenticationInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Asks every call for `authorization: Bearer TOKEN`, whatever its method; stands first.

    `on_error` is told the reason of each refusal, for the metrics.
    """

    def __init__(self, credentials: Credentials, on_error: Callable[[str], None]) -> None:
        self._credentials = credentials
        self._on_error = on_error

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Lets a known client pass, and answers any other without looking for its method."""
        sent = [
            str(value)
            for key, value in handler_call_details.invocation_metadata or ()
            if key == "authorization"
        ]
        client = self._credentials.client(_bearer(sent[0])) if len(sent) == 1 else None
        if client is None:
            return self._refusal(_UNKNOWN_TOKEN if sent else _NO_TOKEN)
        _client.set(client)
        return await continuation(handler_call_details)

    def _refusal(self, message: str) -> grpc.RpcMethodHandler[Any, Any]:
        # On the wire a stream answers calls of every shape, and reads no message by itself.
        async def refuse(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            error = RefusedError(message)
            self._on_error(error.reason)
            await abort(context, error)

        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(refuse)
        return handler


def _bearer(value: str) -> str:
    scheme, _, secret = value.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""
