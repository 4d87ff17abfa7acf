"""summary.json: everything the records of a run say together. Pure but for the logit gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_client.experiments.again import self_checks
from edge_client.experiments.agreement import agreement
from edge_client.experiments.bootstrap import CONFIDENCE, RESAMPLES, Bootstrap
from edge_client.experiments.categories import by_category
from edge_client.experiments.comparison import LogitGap, exact_match, ratios
from edge_client.experiments.quality import OFF, QualityMetrics
from edge_client.experiments.records import SCHEMA_VERSION, Record
from edge_client.experiments.resources import resources
from edge_client.experiments.statistics import summarize_arm
from edge_client.rule import Promise

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
    metrics: QualityMetrics | None = None,
    references: bool = False,
) -> dict[str, Any]:
    """Builds the summary.

    `seed` draws the bootstrap's resamples; `metrics` None leaves texts uncompared;
    `references` says whether any prompt came with one.
    """
    bootstrap = Bootstrap(seed)
    reference = next((arm for arm in REFERENCES if arm in arms), None)
    by_arm = {arm: [record for record in records if record.arm == arm] for arm in arms}
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "interrupted": interrupted,
        "records": len(records),
        "planned_records": planned_records,
        "prompts": len({record.prompt_id for record in records}),
        "reference": reference,
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": seed},
        "not_float32": not_float32(records, environment),
        "lossy": [sentence for arm, group in by_arm.items() for sentence in lossy(arm, group)],
        "quality_off": OFF if metrics is None and (references or departs(records)) else None,
        "arms": {arm: summarize_arm(group, bootstrap) for arm, group in by_arm.items()},
        "categories": by_category(by_arm, bootstrap),
        "ratios": ratios(by_arm, bootstrap),
        "self_checks": self_checks(by_arm, bootstrap),
        "exact_match": exact_match(by_arm, logit_gap),
        "agreement": agreement(by_arm, reference, bootstrap, metrics),
        "resources": resources(records),
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


def lossy(arm: str, records: Sequence[Record]) -> list[str]:
    """Returns what makes the texts of an arm others than the target's, in words."""
    rule = next((r.verification for r in records if r.verification is not None), None)
    if rule is None or rule.lossless:
        return []
    found = [f"{arm} {loss}" for loss in rule.mode_losses]
    if rule.gate is not None:
        whole = [record for record in records if record.error is None]
        unverified = sum(record.num_unverified_tokens or 0 for record in whole)
        tokens = sum(record.num_output_tokens or 0 for record in whole)
        found.append(
            f"{arm} committed {unverified} of {tokens} tokens without asking ({rule.gated_by})"
        )
    return found


def departs(records: Sequence[Record]) -> bool:
    """Whether some arm that uses the target promises another text than the target's own."""
    return any(r.target_dtype is not None and r.promise is not Promise.TOKENS for r in records)


def identical_to(summary: Mapping[str, Any], arm: str) -> tuple[int, int] | None:
    """Returns on how many prompts of how many an arm equals the reference arm."""
    for row in summary["exact_match"]:
        if set(row["arms"]) == {arm, summary["reference"]}:
            return row["prompts_equal"], row["prompts_compared"]
    return None
