"""What one arm did over a whole run: pooled values with 95 % intervals over prompts.

Pure. Every number is defined in docs/methods.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from edge_client.experiments import readings
from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.measure import Measure, Reading, by_prompt
from edge_client.experiments.records import Record

_MS_PER_S = 1e3


def summarize_arm(records: Sequence[Record], bootstrap: Bootstrap) -> dict[str, Any]:
    """Pools the records of one arm; failed ones are counted and otherwise left out."""
    whole = [record for record in records if record.error is None]
    measure = Measure(whole, bootstrap)
    return {
        "records": len(records),
        "errors": len(records) - len(whole),
        "prompts": len(by_prompt(whole)),
        "num_output_tokens": readings.total(r.num_output_tokens for r in whole),
        "finish_reasons": dict(sorted(Counter(str(r.finish_reason) for r in whole).items())),
        "draft_dtype": next((r.draft_dtype for r in records), None),
        "target_dtype": next((r.target_dtype for r in records), None),
        "draft_engine": next((r.draft_engine for r in records), None),
        "target_engine": next((r.target_engine for r in records), None),
        "tokens_per_s": measure.ratio(lambda r: r.num_output_tokens, lambda r: r.e2e_s),
        "ttft_s": measure.spread(lambda r: _one(r.ttft_s)),
        "tpot_s": measure.spread(lambda r: _one(r.tpot_s)),
        "e2e_s": measure.spread(lambda r: _one(r.e2e_s)),
        "inter_token_s": measure.spread(readings.gap_seconds),
        **_speculation(whole, measure),
        **_asking(records, whole, measure),
        "rtt_ms": measure.spread(readings.round_trips),
        "network_ms": measure.spread(readings.network),
        "queue_ms": measure.spread(readings.queue),
        "target_compute_ms": measure.spread(readings.target_compute),
        "draft_ms": measure.spread(readings.draft),
        "serialization_ms": measure.spread(readings.serialization),
        **_waste(whole, measure),
        "bytes_up_per_token": measure.a_token(lambda r: r.bytes_up),
        "bytes_down_per_token": measure.a_token(lambda r: r.bytes_down),
        "bytes_per_token": measure.a_token(readings.bytes_both_ways),
        "target_forward_passes_per_token": measure.a_token(lambda r: r.target_forward_passes),
        "target_busy_ms_per_token": measure.a_token(readings.busy),
        "mean_step_sessions": measure.mean(lambda r: r.mean_step_sessions),
        **{
            name: measure.a_token(read)
            for name, read in {
                "edge_cpu_ms_per_token": readings.milliseconds("edge_cpu_s"),
                "cloud_cpu_ms_per_token": readings.milliseconds("cloud_cpu_s"),
                "edge_energy_j_per_token": lambda r: r.edge_energy_j,
                "cloud_energy_j_per_token": lambda r: r.cloud_energy_j,
                "gpu_energy_j_per_token": lambda r: r.gpu_energy_j,
            }.items()
        },
        "ms_per_token": _decomposition(measure),
        "overlap_ms_per_token": measure.a_token(readings.overlap),
        "target_nll": measure.a_token(readings.nats),
        "chrf": measure.mean(lambda r: r.chrf),
        "bleu": measure.mean(lambda r: r.bleu),
        "rouge_l": measure.mean(lambda r: r.rouge_l),
    }


def _speculation(whole: Sequence[Record], measure: Measure) -> dict[str, Any]:
    accepted = readings.add_up(r.accepted_per_position for r in whole)

    def by_position(position: int) -> dict[str, Any] | None:
        return measure.ratio(
            lambda r: readings.at(r.accepted_per_position, position),
            lambda r: readings.at(r.drafted_per_position, position),
        )

    return {
        "rounds": readings.total(r.rounds for r in whole),
        "num_draft_tokens": readings.total(r.num_draft_tokens for r in whole),
        "num_accepted_tokens": readings.total(r.num_accepted_tokens for r in whole),
        "acceptance_rate": measure.ratio(
            lambda r: r.num_accepted_tokens, lambda r: r.num_draft_tokens
        ),
        "acceptance_rate_mean_of_prompts": measure.mean_of_ratios(
            lambda r: r.num_accepted_tokens, lambda r: r.num_draft_tokens
        ),
        "mean_accepted_length": measure.ratio(readings.round_tokens, lambda r: r.rounds),
        "accepted_per_position": accepted,
        "drafted_per_position": readings.add_up(r.drafted_per_position for r in whole),
        "acceptance_by_position": None
        if accepted is None
        else [by_position(position) for position in range(len(accepted))],
    }


def _asking(records: Sequence[Record], whole: Sequence[Record], measure: Measure) -> dict[str, Any]:
    rule = next((r.verification for r in records if r.verification is not None), None)
    promise = next((r.promise for r in records), None)
    return {
        "verification": None if rule is None else asdict(rule),
        "lossless": next((r.lossless for r in records), None),
        "promise": None if promise is None else promise.value,
        "unasked_blocks": readings.total(r.unasked_blocks for r in whole),
        "num_unverified_tokens": readings.total(r.num_unverified_tokens for r in whole),
        "num_recovered_tokens": readings.total(r.num_recovered_tokens for r in whole),
        "cloud_call_rate": measure.ratio(readings.asked_rounds, readings.blocks),
        "verified_share": measure.a_token(readings.verified_tokens),
        "corrected_share": measure.a_token(lambda r: r.num_recovered_tokens),
        "draft_probabilities_bytes_per_draft_token": measure.ratio(
            lambda r: r.draft_probabilities_bytes, lambda r: r.num_draft_tokens
        ),
    }


def _waste(whole: Sequence[Record], measure: Measure) -> dict[str, Any]:
    return {
        "drafts_ahead": readings.total(r.drafts_ahead for r in whole),
        "overtaken_drafts": readings.total(r.overtaken_drafts for r in whole),
        "num_guessed_tokens": readings.total(r.num_guessed_tokens for r in whole),
        "num_wasted_tokens": readings.total(r.num_wasted_tokens for r in whole),
        "num_wasted_target_tokens": readings.total(r.num_wasted_target_tokens for r in whole),
        "wasted_share": measure.ratio(
            lambda r: r.num_wasted_tokens, lambda r: r.num_guessed_tokens
        ),
        "wasted_target_tokens_per_token": measure.a_token(lambda r: r.num_wasted_target_tokens),
    }


def _decomposition(measure: Measure) -> dict[str, Any]:
    """Splits the client's time a token; the parts add up to e2e and overlap over tokens."""

    def drafting(record: Record) -> float | None:
        if record.target_forward_passes is None and record.rounds is None:
            return _e2e_ms(record)  # the draft model alone: every step is its own
        return readings.total(readings.draft(record))

    def waiting(read: Callable[[Record], Sequence[float]]) -> Reading:
        # An output of which nothing was asked waited for nothing; elsewhere, unknown stays unknown.
        return lambda r: 0.0 if r.rounds == 0 else readings.total(read(r))

    parts: dict[str, Reading] = {
        "draft": drafting,
        "network": waiting(readings.network),
        "queue": waiting(readings.queue),
        "target_compute": waiting(readings.target_compute),
    }

    def other(record: Record) -> float | None:
        whole = _e2e_ms(record)
        if whole is None:
            return None
        known = sum(part(record) or 0.0 for part in parts.values())
        return whole + (readings.overlap(record) or 0.0) - known

    return {name: measure.a_token(part) for name, part in (parts | {"other": other}).items()}


def _one(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def _e2e_ms(record: Record) -> float | None:
    return None if record.e2e_s is None else record.e2e_s * _MS_PER_S
