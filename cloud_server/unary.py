"""Sessions without a stream: each reached by its token, and only by the client that opened it."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from cloud_server.host import Host
from cloud_server.live import LiveSession
from common.errors import EvictedError
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
        stack = AsyncExitStack()
        live = await stack.enter_async_context(self._host.open(opening, client))
        token = secrets.token_bytes(16)
        self._sessions[token] = UnarySession(client, live, stack, self._host.clock())
        return token

    def get(self, client: str, token: bytes) -> UnarySession | None:
        """Returns the client's own session of that token, None where there is none."""
        session = self._sessions.get(token)
        return None if session is None or session.client != client else session

    async def close(self, token: bytes) -> None:
        """Ends a session, if it is still there."""
        if (session := self._sessions.pop(token, None)) is not None:
            await session.stack.aclose()

    async def close_unused(self) -> None:
        """Ends all that no call is using."""
        for token, session in list(self._sessions.items()):
            if not session.lock.locked():
                await self.close(token)

    async def expire_idle(self) -> None:
        """Ends what nobody uses, for as long as the server runs."""
        idle_seconds = self._host.limits.idle_session_seconds
        while True:
            await asyncio.sleep(idle_seconds / 4)
            deadline = self._host.clock() - int(idle_seconds * 1e9)
            for token, session in list(self._sessions.items()):
                if session.used_ns < deadline and not session.lock.locked():
                    del self._sessions[token]
                    error = EvictedError("nothing was asked of it for too long")
                    self._host.metrics.errors.labels(error.reason).inc()
                    await session.stack.__aexit__(type(error), error, None)
