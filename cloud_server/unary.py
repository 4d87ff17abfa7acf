"""Sessions without a stream: each reached by its token, and only by the client that opened it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from cloud_server.host import Host
from cloud_server.live import LiveSession
from common.errors import EvictedError, InvalidRequestError
from common.types import OpenSession


@dataclass(slots=True)
class UnarySession:
    """Is one of them; `lock` is held while a call uses it."""

    client: str
    live: LiveSession
    stack: AsyncExitStack
    used_ns: int
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class UnarySessions:
    """Holds them until they are closed, or until nobody has used them for too long."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sessions: dict[bytes, UnarySession] = {}

    async def open(self, client: str, opening: OpenSession) -> bytes:
        """Opens one and returns its token; raises as Host.open does."""
        if opening.run_ahead:
            raise InvalidRequestError(
                f"run_ahead is {opening.run_ahead}, and a session without a stream has no way to "
                "be told of what the target writes alone; leave it out, or open a stream"
            )
        stack = AsyncExitStack()
        live = await stack.enter_async_context(self._host.open(opening, client))
        token = secrets.token_bytes(16)
        self._sessions[token] = UnarySession(client, live, stack, self._host.clock())
        return token

    def get(self, client: str, token: bytes) -> UnarySession | None:
        """Returns the client's own session of that token, None where there is none."""
        session = self._sessions.get(token)
        return None if session is None or session.client != client else session

    @asynccontextmanager
    async def using(self, session: UnarySession) -> AsyncIterator[None]:
        """Waits until no other call uses it, and keeps it for the length of an `async with`."""
        async with session.lock:
            try:
                yield
            finally:
                session.used_ns = self._host.clock()

    async def close(self, token: bytes, error: BaseException | None = None) -> None:
        """Ends a session, if it is still there; `error` is what its log line says of the end."""
        if (session := self._sessions.pop(token, None)) is not None:
            await session.stack.__aexit__(type(error) if error else None, error, None)

    async def close_unused(self, seconds: float) -> None:
        """Ends all that no call has used for so long."""
        latest = self._host.clock() - int(seconds * 1e9)
        for token, session in list(self._sessions.items()):
            if session.used_ns <= latest and not session.lock.locked():
                error = EvictedError("nothing was asked of it for too long")
                self._host.metrics.errors.labels(error.reason).inc()
                await self.close(token, error)

    async def close_all(self) -> None:
        """Ends all of them, as calls are cancelled when a server stops."""
        for token in list(self._sessions):
            await self.close(token, asyncio.CancelledError())

    async def expire_idle(self) -> None:
        """Ends what nobody uses, for as long as the server runs."""
        idle_seconds = self._host.limits.idle_session_seconds
        while True:
            await asyncio.sleep(idle_seconds / 4)
            await self.close_unused(idle_seconds)
