"""The `cloud` arm on the event loop: whose turn it is, and the way of its tokens to the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cloud_server.generate import StockGenerator, StockRequest
from cloud_server.host import Host
from common.types import GeneratedTokens, OpenSession


class StockTurns:
    """Lets stock generations run one after the other, each on a worker thread."""

    def __init__(self, host: Host, stock: StockGenerator) -> None:
        self._host = host
        self._stock = stock
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def open(
        self, opening: OpenSession, client: str
    ) -> AsyncIterator[AsyncIterator[GeneratedTokens]]:
        """Generates for the length of an `async with` block, once its turn has come.

        Raises what Host.new_state and Host.admit do.
        """
        made: asyncio.Queue[GeneratedTokens | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(tokens: GeneratedTokens) -> None:
            loop.call_soon_threadsafe(made.put_nowait, tokens)

        def ended(_: asyncio.Future[None]) -> None:
            self._turn.release()
            made.put_nowait(None)

        state = self._host.new_state(opening)
        request = StockRequest(
            tokens=tuple(state.history),
            sampling=state.sampling,
            prompt_length=state.prompt_length,
            stopper=state.stopper,
            arrived_ns=self._host.clock(),
            tell=tell,
        )
        self._host.metrics.prompt_tokens.inc(len(state.history))
        with self._host.admit(client, len(state.history), "stock"):
            await self._turn.acquire()
            running = asyncio.ensure_future(asyncio.to_thread(self._stock.run, request))
            # The turn is the thread's: whoever is cancelled while waiting for its end, and is
            # cancelled again, must not let the next one in beside it.
            running.add_done_callback(ended)
            try:
                yield self._pieces(made, running)
            finally:
                request.cancelled.set()
                await asyncio.wait([running])

    async def _pieces(
        self, made: asyncio.Queue[GeneratedTokens | None], running: asyncio.Future[None]
    ) -> AsyncIterator[GeneratedTokens]:
        while (tokens := await made.get()) is not None:
            self._host.metrics.generation_tokens.inc(len(tokens.token_ids))
            yield tokens
        await running
