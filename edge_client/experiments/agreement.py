"""How near each arm's output comes to the exact one: what a lossy rule has cost in text.

Only generations of the same prompt tokens are compared: in later turns of a
conversation arms whose texts differ answer different prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import eq
from typing import Any

from edge_client.experiments.bootstrap import Bootstrap, Estimate
from edge_client.experiments.comparison import Pair, equal_start, paired
from edge_client.experiments.quality import Quality, QualityMetrics
from edge_client.experiments.records import Record


def agreement(
    records: Mapping[str, Sequence[Record]],
    reference: str | None,
    bootstrap: Bootstrap,
    metrics: QualityMetrics | None,
) -> dict[str, Any]:
    """Returns, for every arm but the reference, how near its outputs come to the reference's.

    {arm: {"generations": n, "equal": n, "token_match": ..., "first_divergence": ...,
    "chrf": ..., "rouge_l": ...}}; `metrics` None leaves the last two None.
    """
    if reference is None:
        return {}
    return {
        arm: _agreement(group, records[reference], bootstrap, metrics)
        for arm, group in records.items()
        if arm != reference
    }


def _agreement(
    ours: Sequence[Record],
    theirs: Sequence[Record],
    bootstrap: Bootstrap,
    metrics: QualityMetrics | None,
) -> dict[str, Any]:
    groups = [
        same
        for group in paired(ours, theirs).values()
        if (same := [(a, b) for a, b in group if a.prompt_token_ids == b.prompt_token_ids])
    ]
    match = bootstrap.ratio_of_sums(
        [sum(map(_positions_equal, group)) for group in groups],
        [sum(map(_positions, group)) for group in groups],
    )
    divergences = [
        [d for pair in group if (d := _divergence(pair)) is not None] for group in groups
    ]
    median = bootstrap.quantiles(divergences, (0.5,))
    texts = [[_nearness(pair, metrics) for pair in group] for group in groups]
    return {
        "generations": sum(map(len, groups)),
        "equal": sum(map(len, groups)) - sum(map(len, divergences)),
        "token_match": _json(match),
        "first_divergence": None if median is None else _json(median[0]),
        "chrf": _mean([[q.chrf for q in group] for group in texts], bootstrap),
        "rouge_l": _mean([[q.rouge_l for q in group] for group in texts], bootstrap),
    }


def _positions_equal(pair: Pair) -> int:
    ours, theirs = _outputs(pair)
    return sum(map(eq, ours, theirs))


def _positions(pair: Pair) -> int:
    return max(map(len, _outputs(pair)))


def _divergence(pair: Pair) -> int | None:
    """Returns where the outputs part, None where they do not."""
    ours, theirs = _outputs(pair)
    return None if ours == theirs else equal_start(ours, theirs)


def _outputs(pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return pair[0].output_token_ids or (), pair[1].output_token_ids or ()


def _nearness(pair: Pair, metrics: QualityMetrics | None) -> Quality:
    ours, exact = pair
    return Quality() if metrics is None else metrics.against(ours.text or "", [exact.text or ""])


def _mean(groups: Sequence[Sequence[float | None]], bootstrap: Bootstrap) -> dict[str, Any] | None:
    """Averages over generations, prompts being what is drawn."""
    known = [[value for value in group if value is not None] for group in groups]
    known = [group for group in known if group]
    return _json(bootstrap.ratio_of_sums([sum(g) for g in known], [len(g) for g in known]))


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_json()
