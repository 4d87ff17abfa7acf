"""What the arms did on each category of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.comparison import ratios
from edge_client.experiments.measure import Measure, by_prompt
from edge_client.experiments.records import Record


def by_category(
    records: Mapping[str, Sequence[Record]], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Returns {category: {"prompts": n, "arms": {arm: ...}, "ratios": {arm: {against: ...}}}}.

    Prompts without a category are left out. Ratios are medians of tokens/s over paired prompts.
    """
    everything = [record for group in records.values() for record in group]
    names = sorted({record.category for record in everything if record.category is not None})
    return {name: _category(_of(name, records), bootstrap) for name in names}


def _of(category: str, records: Mapping[str, Sequence[Record]]) -> dict[str, list[Record]]:
    return {arm: [r for r in group if r.category == category] for arm, group in records.items()}


def _category(records: Mapping[str, Sequence[Record]], bootstrap: Bootstrap) -> dict[str, Any]:
    return {
        "prompts": len(by_prompt(record for group in records.values() for record in group)),
        "arms": {arm: _arm(group, bootstrap) for arm, group in records.items()},
        "ratios": {
            arm: {against: _median(numbers) for against, numbers in others.items()}
            for arm, others in ratios(records, bootstrap).items()
        },
    }


def _arm(records: Sequence[Record], bootstrap: Bootstrap) -> dict[str, Any]:
    whole = [record for record in records if record.error is None]
    measure = Measure(whole, bootstrap)
    drafted = (lambda r: r.num_accepted_tokens), (lambda r: r.num_draft_tokens)
    return {
        "records": len(records),
        "errors": len(records) - len(whole),
        "tokens_per_s": measure.ratio(lambda r: r.num_output_tokens, lambda r: r.e2e_s),
        "ttft_s": measure.spread(lambda r: () if r.ttft_s is None else (r.ttft_s,)),
        "tpot_s": measure.spread(lambda r: () if r.tpot_s is None else (r.tpot_s,)),
        "acceptance_rate": measure.ratio(*drafted),
        "acceptance_rate_mean_of_prompts": measure.mean_of_ratios(*drafted),
    }


def _median(numbers: Mapping[str, Any]) -> dict[str, Any] | None:
    speed = numbers["tokens_per_s"]
    return None if speed is None else speed["median"]
