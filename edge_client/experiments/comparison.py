"""Arms against arms, pair by pair on the same prompts. Pure but for the logit gap it is given."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from operator import eq
from typing import Any

from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.measure import by_prompt
from edge_client.experiments.records import Record
from edge_client.rule import Promise

LogitGap = Callable[[Sequence[int], Sequence[int], int, int], float | None]
"""Returns how much the target's logit of the first token exceeds that of the second,
after the prompt and the output both arms share; None when it cannot be had.

Called as (prompt_token_ids, shared_output_token_ids, token_a, token_b).
"""

Place = tuple[str, int, int]  # prompt, turn, repeat
Pair = tuple[Record, Record]


def ratios(records: Mapping[str, Sequence[Record]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Returns, for every ordered pair of arms, the first arm's number over the second's.

    A prompt's number is pooled over the turns and repeats that both arms have
    whole. {arm: {against: {"prompts": n, metric: {"median": ..., "geometric_mean": ...}}}}
    """
    compared: dict[str, Any] = {arm: {} for arm in records}
    for arm, against in itertools.permutations(records, 2):
        pairs = paired(records[arm], records[against])
        values = {
            metric: [ratio for pair in pairs.values() if (ratio := _ratio(pair, read)) is not None]
            for metric, read in _METRICS.items()
        }
        compared[arm][against] = {"prompts": len(pairs)} | {
            metric: _middle(numbers, bootstrap) for metric, numbers in values.items()
        }
    return compared


def paired_ratios(arm: Sequence[Record], against: Sequence[Record]) -> dict[str, float]:
    """Returns each prompt's ratio of tokens/s."""
    read = _METRICS["tokens_per_s"]
    found = {p: _ratio(pairs, read) for p, pairs in paired(arm, against).items()}
    return {prompt: ratio for prompt, ratio in found.items() if ratio is not None}


def exact_match(
    records: Mapping[str, Sequence[Record]], logit_gap: LogitGap | None = None
) -> list[dict[str, Any]]:
    """Returns, for every pair of arms, on how many prompts all tokens are equal, and where not.

    A prompt is equal when every turn and repeat is. The gap is asked for only
    where both arms had the same prompt tokens and promise the target's own.
    """
    table = []
    for first, second in itertools.combinations(records, 2):
        pairs = paired(records[first], records[second])
        mismatches = [
            _mismatch(a, b, logit_gap)
            for group in pairs.values()
            for a, b in group
            if a.output_token_ids != b.output_token_ids
        ]
        unequal = {mismatch["prompt_id"] for mismatch in mismatches}
        table.append(
            {
                "arms": [first, second],
                "prompts_compared": len(pairs),
                "prompts_equal": len(pairs) - len(unequal),
                "mismatches": mismatches,
            }
        )
    return table


def _mismatch(a: Record, b: Record, logit_gap: LogitGap | None) -> dict[str, Any]:
    ours, theirs = a.output_token_ids or (), b.output_token_ids or ()
    shared = equal_start(ours, theirs)
    here = [tokens[shared] if shared < len(tokens) else None for tokens in (ours, theirs)]
    same_prompt = a.prompt_token_ids == b.prompt_token_ids
    gap = None
    promised = all(record.promise is Promise.TOKENS for record in (a, b))
    if logit_gap is not None and same_prompt and promised:
        token_a, token_b = here
        if token_a is not None and token_b is not None:
            gap = logit_gap(a.prompt_token_ids or (), ours[:shared], token_a, token_b)
    return {
        "prompt_id": a.prompt_id,
        "turn": a.turn,
        "repeat": a.repeat,
        "same_prompt": same_prompt,
        "first_divergence": shared,
        "token_ids": here,
        "logit_gap": gap,
    }


def equal_start(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Returns how many tokens two outputs share from their start."""
    return sum(1 for _ in itertools.takewhile(bool, map(eq, ours, theirs)))


def paired(first: Sequence[Record], second: Sequence[Record]) -> dict[str, list[Pair]]:
    """Returns by prompt the pairs of whole records of the same turn and repeat."""
    theirs = {_place(record): record for record in second if record.error is None}
    whole = [r for r in first if r.error is None and _place(r) in theirs]
    return {p: [(r, theirs[_place(r)]) for r in group] for p, group in by_prompt(whole).items()}


def _place(record: Record) -> Place:
    return record.prompt_id, record.turn, record.repeat


def _ratio(
    pairs: Sequence[Pair],
    read: Callable[[Sequence[Record]], float | None],
) -> float | None:
    above, below = read([a for a, _ in pairs]), read([b for _, b in pairs])
    return above / below if above and below else None


def _middle(values: Sequence[float], bootstrap: Bootstrap) -> dict[str, Any] | None:
    median = bootstrap.quantiles([[value] for value in values], (0.5,))
    mean = bootstrap.geometric_mean(values)
    if median is None or mean is None:
        return None
    return {"median": median[0].to_json(), "geometric_mean": mean.to_json()}


def _tokens_per_s(records: Sequence[Record]) -> float | None:
    seconds = sum(record.e2e_s or 0.0 for record in records)
    return sum(record.num_output_tokens or 0 for record in records) / seconds if seconds else None


def _mean_of(read: Callable[[Record], float | None]) -> Callable[[Sequence[Record]], float | None]:
    def mean(records: Sequence[Record]) -> float | None:
        known = [value for record in records if (value := read(record)) is not None]
        return statistics.fmean(known) if known else None

    return mean


_METRICS: Mapping[str, Callable[[Sequence[Record]], float | None]] = {
    "tokens_per_s": _tokens_per_s,
    "ttft_s": _mean_of(lambda r: r.ttft_s),
    "tpot_s": _mean_of(lambda r: r.tpot_s),
    "e2e_s": _mean_of(lambda r: r.e2e_s),
}
