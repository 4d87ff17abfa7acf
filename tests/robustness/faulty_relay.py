"""A TCP relay that fails on purpose, as links, proxies and machines do; seeded."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

CHUNK = 16 * 1024
UP, DOWN = 0, 1
FAULTS = ("reset", "stall", "half_close", "truncate", "delay")
"""What may strike a connection under way; `refuse` meets new ones."""

T = TypeVar("T")
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Plan:
    """States how often a link fails and how.

    Each direction of each connection fails after an exponentially distributed
    number of bytes, `mean_bytes` on average, in a way drawn by the weights.
    `refuse` is the share of connections that are closed when accepted.
    """

    mean_bytes: float = 4096.0
    reset: float = 1.0
    stall: float = 1.0
    half_close: float = 1.0
    truncate: float = 1.0
    delay: float = 1.0
    refuse: float = 0.05
    stall_s: float = 1.0  # at most
    for_ever: float = 0.2  # share of the stalls that do not end by themselves
    delay_s: float = 0.05  # at most
    seed: int = 0

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(getattr(self, fault) for fault in FAULTS)


class FaultyRelay:
    """Relays from a port of its own, `address`, while its `with` block lasts."""

    def __init__(self, to: str, plan: Plan) -> None:
        """Relays to HOST:PORT."""
        self.plan = plan
        self.counts: Counter[str] = Counter()
        self.is_calm = False
        self._to = to
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._accepted = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty relay")

    def __enter__(self) -> FaultyRelay:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def calm(self) -> None:
        """Ends all stalls and has no further faults."""

        async def release() -> None:
            self.is_calm = True
            for link in self._links.values():
                link.flow()

        self._run(release())

    def retarget(self, to: str) -> None:
        """Sends new connections to another HOST:PORT."""
        self._to = to

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _close(self) -> None:
        self._server.close()
        for task, link in list(self._links.items()):
            link.cut()
            task.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        number = self._accepted
        chance = random.Random(f"{self.plan.seed}/{number}")
        if not self.is_calm and chance.random() < self.plan.refuse:
            self.counts["refuse"] += 1
            writer.close()
            return
        host, _, port = self._to.rpartition(":")
        try:
            server = await asyncio.open_connection(host, int(port))
        except OSError:
            self.counts["nobody there"] += 1
            writer.close()
            return
        link = _Link(self, ((reader, writer), server), number)
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = link
        try:
            await link.run()
        except asyncio.CancelledError:
            pass  # closing; streams would log it
        finally:
            del self._links[task]


class _Link:
    """Is a client's connection and the one to the server that goes with it."""

    def __init__(self, relay: FaultyRelay, ends: tuple[Ends, Ends], number: int) -> None:
        self._relay = relay
        self._ends = ends
        self._number = number
        self._gates = (asyncio.Event(), asyncio.Event())
        self.flow()

    def flow(self) -> None:
        """Ends a stall."""
        for gate in self._gates:
            gate.set()

    def cut(self) -> None:
        """Closes both connections with what is still to be sent."""
        for _, writer in self._ends:
            writer.close()

    async def run(self) -> None:
        """Carries both directions to their ends."""
        try:
            await asyncio.gather(self._carry(UP), self._carry(DOWN))
        finally:
            self.cut()

    async def _carry(self, direction: int) -> None:
        plan = self._relay.plan
        chance = random.Random(f"{plan.seed}/{self._number}/{direction}")
        reader, writer = self._ends[direction][0], self._ends[1 - direction][1]
        left = chance.expovariate(1 / plan.mean_bytes)
        try:
            while data := await reader.read(CHUNK):
                left -= len(data)
                if left <= 0 and not self._relay.is_calm:
                    left = chance.expovariate(1 / plan.mean_bytes)
                    fault = chance.choices(FAULTS, plan.weights)[0]
                    self._relay.counts[fault] += 1
                    if not await self._strike(fault, data, writer, chance):
                        return
                await self._gates[direction].wait()
                writer.write(data)
                await writer.drain()
            if not writer.is_closing():
                writer.write_eof()
        except OSError:
            self.cut()  # one side is gone, so the other need not stay

    async def _strike(
        self, fault: str, data: bytes, writer: asyncio.StreamWriter, chance: random.Random
    ) -> bool:
        """Has one fault happen; returns whether the data goes on after it."""
        plan = self._relay.plan
        match fault:
            case "reset":
                for _, each in self._ends:
                    linger = struct.pack("ii", 1, 0)
                    each.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, linger
                    )
                    each.transport.abort()
                return False
            case "truncate":
                writer.write(data[: chance.randrange(len(data))])
                self.cut()
                return False
            case "half_close":
                writer.write(data)
                writer.write_eof()
                return False
            case "stall":
                for gate in chance.choice((self._gates[:1], self._gates[1:], self._gates)):
                    gate.clear()
                if chance.random() >= plan.for_ever:
                    seconds = chance.uniform(0, plan.stall_s)
                    asyncio.get_running_loop().call_later(seconds, self.flow)
            case "delay":
                await asyncio.sleep(chance.uniform(0, plan.delay_s))
        return True
