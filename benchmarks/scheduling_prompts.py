"""Clients that decode while another sends one long prompt after another: scheduling.py."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import grpc.aio

from benchmarks.capacity import nearest_rank
from common import wire
from common.types import GenerateMode, OpenSession, Peer, SamplingParams, StopParams
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub
from tests.models import save, tiny_llama

CONTEXT = 8192
PROMPT = 7936
DECODED = 1024
"""Tokens of a text that is decoded; its prompt has sixteen."""


@dataclass(frozen=True, slots=True)
class Between:
    """Is how long those who decode waited from token to token, and how long the prompts took.

    `ttft_s` is the median time from sending a long prompt to its first token, None without any.
    """

    p50_ms: float
    p95_ms: float
    longest_ms: float
    tokens_per_s: float
    ttft_s: float | None


def random_target(directory: Path) -> Path:
    """Writes a random model with a long context: 4 layers of width 256, a Llama."""
    model = tiny_llama(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=CONTEXT,
    )
    return save(model, directory)


def decode_beside_prompts(
    address: str, *, decoding: int, prompts: int, seconds: float, settle_s: float
) -> Between:
    """Has `decoding` clients write, and watches them while so many long prompts come in.

    Without any, for so many seconds. Both begin after `settle_s`.
    """
    return asyncio.run(_watch(address, decoding, prompts, seconds, settle_s))


async def _watch(
    address: str, decoding: int, prompts: int, seconds: float, settle_s: float
) -> Between:
    gaps: list[tuple[float, float]] = []
    async with _stub(address) as stub:
        info = wire.info_from_proto(await stub.GetServerInfo(pb.GetServerInfoRequest()))
        peer = Peer(info.protocol_version, info.tokenizer_fingerprint, info.vocab_size, info.dtype)
        clients = [
            asyncio.create_task(_decode(address, peer, number, gaps)) for number in range(decoding)
        ]
        await asyncio.sleep(settle_s)
        begun = time.perf_counter()
        if prompts:
            first = await _send_prompts(stub, peer, prompts)
        else:
            first = []
            await asyncio.sleep(seconds)
        ended = time.perf_counter()
        for client in clients:
            if client.done():  # none ends by itself
                client.result()
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return between(gaps, first, begun, ended)


def between(
    gaps: Sequence[tuple[float, float]], first: Sequence[float], begun: float, ended: float
) -> Between:
    """Returns the figures of a window of time, in seconds.

    `gaps` are the times between two tokens, each with when it ended, and count where they did;
    `first` the times to first token of the long prompts.
    """
    within = [1e3 * gap for at, gap in gaps if begun <= at < ended]
    if not within:
        raise SystemExit("nothing was decoded in the window: make --seconds longer")
    return Between(
        p50_ms=median(within),
        p95_ms=nearest_rank(within, 0.95),
        longest_ms=max(within),
        tokens_per_s=len(within) / (ended - begun),
        ttft_s=median(first) if first else None,
    )


async def _decode(address: str, peer: Peer, number: int, gaps: list[tuple[float, float]]) -> None:
    """Writes one text after another over a connection of its own."""
    chance = random.Random(number)
    async with _stub(address) as stub:
        while True:
            before = None
            async for _ in stub.Generate(_asked(peer, chance, 16, DECODED)):
                now = time.perf_counter()
                if before is not None:
                    gaps.append((now, now - before))
                before = now


async def _send_prompts(stub: Any, peer: Peer, count: int) -> list[float]:
    """Sends each when the one before has its token; returns what each took, in seconds."""
    chance = random.Random("prompts")
    took = []
    for _ in range(count):
        began = time.perf_counter()
        [_ async for _ in stub.Generate(_asked(peer, chance, PROMPT, 1))]  # it has one token
        took.append(time.perf_counter() - began)
    return took


def _asked(peer: Peer, chance: random.Random, tokens: int, new: int) -> pb.GenerateRequest:
    prompt = tuple(chance.randrange(1, peer.vocab_size) for _ in range(tokens))
    opening = OpenSession(peer, prompt, SamplingParams(), StopParams(new, eos_token_ids=()))
    return wire.generate_to_proto(GenerateMode.OPTIMIZED, opening)


@asynccontextmanager
async def _stub(address: str) -> AsyncIterator[Any]:
    """Connects; the stub is annotated as one of a blocking channel."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        yield VerifierStub(channel)
