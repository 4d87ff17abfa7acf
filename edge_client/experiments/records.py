"""One record for each (prompt, turn, arm, repeat): what was written, and when.

A record is a pure function of the steps an arm yielded and of the client's clock.
Fields that do not apply are None (null in the file), never zero; every field is
defined in docs/methods.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_client.experiments.columns import StepColumns, columns
from edge_client.experiments.counts import asking, total, waste
from edge_client.experiments.quality import Quality
from edge_client.rule import Promise, Rule
from edge_client.steps import Step

SCHEMA_VERSION = 1

_NS_PER_S = 1e9
_NS_PER_MS = 1e6

Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Holds three percentiles of a sample, by linear interpolation (numpy's default)."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Unit:
    """Names what one record is about, and the conditions it was taken under.

    `verification` is None for an arm that verifies nothing.
    """

    run_id: str
    prompt_id: str
    turn: int
    category: str | None
    arm: str
    repeat: int
    order: int
    seed: int
    temperature: float
    draft_dtype: str | None
    target_dtype: str | None
    draft_engine: str | None = None
    target_engine: str | None = None
    verification: Rule | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """Is one line of records.jsonl."""

    run_id: str
    prompt_id: str
    turn: int
    category: str | None
    arm: str
    repeat: int
    order: int
    seed: int
    temperature: float
    prompt_tokens: int | None = None
    output_token_ids: Counts | None = None
    text: str | None = None
    num_output_tokens: int | None = None
    finish_reason: str | None = None
    ttft_s: float | None = None
    e2e_s: float | None = None
    tpot_s: float | None = None
    inter_token_s: Percentiles | None = None
    tokens_per_s: float | None = None
    rounds: int | None = None
    num_draft_tokens: int | None = None
    num_accepted_tokens: int | None = None
    accepted_per_position: Counts | None = None
    rtt_ms: Percentiles | None = None
    network_ms: Percentiles | None = None
    queue_ms: Percentiles | None = None
    target_compute_ms: Percentiles | None = None
    draft_ms: Percentiles | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    target_forward_passes: int | None = None
    target_busy_s: float | None = None
    draft_dtype: str | None = None
    target_dtype: str | None = None
    error: str | None = None
    # Beyond INTERFACE.md
    schema_version: int = SCHEMA_VERSION
    prompt_token_ids: Counts | None = None
    drafted_per_position: Counts | None = None
    mean_accepted_length: float | None = None
    mean_step_sessions: float | None = None
    verification: Rule | None = None
    lossless: bool | None = None
    unasked_blocks: int | None = None
    cloud_call_rate: float | None = None
    num_unverified_tokens: int | None = None
    verified_share: float | None = None
    num_recovered_tokens: int | None = None
    corrected_share: float | None = None
    draft_probabilities_bytes: int | None = None
    target_nll: float | None = None
    chrf: float | None = None
    bleu: float | None = None
    rouge_l: float | None = None
    reconnects: int | None = None
    time_lost_s: float | None = None
    started_s: float | None = None
    serialization_ms: Percentiles | None = None
    drafts_ahead: int | None = None
    overtaken_drafts: int | None = None
    num_guessed_tokens: int | None = None
    num_wasted_tokens: int | None = None
    num_wasted_target_tokens: int | None = None
    num_run_ahead_tokens: int | None = None
    draft_engine: str | None = None
    target_engine: str | None = None
    waited_s: float | None = None
    edge_cpu_s: float | None = None
    cloud_cpu_s: float | None = None
    edge_peak_rss_mib: float | None = None
    cloud_peak_rss_mib: float | None = None
    edge_energy_j: float | None = None
    cloud_energy_j: float | None = None
    gpu_peak_memory_mib: float | None = None
    gpu_utilization: float | None = None
    gpu_energy_j: float | None = None
    steps: StepColumns | None = None

    @property
    def promise(self) -> Promise | None:
        """What the arm promises of this text; None of the draft model's own and of a lossy one."""
        if self.target_dtype is None:
            return None
        rule = self.verification
        return Promise.TOKENS if rule is None else rule.promise(self.temperature)

    def to_json(self) -> str:
        """Returns the record as one line of JSON, without its newline."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False, separators=(",", ":"))


def record_from_steps(
    unit: Unit,
    prompt_token_ids: Sequence[int],
    steps: Sequence[Step],
    arrivals_ns: Sequence[int],
    quality: Quality | None = None,
    *,
    started_ns: int = 0,
    run_started_ns: int | None = None,
    waited_ns: int | None = None,
) -> Record:
    """Builds the record of a generation that ended.

    `arrivals_ns` are the client's clock at each step, counted from the moment the
    request was handed to the arm, which was at `started_ns`; `quality` is how near
    the text comes to the prompt's reference; `run_started_ns` is when the run's first
    generation began; `waited_ns` how long the request was due before it was handed over.
    """
    output = tuple(token_id for step in steps for token_id in step.token_ids)
    rounds = [step for step in steps if step.num_accepted_tokens is not None]
    unasked = [step for step in steps if step.asked is False]
    drafts = bool(rounds or unasked)
    timings = [step.timing for step in steps if step.timing is not None]
    e2e_ns = arrivals_ns[-1]
    ttft_ns = next(
        (at for at, step in zip(arrivals_ns, steps, strict=True) if step.token_ids), None
    )
    finish_reason = steps[-1].finish_reason
    drafted = [step.num_draft_tokens or 0 for step in rounds]
    accepted = [step.num_accepted_tokens or 0 for step in rounds]
    positions = max(drafted, default=0)
    lost_ns = total(step.lost_ns for step in steps)
    return Record(
        **_identity(unit),
        prompt_tokens=len(prompt_token_ids),
        prompt_token_ids=tuple(prompt_token_ids),
        output_token_ids=output,
        text="".join(step.text for step in steps),
        num_output_tokens=len(output),
        finish_reason=None if finish_reason is None else finish_reason.value,
        ttft_s=None if ttft_ns is None else ttft_ns / _NS_PER_S,
        e2e_s=e2e_ns / _NS_PER_S,
        tpot_s=(
            (e2e_ns - ttft_ns) / (len(output) - 1) / _NS_PER_S
            if ttft_ns is not None and len(output) > 1
            else None
        ),
        inter_token_s=percentiles(inter_token_seconds(steps, arrivals_ns)),
        tokens_per_s=len(output) / (e2e_ns / _NS_PER_S) if output and e2e_ns else None,
        rounds=len(rounds) if drafts else None,
        num_draft_tokens=sum(drafted) if drafts else None,
        num_accepted_tokens=sum(accepted) if drafts else None,
        accepted_per_position=_reached(accepted, positions) if drafts else None,
        drafted_per_position=_reached(drafted, positions) if drafts else None,
        mean_accepted_length=(
            sum(len(step.token_ids) for step in rounds) / len(rounds) if rounds else None
        ),
        rtt_ms=percentiles(
            s.elapsed_ns / _NS_PER_MS for s in rounds if s.asked and s.elapsed_ns is not None
        ),
        network_ms=percentiles(
            (s.elapsed_ns - s.timing.total_ns) / _NS_PER_MS
            for s in steps
            if s.elapsed_ns is not None and s.timing is not None
        ),
        queue_ms=percentiles((t.queued_ns + t.batched_ns) / _NS_PER_MS for t in timings),
        target_compute_ms=percentiles(t.computed_ns / _NS_PER_MS for t in timings),
        draft_ms=percentiles(s.draft_ns / _NS_PER_MS for s in steps if s.draft_ns is not None),
        bytes_up=total(step.bytes_up for step in steps),
        bytes_down=total(step.bytes_down for step in steps),
        target_forward_passes=sum(t.forward_passes for t in timings) if timings else None,
        target_busy_s=sum(t.busy_ns for t in timings) / _NS_PER_S if timings else None,
        mean_step_sessions=(
            sum(t.step_sessions for t in timings) / len(timings) if timings else None
        ),
        **(asking(rounds, unasked) | waste(steps, rounds) if drafts else {}),
        draft_probabilities_bytes=total(step.draft_probabilities_bytes for step in steps),
        **({} if quality is None else dataclasses.asdict(quality)),
        reconnects=total(step.reconnects for step in steps),
        time_lost_s=None if lost_ns is None else lost_ns / _NS_PER_S,
        waited_s=None if waited_ns is None else waited_ns / _NS_PER_S,
        started_s=None if run_started_ns is None else (started_ns - run_started_ns) / _NS_PER_S,
        serialization_ms=percentiles(
            s.serialization_ns / _NS_PER_MS for s in steps if s.serialization_ns is not None
        ),
        num_run_ahead_tokens=total(len(s.token_ids) if s.run_ahead else None for s in steps),
        steps=columns(steps, arrivals_ns, started_ns),
    )


def error_record(unit: Unit, prompt_token_ids: Sequence[int] | None, error: str) -> Record:
    """Builds the record of a generation that failed: nothing measured, the reason kept."""
    known = None if prompt_token_ids is None else tuple(prompt_token_ids)
    return Record(
        **_identity(unit),
        prompt_tokens=None if known is None else len(known),
        prompt_token_ids=known,
        error=error,
    )


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """Returns p50, p95 and p99 of a sample, or None of an empty one."""
    sample = list(values)
    if not sample:
        return None
    p50, p95, p99 = (float(p) for p in np.percentile(sample, (50, 95, 99)))
    return Percentiles(p50, p95, p99)


def inter_token_seconds(steps: Sequence[Step], arrivals_ns: Sequence[int]) -> list[float]:
    """Returns the gap before each token after the first arrival.

    Tokens that arrive together share the gap before them equally, as SGLang's
    bench_serving counts them, so that the gaps add up to e2e - TTFT.
    """
    gaps: list[float] = []
    previous: int | None = None
    for step, at in zip(steps, arrivals_ns, strict=True):
        if not step.token_ids:
            continue
        if previous is not None:
            count = len(step.token_ids)
            gaps += [(at - previous) / count / _NS_PER_S] * count
        previous = at
    return gaps


def _identity(unit: Unit) -> dict[str, Any]:
    known = {field.name: getattr(unit, field.name) for field in dataclasses.fields(unit)}
    rule, asks = unit.verification, unit.target_dtype is not None
    return known | {"lossless": (rule is None or rule.lossless) if asks else None}


def _reached(counts: Sequence[int], positions: int) -> Counts:
    """Returns, for each position i, in how many rounds the count was at least i + 1."""
    return tuple(sum(count > i for count in counts) for i in range(positions))
