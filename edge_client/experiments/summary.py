"""summary.json: everything the records of a run say together. Pure but for the logit gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_client.experiments.bootstrap import CONFIDENCE, RESAMPLES, Bootstrap
from edge_client.experiments.comparison import LogitGap, exact_match, ratios
from edge_client.experiments.records import SCHEMA_VERSION, Record
from edge_client.experiments.statistics import summarize_arm

REFERENCES = ("cloud", "cloud_optimized")


def summarize(
    records: Sequence[Record],
    arms: Sequence[str],
    *,
    run_id: str,
    interrupted: bool,
    planned_records: int,
    seed: int,
    environment: Mapping[str, Any],
    logit_gap: LogitGap | None = None,
) -> dict[str, Any]:
    """Builds the summary; `seed` draws the bootstrap's resamples."""
    bootstrap = Bootstrap(seed)
    by_arm = {arm: [record for record in records if record.arm == arm] for arm in arms}
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "interrupted": interrupted,
        "records": len(records),
        "planned_records": planned_records,
        "prompts": len({record.prompt_id for record in records}),
        "reference": next((arm for arm in REFERENCES if arm in arms), None),
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": seed},
        "not_float32": not_float32(records, environment),
        "arms": {arm: summarize_arm(group, bootstrap) for arm, group in by_arm.items()},
        "ratios": ratios(by_arm, bootstrap),
        "exact_match": exact_match(by_arm, logit_gap),
        "environment": dict(environment),
    }


def not_float32(records: Sequence[Record], environment: Mapping[str, Any]) -> list[str]:
    """Returns what is not float32, in words; empty when all of it is."""
    found = []
    for side in ("draft", "target"):
        used = {getattr(record, f"{side}_dtype") for record in records} - {None, "float32"}
        found += [f"the {side} model ran in {dtype}" for dtype in sorted(used)]
        model = environment.get(f"{side}_model") or {}
        held = model.get("cache_dtype")
        if held not in (None, "float32"):
            found.append(f"the {side} model's keys and values were {held}")
    return found


def identical_to(summary: Mapping[str, Any], arm: str) -> tuple[int, int] | None:
    """Returns on how many prompts of how many an arm equals the reference arm."""
    for row in summary["exact_match"]:
        if set(row["arms"]) == {arm, summary["reference"]}:
            return row["prompts_equal"], row["prompts_compared"]
    return None
