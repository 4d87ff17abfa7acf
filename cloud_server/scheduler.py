"""What the next forward takes: a pure choice among waiting jobs, under one token budget.

A job is a run of tokens one session must put through the target: a verify
segment, a decode step (a verify without guesses) or a prompt. Its last
`num_logits` tokens must share one forward, since their choices are judged
together; everything before them may be split into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waiting:
    """Is what the scheduler sees of a job: `num_tokens` still to run, the last `num_logits` judged.

    Nobody waits for a job that `fills_room`: it takes what the others leave.
    Invariant: 1 <= num_tokens, 0 <= num_logits <= num_tokens.
    """

    session: int
    num_tokens: int
    num_logits: int
    fills_room: bool = False


@dataclass(frozen=True, slots=True)
class Slice:
    """Lets one job run its next `num_tokens` tokens; `is_last` when that completes it."""

    index: int
    num_tokens: int
    is_last: bool


def plan_step(jobs: Sequence[Waiting], token_budget: int, prefill_chunk: int) -> list[Slice]:
    """Chooses the slices of the next forward from jobs in order of arrival.

    The oldest job always gets a slice, so nothing starves. Then come jobs that
    this step can complete (verifies and decodes: somebody waits for each), then
    chunks of longer prompts, each kind in order of arrival; last, and without any right to
    a place, what only fills room: the others get what they would without it. A session
    takes part once, with its oldest job. Requires num_logits <= token_budget for all.
    """
    oldest: dict[int, int] = {}
    for index, job in enumerate(jobs):
        oldest.setdefault(job.session, index)
    own = sorted(oldest.values())
    eligible = [i for i in own if not jobs[i].fills_room]
    completing = [i for i in eligible if _chunk(jobs[i], token_budget, prefill_chunk)[1]]
    order = dict.fromkeys([*eligible[:1], *completing, *eligible, *own])

    slices: list[Slice] = []
    left = token_budget
    for index in order:
        num_tokens, is_last = _chunk(jobs[index], left, prefill_chunk)
        if num_tokens:
            slices.append(Slice(index, num_tokens, is_last))
            left -= num_tokens
    return slices


def _chunk(job: Waiting, left: int, prefill_chunk: int) -> tuple[int, bool]:
    """Returns how many tokens of a job fit into what is left, and whether they complete it."""
    if job.num_tokens <= min(left, max(prefill_chunk, job.num_logits)):
        return job.num_tokens, True
    return min(left, prefill_chunk, job.num_tokens - job.num_logits), False
