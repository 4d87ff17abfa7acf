"""Requests are read ahead of their answers, and each is timed when it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from cloud_server.arrivals import READ_AHEAD, READ_AHEAD_BYTES, arrivals
from common.errors import EvictedError, InvalidRequestError


class Message(str):
    """Is a request that says its size."""

    size = 1

    def ByteSize(self) -> int:
        return self.size


class Sender:
    """Sends what it is told, one request a tick of the clock."""

    def __init__(
        self, count: int, error: Exception | None = None, hangs: bool = False, size: int = 1
    ) -> None:
        self.size = size
        self.sent = 0
        self.count = count
        self.error = error
        self.hangs = hangs

    def clock(self) -> int:
        return self.sent

    async def requests(self) -> AsyncIterator[Message]:
        while self.sent < self.count:
            self.sent += 1
            message = Message(f"request {self.sent}")
            message.size = self.size
            yield message
        if self.error:
            raise self.error
        if self.hangs:
            await asyncio.Event().wait()


async def settle() -> None:
    for _ in range(2 * READ_AHEAD):
        await asyncio.sleep(0)


def test_what_waits_for_its_turn_arrived_before() -> None:
    async def run() -> list[tuple[Message, int]]:
        sender, seen = Sender(3), []
        async with aclosing(arrivals(sender.requests(), sender.clock, lambda: 9)) as requests:
            async for arrived in requests:
                await settle()  # a slow answer: meanwhile all others come
                seen.append(arrived)
                assert sender.sent == 3
        return seen

    assert asyncio.run(run()) == [("request 1", 1), ("request 2", 2), ("request 3", 3)]


def test_a_sender_far_ahead_of_the_answers_has_to_wait() -> None:
    async def run() -> int:
        sender = Sender(1000)
        async with aclosing(arrivals(sender.requests(), sender.clock, lambda: 9)) as requests:
            await anext(requests)
            await settle()
            return sender.sent

    assert READ_AHEAD <= asyncio.run(run()) <= READ_AHEAD + 2


def test_large_requests_wait_in_the_network_and_not_in_memory() -> None:
    async def run() -> list[int]:
        sender, sent = Sender(5, size=READ_AHEAD_BYTES + 1), []
        async with aclosing(arrivals(sender.requests(), sender.clock, lambda: 9)) as requests:
            async for _ in requests:
                await settle()
                sent.append(sender.sent)
        return sent

    assert asyncio.run(run()) == [2, 3, 4, 5, 5]  # one is answered, and one waits


def test_what_ends_the_stream_is_raised_after_what_came_before() -> None:
    async def run() -> list[Message]:
        sender = Sender(2, InvalidRequestError("no message"))
        requests = arrivals(sender.requests(), sender.clock, lambda: 9)
        seen = [(await anext(requests))[0], (await anext(requests))[0]]
        with pytest.raises(InvalidRequestError, match="no message"):
            await anext(requests)
        return seen

    assert asyncio.run(run()) == ["request 1", "request 2"]


def test_a_silent_stream_is_evicted_and_its_reader_is_gone() -> None:
    async def run() -> set[asyncio.Task[None]]:
        sender = Sender(1, hangs=True)
        idle = iter([9, 0.01])
        requests = arrivals(sender.requests(), sender.clock, lambda: next(idle))
        await anext(requests)
        with pytest.raises(EvictedError, match=r"nothing was asked for 0\.01 s"):
            await anext(requests)
        await settle()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
