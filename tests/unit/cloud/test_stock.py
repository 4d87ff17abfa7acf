"""Whose turn it is in the `cloud` arm: one thread at a time, whatever becomes of its caller."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from cloud_server.generate import StockRequest
from cloud_server.metrics import Metrics
from cloud_server.stock import StockTurns
from common.types import GeneratedTokens, OpenSession, Peer, SamplingParams, StepTiming, StopParams

OPENING = OpenSession(Peer("", "", 0, ""), (5, 6), SamplingParams(), StopParams(9))


class SlowStock:
    """Makes a token, then does not heed that nobody wants more until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.running = 0
        self.most = 0

    def run(self, request: StockRequest) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        request.tell(GeneratedTokens((7,), None, StepTiming()))
        self.go.wait(60)
        self.running -= 1


@contextmanager
def admit(*_: object) -> Any:
    yield


def turns(stock: Any) -> StockTurns:
    state = SimpleNamespace(
        history=[5, 6], sampling=SamplingParams(), prompt_length=2, stopper=None
    )
    host: Any = SimpleNamespace(
        new_state=lambda _: state, clock=lambda: 0, metrics=Metrics(), admit=admit
    )
    return StockTurns(host, stock)


def test_a_turn_lasts_until_its_thread_has_ended_however_often_its_caller_is_cancelled() -> None:
    async def take_turns() -> None:
        stock = SlowStock()
        taking = turns(stock)
        has_token = asyncio.Event()

        async def generate() -> None:
            async with taking.open(OPENING, "a") as pieces:
                async for _ in pieces:
                    has_token.set()

        first = asyncio.create_task(generate())
        await has_token.wait()
        for _ in range(2):
            first.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await first
        assert stock.running == 1
        has_token.clear()
        second = asyncio.create_task(generate())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not has_token.is_set()
        stock.go.set()
        await second
        assert has_token.is_set()
        assert stock.most == 1

    asyncio.run(take_turns())
