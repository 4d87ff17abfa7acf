"""The noise: the generator's published vectors, and draws that are the naive ones exactly."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.lm import noise
from common.lm.noise import REACH, Stream, gumbel_argmax, gumbel_argmax_there, uniform
from common.lm.philox import philox

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


def words_of(seed: int, position: int, token: int, stream: Stream) -> int:
    """Makes one word by the definition in common/lm/noise.py."""
    counter = (token // 4, position & 0xFFFFFFFF, position >> 32, int(stream))
    words = philox(
        tuple(torch.tensor([word]) for word in counter),  # type: ignore[arg-type]
        (torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([(seed >> 32) & 0xFFFFFFFF])),
    )
    return int(words[token % 4].item())


def naive(scores: list[float], seed: int, position: int, stream: Stream) -> int:
    """Draws with noise for every token, one by one."""
    best = max(scores)
    below = [float(torch.tensor(score) - torch.tensor(best)) for score in scores]

    def total(token: int) -> float:
        word = words_of(seed, position, token, stream)
        return below[token] - math.log(-math.log((word + 0.5) / 2**32))

    return max(range(len(scores)), key=total)


@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.floats(-40, 40, width=32) | st.just(-math.inf), min_size=23, max_size=23),
            st.integers(-(2**63), 2**64 - 1),
            st.integers(0, 2**40),
        ),
        min_size=1,
        max_size=4,
    ),
    stream=st.sampled_from(Stream),
)
def test_a_draw_is_the_naive_one_whatever_else_is_in_the_batch(
    rows: list[tuple[list[float], int, int]], stream: Stream
) -> None:
    rows = [([*scores, 0.0], seed, position) for scores, seed, position in rows]
    scores, seeds, positions = zip(*rows, strict=True)
    drawn = gumbel_argmax(torch.tensor(scores), seeds, positions, stream)
    assert drawn == [naive(*row, stream) for row in rows]
    there = gumbel_argmax_there(torch.tensor(scores), seeds, positions, stream)
    assert there.tolist() == drawn


def test_many_rows_are_drawn_as_each_alone() -> None:
    scores = 3 * torch.randn(70, 20, generator=torch.Generator().manual_seed(1))
    seeds, positions = list(range(70)), list(range(100, 170))
    together = gumbel_argmax(scores, seeds, positions, Stream.CHOICE)
    assert together == [
        gumbel_argmax(scores[row : row + 1], [seeds[row]], [positions[row]], Stream.CHOICE)[0]
        for row in range(70)
    ]
    there = gumbel_argmax_there(scores, seeds, positions, Stream.CHOICE)
    assert there.tolist() == together


def test_no_noise_reaches_further_than_is_looked() -> None:
    largest = -math.log(-math.log((2**32 - 0.5) / 2**32))
    least = -math.log(-math.log(0.5 / 2**32))
    assert largest - least < REACH < largest - least + 0.1


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_rough_noise_is_well_within_its_slack(words: list[int]) -> None:
    rough = noise._rough_gumbel(torch.tensor([*words, 0, 2**32 - 1, 2**31, 2**31 - 1]))
    exact = [noise._gumbel(word) for word in [*words, 0, 2**32 - 1, 2**31, 2**31 - 1]]
    assert rough.tolist() == pytest.approx(exact, abs=noise._SLACK / 100)


def test_noise_has_the_gumbel_distribution() -> None:
    words = noise._words([5], [0], torch.zeros(50_000, dtype=torch.long), torch.arange(50_000),
                         Stream.CHOICE)  # fmt: skip
    drawn = noise._rough_gumbel(words)
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert drawn.var().item() == pytest.approx(math.pi**2 / 6, abs=0.03)


def test_draws_have_the_softmax_distribution() -> None:
    scores, draws = torch.tensor([[0.0, 1.0, 2.0, -1.0, -math.inf]]), 20_000
    tokens = gumbel_argmax(scores.expand(draws, 5), [3] * draws, range(draws), Stream.GUESS)
    counts = Counter(tokens)
    for token, probability in enumerate(scores[0].softmax(0).tolist()):
        spread = math.sqrt(probability * (1 - probability) / draws)
        assert counts[token] / draws == pytest.approx(probability, abs=5 * spread)


def test_uniform_numbers_are_the_first_word_of_their_stream() -> None:
    seed, position = 0x1234_5678_9ABC_DEF0, (3 << 32) + 17
    expected = (words_of(seed, position, 0, Stream.ACCEPTANCE) + 0.5) / 2**32
    assert uniform([1, seed], [0, position], Stream.ACCEPTANCE)[1] == expected
    assert uniform([seed], [position], Stream.GUESS) != [expected]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_draws_on_a_gpu_are_those_on_the_cpu() -> None:
    scores = 3 * torch.randn(64, 5000, generator=torch.Generator().manual_seed(1))
    here = gumbel_argmax(scores, range(64), range(64), Stream.CHOICE)
    assert gumbel_argmax(scores.cuda(), range(64), range(64), Stream.CHOICE) == here
    there = gumbel_argmax_there(scores.cuda(), range(64), range(64), Stream.CHOICE)
    assert there.tolist() == here
