"""One step of the engine: what it takes of the jobs that wait, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cloud_server.acceptance import Judged, judge
from cloud_server.jobs import Job, StepReport, as_ours
from cloud_server.scheduler import Waiting, plan_step
from common.lm.kv_cache import KVCache
from common.lm.runner import Segment
from common.types import StepTiming


@dataclass(frozen=True, slots=True)
class Step:
    """Is one forward: the jobs that take part, the segment of each, and all their tokens."""

    jobs: Sequence[Job]
    segments: Sequence[Segment]
    num_tokens: int

    @property
    def completed(self) -> list[Job]:
        """The jobs of which nothing is left, once it is accounted for."""
        return [job for job in self.jobs if job.valid == len(job.tokens)]

    def judge(self, logits: torch.Tensor) -> dict[int, Judged]:
        """Returns the judgement of each session whose check this step completes.

        `logits`: [num_logits of all segments, vocab], in their order.
        """
        asked = {
            job.session: job.check
            for job, segment in zip(self.jobs, self.segments, strict=True)
            if job.check is not None and segment.num_logits
        }
        return dict(zip(asked, judge(logits, list(asked.values())), strict=True))

    def account(self, computed_ns: int) -> StepReport:
        """Books the forward on its jobs."""
        for job, segment in zip(self.jobs, self.segments, strict=True):
            job.valid = segment.position + len(segment.token_ids)
            job.computed_ns += computed_ns
            job.busy_ns += computed_ns * len(segment.token_ids) // self.num_tokens
            job.forward_passes += 1
        return StepReport(len(self.jobs), self.num_tokens, computed_ns)

    def publish(self, cache: KVCache) -> None:
        """Lets other sessions share what its jobs have run, guesses apart."""
        for job in self.jobs:
            cache.publish(job.session, job.tokens, min(job.valid, job.certain))

    def timing(self, job: Job, done_ns: int) -> StepTiming:
        """Returns the books of a job that this step completed at `done_ns`."""
        return StepTiming(
            queued_ns=job.started_ns - job.arrived_ns,
            batched_ns=done_ns - job.started_ns - job.computed_ns,
            computed_ns=job.computed_ns,
            total_ns=done_ns - job.arrived_ns,
            busy_ns=job.busy_ns,
            step_sessions=len(self.jobs),
            step_tokens=self.num_tokens,
            forward_passes=job.forward_passes,
        )


def form_step(
    jobs: Sequence[Job], cache: KVCache, token_budget: int, prefill_chunk: int, now: int
) -> Step:
    """Plans the next forward over jobs in order of arrival, and marks those it takes as started."""
    _share(jobs, cache)
    starts = [_start(job, cache) for job in jobs]
    waiting = [
        Waiting(job.session, len(job.tokens) - start, job.num_logits, job.fills_room)
        for job, start in zip(jobs, starts, strict=True)
    ]
    taken, segments = [], []
    for planned in plan_step(waiting, token_budget, prefill_chunk):
        job, start = jobs[planned.index], starts[planned.index]
        job.started_ns = job.started_ns or now
        taken.append(job)
        segments.append(
            Segment(
                session=job.session,
                token_ids=job.tokens[start : start + planned.num_tokens],
                position=start,
                num_logits=job.num_logits if planned.is_last else 0,
            )
        )
    return Step(taken, segments, sum(len(segment.token_ids) for segment in segments))


def answer(job: Job, judged: Judged | None, timing: StepTiming) -> Job | None:
    """Answers a job, and returns the one that follows it, if any does."""
    try:
        return job.then(judged, timing)
    except Exception as error:  # a fault in one session's bookkeeping ends that session
        job.failed(as_ours(error))
        return None


def _share(jobs: Sequence[Job], cache: KVCache) -> None:
    """Has sessions take over what others ran since of the sequences they begin with."""
    for job in {job.session: job for job in reversed(jobs)}.values():  # the oldest of each
        if job.valid >= cache.length(job.session):
            job.valid = max(job.valid, cache.adopt(job.session, job.tokens, _last(job)))


def _start(job: Job, cache: KVCache) -> int:
    """Returns the position of the first token that still has to run."""
    return min(job.valid, cache.length(job.session), _last(job))


def _last(job: Job) -> int:
    """Returns the position from which a job's tokens are run whatever is known of them."""
    return len(job.tokens) - max(job.num_logits, 1)
