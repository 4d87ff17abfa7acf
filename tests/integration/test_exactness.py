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
from common.lm import noise, precision
from common.lm.runner import LanguageModel
from common.lm.sampling import Context, penalise, truncate
from common.types import GeneratedTokens, OpenSession, Peer, SamplingParams, StopParams
from edge_client.drafter import Drafter
from edge_client.session import ClientSession
from tests.models import language_model, loaded, noised_copy, tiny, tiny_llama

ARCHITECTURES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "opt", "phi3",
    "qwen3_moe",
]  # fmt: skip
BATCHES, BATCH = 20, 5  # 10 architectures x 20 batches x 5 runs = 1,000
LIMITS = CloudSection(token_budget=24, prefill_chunk=8, max_draft_tokens=16)
ROUNDING = 1e-4  # two scores closer than this may change places between batch shapes


@dataclass(frozen=True)
class Run:
    opening: OpenSession
    draft_length: int


def random_run(rng: random.Random, vocab_size: int) -> Run:
    prompt = tuple(rng.randrange(1, vocab_size) for _ in range(rng.choice([1, 2, 5, 12, 30])))
    sampling = SamplingParams(
        temperature=rng.choice([0.0, 0.0, 0.3, 0.7, 1.0, 1.5]),
        top_k=rng.choice([0, 0, 20]),
        top_p=rng.choice([1.0, 1.0, 0.9]),
        seed=rng.randrange(2**64),
        min_p=rng.choice([0.0, 0.0, 0.02]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.0, -0.25]),
    )
    stop = StopParams(rng.randint(1, 20), rng.choice([None, tuple(range(0, vocab_size, 9))]))
    opening = OpenSession(Peer("", "", 0, ""), prompt, sampling, stop)
    return Run(opening, rng.randrange(LIMITS.max_draft_tokens + 1))


@contextmanager
def hosting(target: LanguageModel, limits: CloudSection = LIMITS) -> Iterator[Host]:
    metrics = Metrics()
    engine = Engine(
        target,
        token_budget=limits.token_budget,
        prefill_chunk=limits.prefill_chunk,
        clock=time.monotonic_ns,
        on_step=metrics.observe_step,
    )
    engine.start()
    info = describe(target, limits, precision.apply_policy())
    try:
        yield Host(engine, target.loaded, info, limits, metrics, time.monotonic_ns)
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
    """Whether two texts part at two scores, noise included, that rounding cannot tell apart."""
    at = next(i for i, (a, b) in enumerate(zip(expected, other, strict=False)) if a != b)
    prompt, sampling = run.opening.prompt_token_ids, run.opening.sampling
    tokens = [*prompt, *expected[:at]]
    context = Context(tokens, len(tokens), len(prompt))
    scores = host.loaded.model(torch.tensor([tokens])).logits[:, -1]
    scores = penalise(scores, [context], [sampling])
    if sampling.temperature:
        scores = truncate(scores, [sampling])
        blocks = torch.arange(scores.shape[1] // 4)
        words = noise._words(
            [sampling.seed], [len(tokens)], torch.zeros_like(blocks), blocks, noise.Stream.CHOICE
        )
        scores = scores + noise._rough_gumbel(words).flatten()
    return bool(abs(scores[0, expected[at]] - scores[0, other[at]]) < ROUNDING)


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


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("length", [1, 500, 3000])
def test_a_long_prompt_gives_all_arms_one_text(length: int, temperature: float) -> None:
    """In chunks here, in one piece there."""
    limits = {"max_position_embeddings": 4096}
    target = LanguageModel(loaded(tiny_llama(**limits)), cache_tokens=16384)
    draft = LanguageModel(loaded(noised_copy(tiny_llama(**limits), 0.1)), cache_tokens=4096)
    rng = random.Random(f"{length} tokens")
    prompt = tuple(rng.randrange(1, target.loaded.vocab_size) for _ in range(length))
    sampling = SamplingParams(temperature, seed=7, top_p=0.95, repetition_penalty=1.1)
    opening = OpenSession(Peer("", "", 0, ""), prompt, sampling, StopParams(24, ()))
    stock = StockGenerator(target.stock, target.loaded.vocab_size, time.monotonic_ns)
    wide = CloudSection(token_budget=256, prefill_chunk=200, max_draft_tokens=16)
    with hosting(target, wide) as host:
        run = Run(opening, 5)
        optimized, drafted = asyncio.run(batch(host, [run], [Drafter(draft)]))
        assert optimized == drafted == cloud(host, stock, run)
        assert len(optimized) == 24
