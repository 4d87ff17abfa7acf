"""Models small enough to enumerate, what they write exactly, and how far a sample is from that.

A model is a table: one row of logits for each of the last two tokens of the output, so that every
prefix of an output of three has a row of its own. `exact` knows nothing of the code under test:
temperature, top-k and top-p are written again, in float64 and numpy, from their definitions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.types import SamplingParams

Floats = NDArray[np.float64]
Output = tuple[int, ...]

PROMPT = (1, 4)
EOS = 2
LENGTH = 3
"""Tokens an output has at most; `exact` needs a row for each shorter prefix, and no more."""

LEAST_EXPECTED = 5.0
"""Outputs expected less often share one cell: below, G is not distributed as chi-square."""


def row_of(output: Sequence[int], vocab_size: int) -> int:
    """Returns the row of the table that follows an output; beyond two tokens the last two say."""
    row = 0
    for token in output[-2:]:
        row = row * vocab_size + token + 1
    return row


def tables(vocab_size: int, *, distance: float, seed: int) -> tuple[Floats, Floats]:
    """Makes the logits of a target and of a draft that strays from it by `distance`."""
    rng = np.random.default_rng(seed)
    shape = (1 + vocab_size + vocab_size**2, vocab_size)
    target = rng.normal(scale=1.2, size=shape)
    target[:, EOS] += 0.8  # that outputs end, and in the middle of a draft
    draft = target + distance * rng.normal(size=shape)
    # The programs compute in float32; so that all see the same numbers, these are.
    return target.astype(np.float32).astype(float), draft.astype(np.float32).astype(float)


def probabilities(logits: Floats, sampling: SamplingParams) -> Floats:
    """Returns the distribution of one token, by temperature, then top-k, then top-p."""
    weights = np.exp(logits / sampling.temperature)
    likeliest = np.argsort(-weights)
    if sampling.top_k:
        weights[likeliest[sampling.top_k :]] = 0
    share = weights[likeliest] / weights.sum()
    before = np.cumsum(share) - share
    weights[likeliest[before >= sampling.top_p]] = 0  # the head: the fewest that reach top_p
    normal: Floats = weights / weights.sum()
    return normal


def exact(table: Floats, sampling: SamplingParams) -> dict[Output, float]:
    """Enumerates all outputs, ended by EOS or at LENGTH, with their probabilities."""
    outputs: dict[Output, float] = {}
    unfinished: dict[Output, float] = {(): 1.0}
    while unfinished:
        prefix, probability = unfinished.popitem()
        row = probabilities(table[row_of(prefix, table.shape[1])], sampling)
        for token in np.flatnonzero(row).tolist():
            output, share = (*prefix, token), probability * float(row[token])
            ended = token == EOS or len(output) == LENGTH
            (outputs if ended else unfinished)[output] = share
    return outputs


@dataclass(frozen=True, slots=True)
class Fit:
    """Says how far a sample is from a distribution.

    `p_value` is the chance that a right sampler gives a G this large, `total_variation` half the
    sum of differences of frequency and probability, `expected_variation` a bound on its mean.
    """

    size: int
    cells: int
    g: float
    p_value: float
    total_variation: float
    expected_variation: float

    def variation_bound(self, alpha: float) -> float:
        """Returns what the total variation of a right sampler exceeds with less chance than alpha.

        One sample moves it by at most 1 / size: McDiarmid's inequality.
        """
        return self.expected_variation + math.sqrt(-math.log(alpha) / (2 * self.size))


def fit(sample: Sequence[Output], expected: Mapping[Output, float]) -> Fit:
    """Compares a sample with the exact distribution: G-test with Williams' correction, and TV."""
    counts, size = Counter(sample), len(sample)
    impossible = counts.keys() - expected.keys()
    cells = _pooled([(counts[output], size * expected[output]) for output in expected])
    g = math.inf
    if not impossible:
        g = 2 * sum(seen * math.log(seen / mean) for seen, mean in cells if seen)
        # D. A. Williams, "Improved likelihood ratio tests", Biometrika 63 (1976) 33-37.
        g /= 1 + (sum(size / mean for _, mean in cells) - 1) / (6 * size * (len(cells) - 1))
    differences = sum(abs(counts[o] / size - p) for o, p in expected.items())
    differences += sum(counts[output] for output in impossible) / size
    return Fit(
        size=size,
        cells=len(cells),
        g=g,
        p_value=_chi_square_tail(g, len(cells) - 1),
        total_variation=differences / 2,
        expected_variation=sum(math.sqrt(p * (1 - p) / size) for p in expected.values()) / 2,
    )


def _pooled(cells: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Pools the rarest cells, `(seen, expected)`, until none is expected too seldom.

    The choice looks at what is expected only, so it leaves the test's level alone.
    """
    rarest_first = sorted(cells, key=lambda cell: cell[1])
    seen, mean, kept = 0, 0.0, 0
    while kept < len(rarest_first) and (
        rarest_first[kept][1] < LEAST_EXPECTED or 0 < mean < LEAST_EXPECTED
    ):
        seen, mean, kept = seen + rarest_first[kept][0], mean + rarest_first[kept][1], kept + 1
    return [*rarest_first[kept:], *([(seen, mean)] if kept else [])]


def _chi_square_tail(value: float, degrees: int) -> float:
    if math.isinf(value):
        return 0.0
    half = torch.tensor([degrees / 2, value / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
