"""The headline: three ways through the target, one text; on a thousand random runs.

Everything but the wire is real here: stock generate, the engine thread, ragged
batches of several sessions at once, a draft that is right only now and then.
"""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from cloud_server.generate import StockGenerator
from common.config import CloudSection
from common.lm.runner import LanguageModel
from common.types import OpenSession, Peer, SamplingParams, StopParams
from edge_client.drafter import Drafter
from tests.models import language_model, loaded, noised_copy, tiny, tiny_llama
from tests.three_arms import Run, batch, cloud, hosting, parting

ARCHITECTURES = [
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "opt", "phi3",
    "qwen3_moe",
]  # fmt: skip
BATCHES, BATCH = 20, 5  # 10 architectures x 20 batches x 5 runs = 1,000
LIMITS = CloudSection(token_budget=24, prefill_chunk=8, max_draft_tokens=16)
ROUNDING = 1e-4  # two scores closer than this may change places between batch shapes


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
    length, ahead = rng.randrange(LIMITS.max_draft_tokens + 1), rng.randrange(3)
    return Run(opening, length, ahead, run_ahead=rng.choice([0, 0, 1, 4, 64]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_hundred_random_runs_an_architecture(architecture: str) -> None:
    target = language_model(architecture, cache_tokens=2048)
    # How the draft runs decides nothing but how long this takes.
    draft = LanguageModel(loaded(noised_copy(tiny(architecture), 0.1)), 2048, "auto")
    rng = random.Random(f"runs of {architecture}")
    drafters = [Drafter(draft) for _ in range(BATCH)]
    stock = StockGenerator(target.stock, target.loaded.vocab_size, time.monotonic_ns)
    ties = 0
    with hosting(target, LIMITS) as host:
        for _ in range(BATCHES):
            runs = [random_run(rng, target.loaded.vocab_size) for _ in range(BATCH)]
            texts = asyncio.run(batch(host, runs, drafters))
            for run, optimized, drafted in zip(runs, texts, texts[BATCH:], strict=False):
                expected = cloud(host, stock, run)
                assert len(expected) >= 1
                for text in (optimized, drafted):
                    if text != expected:
                        found = parting(host, run, expected, text)
                        assert found.gap < ROUNDING, (run, expected, text, found)
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
