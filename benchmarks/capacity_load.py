"""Many clients at once in one asyncio process, each replaying recorded texts: capacity.py.

A client begins its next text when one has ended (a closed loop). It drafts nothing: what a draft
took is slept. Whatever the server says that it did not say when the text was recorded ends that
text, and is counted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.capacity_recording import Recording, Text, without_timing
from common import wire
from common.types import GenerateMode
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub

MODES = {
    "cloud_optimized": GenerateMode.OPTIMIZED,
    "cloud_assisted": GenerateMode.ASSISTED,
}
"""The arms whose texts are streamed; `speculative` is replayed round by round."""


class PartedError(Exception):
    """Says that a text came out another than it was recorded."""


@dataclass(frozen=True, slots=True)
class Load:
    """Is what to drive: how many clients, by which arm, from how far away, for how long.

    `guess_s` is what a guess takes a client, `rtt_s` the round trip added to the link's own: once
    a round in `speculative`, once a text elsewhere. A window of `seconds` begins after `settle_s`.
    """

    arm: str
    clients: int
    guess_s: float
    rtt_s: float
    seconds: float
    settle_s: float


@dataclass(slots=True)
class Seen:
    """Is what the clients saw, on the clock of `time.perf_counter`."""

    arrivals: list[tuple[float, int]] = field(default_factory=list)  # when, and how many tokens
    texts: list[tuple[float, float, float | None]] = field(default_factory=list)
    """When a text ended, its time to first token and its time a token after it, in seconds."""
    parted: int = 0
    overslept: list[float] = field(default_factory=list)  # beyond what was asked for, in seconds
    begun_s: float = 0.0
    ended_s: float = 0.0
    before: dict[str, float] = field(default_factory=dict)  # the server's counters
    after: dict[str, float] = field(default_factory=dict)
    client_cpu_s: float = 0.0

    def grown(self, counter: str) -> float:
        """Returns by how much a counter of the server grew within the window."""
        return self.after[counter] - self.before[counter]


def drive(address: str, metrics: str, recording: Recording, load: Load) -> Seen:
    """Runs a load against a server and returns what was seen; `metrics` is where it is scraped."""
    return asyncio.run(_Clients(address, recording, load).run(lambda: counters(metrics)))


def counters(metrics: str) -> dict[str, float]:
    """Returns the counters of a server at HOST:PORT, by name, those with labels left out."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=30) as page:
        families = text_string_to_metric_families(page.read().decode())
        return {s.name: s.value for family in families for s in family.samples if not s.labels}


class _Clients:
    def __init__(self, address: str, recording: Recording, load: Load) -> None:
        self._address = address
        self._recording = recording
        self._load = load
        self._seen = Seen()

    async def run(self, scrape: Callable[[], dict[str, float]]) -> Seen:
        clients = [asyncio.create_task(self._client(i)) for i in range(self._load.clients)]
        await self._while_running(clients, self._load.settle_s)
        seen = self._seen
        seen.before = await asyncio.to_thread(scrape)
        cpu_s, seen.begun_s = time.process_time(), time.perf_counter()
        await self._while_running(clients, self._load.seconds)
        seen.after = await asyncio.to_thread(scrape)
        seen.ended_s, seen.client_cpu_s = time.perf_counter(), time.process_time() - cpu_s
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        return seen

    async def _while_running(self, clients: Sequence[asyncio.Task[None]], seconds: float) -> None:
        """Waits; raises what ends a client, as none ends by itself."""
        ended, _ = await asyncio.wait(clients, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for client in ended:
            client.result()

    async def _client(self, number: int) -> None:
        """Writes one text after another over a connection of its own, as one elsewhere does."""
        texts = itertools.cycle(self._recording.texts)
        async with grpc.aio.insecure_channel(
            self._address, [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            stub: Any = VerifierStub(channel)  # it is annotated as one of a blocking channel
            for text in itertools.islice(texts, number, None):
                await self._text(stub, text)

    async def _text(self, stub: Any, text: Text) -> None:
        arm = self._load.arm
        made = self._streamed(stub, text, arm) if arm in MODES else self._speculative(stub, text)
        began = time.perf_counter()
        first = last = None
        tokens = 0
        try:
            async for count in made:
                last = time.perf_counter()
                first = first or last
                tokens += count
                self._seen.arrivals.append((last, count))
        except PartedError:
            self._seen.parted += 1
            return
        assert first is not None
        assert last is not None
        a_token = (last - first) / (tokens - 1) if tokens > 1 else None
        self._seen.texts.append((last, first - began, a_token))

    async def _speculative(self, stub: Any, text: Text) -> AsyncIterator[int]:
        """Yields how many tokens each round brought."""
        load = self._load
        async with _ended(stub.Session()) as call:
            await call.write(pb.SessionRequest(open=wire.open_to_proto(text.opening)))
            for made in text.rounds:
                await self._sleep(len(made.draft.token_ids) * load.guess_s + load.rtt_s)
                await call.write(pb.SessionRequest(verify=wire.draft_to_proto(made.draft)))
                response = await call.read()
                if response.HasField("opened"):
                    response = await call.read()
                said = wire.verdict_from_proto(response.verdict)
                if without_timing(said) != made.verdict:
                    raise PartedError
                yield said.accepted + (said.next_token_id is not None)
            await call.done_writing()

    async def _streamed(self, stub: Any, text: Text, arm: str) -> AsyncIterator[int]:
        """Yields how many tokens each piece brought."""
        request = wire.generate_to_proto(MODES[arm], text.opening)
        if arm == "cloud_assisted":
            request.open.draft_length = self._recording.draft_length
        await self._sleep(self._load.rtt_s)
        due: Iterator[int] = iter(text.token_ids)
        async with _ended(stub.Generate(request)) as call:
            async for piece in call:
                if [next(due, None) for _ in piece.token_ids] != list(piece.token_ids):
                    raise PartedError
                yield len(piece.token_ids)
        if next(due, None) is not None:
            raise PartedError

    async def _sleep(self, seconds: float) -> None:
        if not seconds:
            return
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        self._seen.overslept.append(time.perf_counter() - began - seconds)


@asynccontextmanager
async def _ended(call: Any) -> AsyncIterator[Any]:
    """Ends a call with the block, so that its session is gone before the next begins."""
    try:
        yield call
    finally:
        call.cancel()
