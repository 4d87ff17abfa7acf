"""The requests of one stream, each with the moment it arrived: read ahead of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

from cloud_server.jobs import Clock
from common.errors import EvictedError

READ_AHEAD = 64
"""Requests that may wait unanswered; more than that stay in the network."""

Request = TypeVar("Request")


async def arrivals(
    requests: AsyncIterator[Request], clock: Clock, idle_s: Callable[[], float]
) -> AsyncGenerator[tuple[Request, int], None]:
    """Yields requests with their arrival in nanoseconds, to be closed by who asks (`aclosing`).

    What waits behind an unanswered request waits at this server and not in the network, and
    is timed so. Raises EvictedError when none comes for `idle_s`, asked anew each time.
    """
    waiting: asyncio.Queue[tuple[Request, int] | Exception | None] = asyncio.Queue(READ_AHEAD)

    async def read() -> None:
        ended = None
        try:
            async for request in requests:
                await waiting.put((request, clock()))
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
            yield arrived
    finally:
        reader.cancel()
