"""What one generation's steps say about it, in the words and by the definitions of records.jsonl.

The definitions stand in `experiments/records.py` and nowhere else, so that `generate`
and `bench` can never count differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.types import SamplingParams
from edge_client.arms import Step
from edge_client.experiments.records import Unit, record_from_steps
from edge_client.rule import Rule

# What only makes sense beside other records, or stands beside `stats` already.
_LEFT_OUT = frozenset(
    {"run_id", "prompt_id", "turn", "category", "repeat", "order", "error", "schema_version"}
    | {"prompt_token_ids", "output_token_ids", "text", "finish_reason", "steps", "started_s"}
    | {"edge_cpu_s", "cloud_cpu_s", "edge_peak_rss_mib", "cloud_peak_rss_mib"}
    | {"waited_s"}  # of bench and load alone
    | {"edge_energy_j", "cloud_energy_j", "gpu_peak_memory_mib", "gpu_utilization", "gpu_energy_j"}
    | {"target_nll", "chrf", "bleu", "rouge_l"}  # asked for, and compared, by bench alone
)


@dataclass(frozen=True, slots=True)
class Conditions:
    """States under what a generation ran.

    A dtype is None where the arm has no such model, `verification` where it verifies nothing.
    """

    arm: str
    sampling: SamplingParams
    draft_dtype: str | None
    target_dtype: str | None
    verification: Rule | None = None


def summarise(
    conditions: Conditions,
    prompt_token_ids: Sequence[int],
    steps: Sequence[Step],
    arrivals_ns: Sequence[int],
) -> dict[str, Any]:
    """Returns the `stats` of `generate --json`; what does not apply to the arm is None.

    `arrivals_ns` are the client's clock at each step, counted from the request.
    Beyond the fields of a record: `acceptance_rate`, and the company the requests
    had at the server (`step_sessions`, and in `shared_forwards` how many of them
    shared their forward with another session).
    """
    unit = Unit(
        run_id="",
        prompt_id="",
        turn=0,
        category=None,
        arm=conditions.arm,
        repeat=0,
        order=0,
        seed=conditions.sampling.seed,
        temperature=conditions.sampling.temperature,
        draft_dtype=conditions.draft_dtype,
        target_dtype=conditions.target_dtype,
        verification=conditions.verification,
    )
    fields = asdict(record_from_steps(unit, prompt_token_ids, steps, arrivals_ns))
    sessions = [step.timing.step_sessions for step in steps if step.timing is not None]
    drafted, accepted = fields["num_draft_tokens"], fields["num_accepted_tokens"]
    return {name: value for name, value in fields.items() if name not in _LEFT_OUT} | {
        "acceptance_rate": accepted / drafted if drafted else None,
        "step_sessions": (
            {"max": max(sessions), "mean": sum(sessions) / len(sessions)} if sessions else None
        ),
        "shared_forwards": sum(count > 1 for count in sessions) if sessions else None,
    }


def one_line(stats: dict[str, Any]) -> str:
    """Returns the few numbers a person wants to see under a generated text."""
    parts = [f"{stats['num_output_tokens']} tokens"]
    if stats["tokens_per_s"] is not None:
        parts.append(f"{stats['tokens_per_s']:.1f} tokens/s")
    if stats["acceptance_rate"] is not None:
        parts.append(f"{stats['acceptance_rate']:.0%} of drafts accepted")
        parts.append(f"{stats['mean_accepted_length']:.2f} tokens a round")
    if stats["overtaken_drafts"]:
        parts.append(f"{stats['overtaken_drafts']} drafts overtaken")
    if stats["num_unverified_tokens"]:
        parts.append(f"{stats['num_unverified_tokens']} tokens committed without asking")
    if stats["lossless"] is False:
        parts.append("LOSSY")
    if stats["rtt_ms"] is not None:
        parts.append(f"round trip p50 {stats['rtt_ms']['p50']:.1f} ms")
    return ", ".join(parts)
