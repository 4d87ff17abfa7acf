"""Bootstrap intervals by resampling prompts: pure, seeded, vectorised.

Prompts are the unit that is drawn with replacement: tokens, rounds, turns and
repeats of one prompt depend on each other and stay together (a cluster
bootstrap). Intervals are the 2.5th and 97.5th percentile of the resampled value
(B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95

Floats = NDArray[np.float64]
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """Is a value with its 95 % interval; the bounds are None where fewer than two prompts speak."""

    value: float
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns {"value": ..., "ci95": [low, high] or null}."""
        interval = None if self.low is None or self.high is None else [self.low, self.high]
        return {"value": self.value, "ci95": interval}


class Bootstrap:
    """Draws prompts with replacement; equal seeds and counts give equal draws."""

    def __init__(self, seed: int, resamples: int = RESAMPLES) -> None:
        self._seed = seed
        self._resamples = resamples
        self._draws: dict[int, Floats] = {}

    def ratio_of_sums(self, above: Sequence[float], below: Sequence[float]) -> Estimate | None:
        """Returns sum(above) / sum(below) over prompts; None when the divisor is zero."""
        numerator, divisor = np.asarray(above, float), np.asarray(below, float)
        if not divisor.sum():
            return None
        weights = self._weights(len(numerator))
        with np.errstate(divide="ignore", invalid="ignore"):
            resampled = (weights @ numerator) / (weights @ divisor)
        return _estimate(numerator.sum() / divisor.sum(), resampled, len(numerator))

    def mean(self, values: Sequence[float]) -> Estimate | None:
        """Returns the mean over prompts; None of nothing."""
        return self.ratio_of_sums(values, np.ones(len(values)).tolist()) if len(values) else None

    def geometric_mean(self, values: Sequence[float]) -> Estimate | None:
        """Returns the geometric mean over prompts of values above zero; None of nothing."""
        logs = self.mean(np.log(values).tolist()) if len(values) else None
        if logs is None:
            return None
        low, high = (None if b is None else float(np.exp(b)) for b in (logs.low, logs.high))
        return Estimate(float(np.exp(logs.value)), low, high)

    def quantiles(
        self, groups: Sequence[Sequence[float]], fractions: Sequence[float]
    ) -> tuple[Estimate, ...] | None:
        """Returns quantiles of all values pooled, `groups` holding the values of each prompt.

        Resampled quantiles interpolate linearly exactly as numpy does on the
        repeated sample. None when there are no values at all.
        """
        spoken = [group for group in groups if len(group)]
        if not spoken:
            return None
        values = np.concatenate([np.asarray(group, float) for group in spoken])
        owners = np.repeat(np.arange(len(spoken)), [len(group) for group in spoken])
        by_size = np.argsort(values, kind="stable")
        values, owners = values[by_size], owners[by_size]
        resampled = _weighted_quantiles(values, owners, self._weights(len(spoken)), fractions)
        exact = np.percentile(values, [100 * fraction for fraction in fractions])
        return tuple(
            _estimate(float(value), resampled[:, column], len(spoken))
            for column, value in enumerate(exact)
        )

    def _weights(self, prompts: int) -> Floats:
        """Returns how often each draw holds each prompt  # [resamples, prompts]."""
        if prompts not in self._draws:
            generator = np.random.default_rng([self._seed, prompts])
            even = np.full(prompts, 1 / prompts)
            drawn = generator.multinomial(prompts, even, size=self._resamples)
            self._draws[prompts] = drawn.astype(float)
        return self._draws[prompts]


def _weighted_quantiles(
    values: Floats, owners: NDArray[np.intp], weights: Floats, fractions: Sequence[float]
) -> Floats:
    """Returns the quantiles of `values`, sorted, each repeated as its owner's weight says."""
    rows = max(1, _CELLS_AT_ONCE // len(values))
    blocks = []
    for start in range(0, len(weights), rows):
        upto = np.cumsum(weights[start : start + rows][:, owners], axis=1)  # [rows, values]
        columns = []
        for fraction in fractions:
            place = (upto[:, -1] - 1) * fraction
            lower = values[_holder(upto, np.floor(place))]
            upper = values[_holder(upto, np.ceil(place))]
            columns.append(lower + (upper - lower) * (place - np.floor(place)))
        blocks.append(np.stack(columns, axis=1))
    return np.concatenate(blocks)


def _holder(upto: Floats, index: Floats) -> NDArray[np.intp]:
    """Returns which value stands at `index` of each repeated sample."""
    places: NDArray[np.intp] = np.sum(upto <= index[:, None], axis=1, dtype=np.intp)
    return places


def _estimate(value: float, resampled: Floats, prompts: int) -> Estimate:
    usable = resampled[np.isfinite(resampled)]
    if prompts < 2 or not len(usable):
        return Estimate(float(value), None, None)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(usable, (tail, 100 - tail))
    return Estimate(float(value), float(low), float(high))
