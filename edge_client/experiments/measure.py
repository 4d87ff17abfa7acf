"""Readings of records turned into estimates with intervals: pooled, averaged, spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edge_client.experiments.bootstrap import Bootstrap, Estimate
from edge_client.experiments.records import Record

Reading = Callable[[Record], float | None]

_FRACTIONS = {"p50": 0.50, "p95": 0.95, "p99": 0.99}


def by_prompt(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Groups records by prompt, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.prompt_id, []).append(record)
    return groups


class Measure:
    """Measures whole records, grouped by prompt; None where no record has the value."""

    def __init__(self, records: Iterable[Record], bootstrap: Bootstrap) -> None:
        self._groups = list(by_prompt(records).values())
        self._bootstrap = bootstrap

    def ratio(self, above: Reading, below: Reading) -> dict[str, Any] | None:
        """Pools: the sum of one reading over the sum of another, where both are known."""
        sums = self._sums(above, below)
        return _json(self._bootstrap.ratio_of_sums([a for a, _ in sums], [b for _, b in sums]))

    def a_token(self, read: Reading) -> dict[str, Any] | None:
        """Pools a reading over output tokens."""
        return self.ratio(read, lambda r: r.num_output_tokens)

    def mean(self, read: Reading) -> dict[str, Any] | None:
        """Averages a reading over the records that have it."""
        return self.ratio(read, lambda r: _known(read(r)))

    def mean_of_ratios(self, above: Reading, below: Reading) -> dict[str, Any] | None:
        """Averages each prompt's own ratio."""
        return _json(self._bootstrap.mean([a / b for a, b in self._sums(above, below) if b]))

    def spread(self, read: Callable[[Record], Sequence[float]]) -> dict[str, Any] | None:
        """Gives mean and percentiles of all readings pooled."""
        groups = [[value for record in group for value in read(record)] for group in self._groups]
        groups = [group for group in groups if group]
        quantiles = self._bootstrap.quantiles(groups, tuple(_FRACTIONS.values()))
        if quantiles is None:
            return None
        mean = self._bootstrap.ratio_of_sums([sum(g) for g in groups], [len(g) for g in groups])
        named = dict(zip(_FRACTIONS, quantiles, strict=True))
        return {"mean": _json(mean)} | {name: _json(value) for name, value in named.items()}

    def _sums(self, above: Reading, below: Reading) -> list[tuple[float, float]]:
        """Returns both sums for each prompt that has them."""
        sums = []
        for group in self._groups:
            read = [(above(record), below(record)) for record in group]
            pairs = [(a, b) for a, b in read if a is not None and b is not None]
            if pairs:
                sums.append((sum(a for a, _ in pairs), sum(b for _, b in pairs)))
        return sums


def _known(value: float | None) -> float | None:
    return None if value is None else 1.0


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_json()
