"""One guess: what it is drawn from, and how sure the draft model is of it."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.lm.sampling import Context, choose, distribution
from common.types import MAX_WEIGHT, SamplingParams
from edge_client.guess import confidence, coupled_guess, drawn_guess, drawn_guesses, is_sure
from edge_client.policy import Doubt, Gate

SAMPLING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 2, 5]),
    top_p=st.sampled_from([1.0, 0.7]),
    seed=st.integers(0, 2**64 - 1),
)


def random_logits(seed: int, rows: int = 1) -> torch.Tensor:
    return 2 * torch.randn(rows, 9, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 99), SAMPLING, st.integers(1, 40))
def test_a_coupled_guess_is_what_the_target_would_choose(
    seed: int, sampling: SamplingParams, length: int
) -> None:
    logits, context = random_logits(seed), Context((1,) * length, length, 1)
    assert coupled_guess(logits, context, sampling) == choose(logits, [context], [sampling])[0]


@given(st.integers(0, 99), SAMPLING, st.integers(1, 12))
def test_a_drawn_guess_says_what_it_was_drawn_from(
    seed: int, sampling: SamplingParams, candidates: int
) -> None:
    logits, context = random_logits(seed), Context((1, 2), 2, 1)
    guess, origin = drawn_guess(logits, context, sampling, candidates)
    exact = distribution(logits, [context], [sampling])[0]
    assert guess in origin.token_ids
    assert len(origin.token_ids) == min(candidates, int((exact > 0).sum()))
    assert len(set(origin.token_ids)) == len(origin.token_ids) == len(origin.weights)
    assert max(origin.weights) == MAX_WEIGHT
    # The likeliest, each in proportion up to half a weight.
    likeliest = exact.sort(descending=True).values[: len(origin.token_ids)]
    for token, weight, probability in zip(origin.token_ids, origin.weights, likeliest, strict=True):
        assert exact[token] == probability
        proportion = float(probability / likeliest[0]) * MAX_WEIGHT
        assert weight == pytest.approx(max(proportion, 1), abs=0.51)


def test_no_candidate_weighs_nothing() -> None:
    """The wire refuses a weight of 0: a guess of no probability cannot have been drawn."""
    logits = torch.tensor([[0.0, -30.0, -90.0]])
    _, origin = drawn_guess(logits, Context((1,), 1, 1), SamplingParams(temperature=1.0), 2)
    assert origin.weights == (MAX_WEIGHT, 1)


def test_guesses_are_drawn_by_their_weights() -> None:
    draws = 20_000
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).expand(draws, 4)
    contexts = [Context((0,) * 3, 3, 1)] * draws
    given_seeds = [SamplingParams(temperature=1.0, seed=seed) for seed in range(draws)]
    drawn = drawn_guesses(logits, contexts, given_seeds, candidates=3)
    counts = Counter(guess for guess, _ in drawn)
    origin = drawn[0][1]
    assert set(counts) == {0, 1, 2}  # the fourth is no candidate
    for token, weight in zip(origin.token_ids, origin.weights, strict=True):
        probability = weight / sum(origin.weights)
        spread = math.sqrt(probability * (1 - probability) / draws)
        assert counts[token] / draws == pytest.approx(probability, abs=5 * spread)


def test_a_drawn_guess_has_noise_of_its_own() -> None:
    """Were it the target's, acceptance would not be independent of the guess."""
    logits = torch.zeros(1, 9)
    context = Context((1, 2), 2, 1)
    differ = 0
    for seed in range(50):
        sampling = SamplingParams(temperature=1.0, seed=seed)
        differ += drawn_guess(logits, context, sampling, 9)[0] != coupled_guess(
            logits, context, sampling
        )
    assert differ > 30


def test_confidence_is_the_untempered_probability_of_the_guess() -> None:
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert confidence(logits, 1) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("doubt", "guess", "edge", "sure_below"),
    [
        (
            Doubt.ENTROPY,
            0,
            -(0.6 * math.log(0.6) + 0.3 * math.log(0.3) + 0.1 * math.log(0.1)),
            False,
        ),
        (Doubt.MARGIN, 0, 0.3, True),
        (Doubt.MARGIN, 2, 0.3, True),
        (Doubt.LOGPROB, 0, math.log(0.6), True),
        (Doubt.LOGPROB, 2, math.log(0.1), True),
    ],
)
def test_the_gate_compares_its_measure_with_the_threshold(
    doubt: Doubt, guess: int, edge: float, sure_below: bool
) -> None:
    """`edge` is the measure by hand; the gate turns there, in the direction that is said."""
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log() + 5
    assert is_sure(Gate(doubt, edge - 1e-4), logits, guess) is sure_below
    assert is_sure(Gate(doubt, edge + 1e-4), logits, guess) is not sure_below
