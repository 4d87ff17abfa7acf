"""Choosing tokens: the generator's published vectors, Hugging Face's warpers, and determinism."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from common.errors import InternalError
from common.lm.philox import gumbel_noise, philox
from common.lm.sampling import PositionKeyedSampling, choose, warp
from common.types import SamplingParams
from tests.models import VOCAB_SIZE, language_model, tiny

CPU = torch.device("cpu")

# Random123's kat_vectors, philox4x32-10: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, result: str) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in _words(counter))
    k0, k1 = (torch.tensor([word]) for word in _words(key))
    assert [word.item() for word in philox((c0, c1, c2, c3), (k0, k1))] == _words(result)


def test_noise_follows_its_definition_word_by_word() -> None:
    seed, position, token = 0x1234_5678_9ABC_DEF0, (3 << 32) + 17, 42
    counter = (token // 4, position & 0xFFFFFFFF, position >> 32, 0)
    words = philox(
        tuple(torch.tensor([word]) for word in counter),  # type: ignore[arg-type]
        (torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([seed >> 32])),
    )
    uniform = (words[token % 4].item() + 0.5) / 2**32
    noise = gumbel_noise([seed], [position], 64, CPU)[0, token].item()
    assert noise == pytest.approx(-math.log(-math.log(uniform)), rel=1e-6)


@given(
    seeds=st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=5),
    position=st.integers(0, 2**40),
    vocab=st.integers(1, 70),
)
def test_noise_of_a_token_does_not_depend_on_the_batch(
    seeds: list[int], position: int, vocab: int
) -> None:
    positions = [position + row for row in range(len(seeds))]
    together = gumbel_noise(seeds, positions, vocab, CPU)
    for row, (seed, at) in enumerate(zip(seeds, positions, strict=True)):
        assert torch.equal(together[row], gumbel_noise([seed], [at], 71, CPU)[0, :vocab])


def test_noise_has_the_gumbel_distribution() -> None:
    noise = gumbel_noise([5], [0], 200_000, CPU)[0]
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)


@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-9])
def test_truncation_is_hugging_faces(top_k: int, top_p: float) -> None:
    logits = 3 * torch.randn(16, 300, generator=torch.Generator().manual_seed(1))
    logits[:, 5] = logits[:, 6]  # a tie at whatever rank
    theirs = LogitsProcessorList([TemperatureLogitsWarper(0.7)])
    if top_k:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        theirs.append(TopPLogitsWarper(top_p))
    ids = torch.zeros(16, 1, dtype=torch.long)
    truncate: Any = theirs
    assert torch.equal(warp(logits, 0.7, top_k, top_p), truncate(ids, logits))


def test_the_likeliest_token_survives_any_top_p() -> None:
    kept = warp(torch.tensor([[0.0, 100.0, 0.0]]), 1.0, top_p=1e-9).isfinite()
    assert kept.tolist() == [[False, True, False]]


def test_temperature_zero_is_argmax_and_rows_keep_their_own_parameters() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    hot = SamplingParams(temperature=1.5, seed=9)
    params = [SamplingParams(), hot, SamplingParams(), hot]
    mixed = choose(logits, [3, 4, 5, 6], params)
    for row in range(4):
        assert mixed[row] == choose(logits[row : row + 1], [3 + row], [params[row]])[0]
    assert [mixed[0], mixed[2]] == logits.argmax(-1)[[0, 2]].tolist()


def test_seed_and_position_change_the_choice_and_nothing_else_does() -> None:
    logits = torch.zeros(1, 1000)
    hot = SamplingParams(temperature=1.0, seed=1)
    base = choose(logits, [10], [hot])
    assert base == choose(logits.clone(), [10], [hot])
    assert base != choose(logits, [11], [hot])
    assert base != choose(logits, [10], [SamplingParams(temperature=1.0, seed=2)])
    assert base != choose(logits, [10], [SamplingParams(temperature=1.0, seed=1 + (1 << 32))])


def test_choices_have_the_softmax_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    draws = 20_000
    hot = SamplingParams(temperature=0.8, seed=3)
    tokens = choose(logits.expand(draws, 4), range(draws), [hot] * draws)
    counts = Counter(tokens)
    for token, probability in enumerate((logits[0] / 0.8).softmax(0).tolist()):
        spread = math.sqrt(probability * (1 - probability) / draws)
        assert counts[token] / draws == pytest.approx(probability, abs=5 * spread)


def test_top_k_one_is_greedy_at_any_temperature() -> None:
    logits = torch.randn(8, 40, generator=torch.Generator().manual_seed(3))
    params = [SamplingParams(temperature=2.0, top_k=1, seed=4)] * 8
    assert choose(logits, range(8), params) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-21])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float) -> None:
    logits = 30 * torch.randn(4, 50, generator=torch.Generator().manual_seed(3))
    params = [SamplingParams(temperature, seed=5)] * 4
    assert choose(logits, range(4), params) == logits.argmax(-1).tolist()


def test_logits_without_a_number_are_an_error() -> None:
    for params in (SamplingParams(), SamplingParams(temperature=1.0)):
        with pytest.raises(InternalError, match="NaN"):
            choose(torch.full((1, 5), float("nan")), [0], [params])
    with pytest.raises(InternalError, match="2 positions"):
        choose(torch.zeros(1, 5), [0, 1], [SamplingParams()])


@pytest.mark.parametrize(
    "params",
    [SamplingParams(), SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=11)],
    ids=["greedy", "sampled"],
)
def test_stock_generate_makes_the_same_choices(params: SamplingParams) -> None:
    prompt, new = [7, 99, 31, 200], 24
    processor = PositionKeyedSampling(params, VOCAB_SIZE)
    model: Any = tiny("llama")
    stock = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=new,
        do_sample=False,
        logits_processor=LogitsProcessorList([processor]),
        eos_token_id=None,
    )
    from common.lm.runner import Segment

    lm, tokens = language_model("llama"), list(prompt)
    with lm.cache.session() as session:
        logits = lm.forward([Segment(session, tokens, 0, 1)])
        for _ in range(new):
            tokens += choose(logits, [len(tokens)], [params])
            logits = lm.forward([Segment(session, tokens[-1:], len(tokens) - 1, 1)])
    assert stock[0].tolist() == tokens


def test_the_processor_never_chooses_beyond_the_vocabulary() -> None:
    scores = torch.zeros(2, 10)
    scores[:, 8] = 50.0
    chosen = PositionKeyedSampling(SamplingParams(), 8)(torch.zeros(2, 3, dtype=torch.long), scores)
    assert chosen.argmax(-1).max().item() < 8
