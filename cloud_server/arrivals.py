"""The requests of one stream, each with the moment it arrived: read ahead of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Protocol, TypeVar

from cloud_server.jobs import Clock
from common.errors import EvictedError

READ_AHEAD = 64
READ_AHEAD_BYTES = 1 << 16
"""Requests, and their bytes, that may wait unanswered; more than that stays in the network."""


class Message(Protocol):
    """Is a request as it came."""

    def ByteSize(self) -> int: ...  # noqa: D102


Request = TypeVar("Request", bound=Message)


async def arrivals(
    requests: AsyncIterator[Request], clock: Clock, idle_s: Callable[[], float]
) -> AsyncGenerator[tuple[Request, int], None]:
    """Yields requests with their arrival in nanoseconds, to be closed by who asks (`aclosing`).

    What waits behind an unanswered request waits at this server and not in the network, and
    is timed so. Raises EvictedError when none comes for `idle_s`, asked anew each time.
    """
    waiting: asyncio.Queue[tuple[Request, int] | Exception | None] = asyncio.Queue(READ_AHEAD)

    unanswered, has_room = 0, asyncio.Event()

    async def read() -> None:
        nonlocal unanswered
        ended = None
        try:
            async for request in requests:
                unanswered += request.ByteSize()
                await waiting.put((request, clock()))
                while unanswered > READ_AHEAD_BYTES:
                    has_room.clear()
                    await has_room.wait()
        except Exception as error:  # raised again where it is waited for
            ended = error
        await waiting.put(ended)

    reader = asyncio.create_task(read())
    try:
        while True:
            patience_s = idle_s()
            try:
                async with asyncio.timeout(patience_s):
                    arrived = await waiting.get()
            except TimeoutError:
                raise EvictedError(
                    f"nothing was asked for {patience_s:g} s (cloud.idle_session_seconds); open "
                    "the session again with all its tokens"
                ) from None
            if arrived is None:
                return
            if isinstance(arrived, Exception):
                raise arrived
            unanswered -= arrived[0].ByteSize()
            has_room.set()
            yield arrived
    finally:
        reader.cancel()
