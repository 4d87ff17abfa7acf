"""The headline: three ways through the target, one text; on a thousand random runs.

Everything but the wire is real here: stock generate, the engine thread, ragged
batches of several sessions at once, a draft that is right only now and then.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from cloud_server.app import describe
from cloud_server.engine import Engine
from cloud_server.generate import StockGenerator, StockRequest
from cloud_server.host import Host
from cloud_server.metrics import Metrics
from common.config import CloudSection
from common.lm import precision
from common.lm.runner import LanguageModel
from common.types import GeneratedTokens, OpenSession, Peer, SamplingParams, StopParams
from edge_client.drafter import Drafter
from edge_client.session import ClientSession
from tests.models import language_model, loaded, noised_copy, tiny

ARCHITECTURES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "opt", "phi3",
    "qwen3_moe",
]  # fmt: skip
BATCHES, BATCH = 20, 5  # 10 architectures x 20 batches x 5 runs = 1,000
LIMITS = CloudSection(token_budget=24, prefill_chunk=8, max_draft_tokens=8)
ROUNDING = 1e-4  # two logits closer than this may change places between batch shapes


@dataclass(frozen=True)
class Run:
    opening: OpenSession
    draft_length: int


def random_run(rng: random.Random, vocab_size: int) -> Run:
    prompt = tuple(rng.randrange(1, vocab_size) for _ in range(rng.choice([1, 2, 5, 12, 30])))
    temperature = rng.choice([0.0, 0.0, 0.7, 1.5])
    sampling = SamplingParams(
        temperature, rng.choice([0, 20]), rng.choice([1.0, 0.9]), rng.randrange(2**64)
    )
    stop = StopParams(rng.randint(1, 12), rng.choice([None, tuple(range(0, vocab_size, 9))]))
    opening = OpenSession(Peer("", "", 0, ""), prompt, sampling, stop)
    return Run(opening, rng.randrange(LIMITS.max_draft_tokens + 1))


@contextmanager
def hosting(target: LanguageModel) -> Iterator[Host]:
    metrics = Metrics()
    engine = Engine(
        target,
        token_budget=LIMITS.token_budget,
        prefill_chunk=LIMITS.prefill_chunk,
        clock=time.monotonic_ns,
        on_step=metrics.observe_step,
    )
    engine.start()
    info = describe(target, LIMITS, precision.apply_policy())
    try:
        yield Host(engine, target.loaded, info, LIMITS, metrics, time.monotonic_ns)
    finally:
        engine.stop()


async def cloud_optimized(host: Host, run: Run) -> list[int]:
    async with host.open(run.opening) as live:
        return [token async for piece in live.decode() for token in piece.token_ids]


async def speculative(host: Host, run: Run, drafter: Drafter) -> list[int]:
    session = ClientSession(run.opening.prompt_token_ids)
    async with host.open(run.opening) as live:
        live.prefill()
        while True:
            drafted = drafter.draft(
                session.history,
                run.draft_length,
                run.opening.sampling,
                prompt_length=session.prompt_length,
            )
            settled = session.apply(await live.verify(session.next_draft(drafted.token_ids)))
            if settled.finish_reason is not None:
                return list(session.history[len(run.opening.prompt_token_ids) :])


def cloud(host: Host, stock: StockGenerator, run: Run) -> list[int]:
    made: list[GeneratedTokens] = []
    state = host.new_state(run.opening)
    prompt = run.opening.prompt_token_ids
    stock.run(StockRequest(prompt, len(prompt), state.sampling, state.stopper, 0, made.append))
    return [token for piece in made for token in piece.token_ids]


async def batch(host: Host, runs: list[Run], drafter: list[Drafter]) -> list[list[int]]:
    """Runs everything at once, so that decodes, verifies and prompts share forwards."""
    return await asyncio.gather(
        *(cloud_optimized(host, run) for run in runs),
        *(speculative(host, run, d) for run, d in zip(runs, drafter, strict=True)),
    )


@torch.inference_mode()
def rounding_tie(host: Host, run: Run, expected: list[int], other: list[int]) -> bool:
    """Whether two greedy texts part at two logits that rounding cannot tell apart."""
    at = next(i for i, (a, b) in enumerate(zip(expected, other, strict=False)) if a != b)
    tokens = [*run.opening.prompt_token_ids, *expected[:at]]
    logits = host.loaded.model(torch.tensor([tokens])).logits[0, -1]
    return bool(abs(logits[expected[at]] - logits[other[at]]) < ROUNDING)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_hundred_random_runs_an_architecture(architecture: str) -> None:
    target = language_model(architecture, cache_tokens=2048)
    draft = LanguageModel(loaded(noised_copy(tiny(architecture), 0.1)), cache_tokens=2048)
    rng = random.Random(f"runs of {architecture}")
    drafters = [Drafter(draft) for _ in range(BATCH)]
    stock = StockGenerator(target.stock, target.loaded.vocab_size, time.monotonic_ns)
    ties = 0
    with hosting(target) as host:
        for _ in range(BATCHES):
            runs = [random_run(rng, target.loaded.vocab_size) for _ in range(BATCH)]
            texts = asyncio.run(batch(host, runs, drafters))
            for run, optimized, drafted in zip(runs, texts, texts[BATCH:], strict=False):
                expected = cloud(host, stock, run)
                assert len(expected) >= 1
                for text in (optimized, drafted):
                    if text != expected:
                        assert rounding_tie(host, run, expected, text), (run, expected, text)
                        ties += 1
        steps = host.metrics.registry.get_sample_value("outrider_iteration_sessions_count")
        seats = host.metrics.registry.get_sample_value("outrider_iteration_sessions_sum")
        accepted = host.metrics.registry.get_sample_value(
            "outrider_spec_decode_num_accepted_tokens_total"
        )
        drafted_tokens = host.metrics.registry.get_sample_value(
            "outrider_spec_decode_num_draft_tokens_total"
        )
    assert ties <= 1
    assert steps
    assert seats
    assert seats / steps > 1.5  # the runs did share forwards
    assert accepted
    assert drafted_tokens
    assert 0.05 < accepted / drafted_tokens < 0.95  # the draft was right and wrong
    target.cache.check_integrity()
    assert target.cache.sessions == ()
