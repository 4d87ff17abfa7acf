"""The batch window: how long a step may wait for company, so that more sessions share a forward."""

from __future__ import annotations

from collections.abc import Sequence

from cloud_server.jobs import Job


def holds_ns(jobs: Sequence[Job], num_sessions: int, window_ns: int, now: int) -> int:
    """Returns how long a step over these jobs may still wait for others, in nanoseconds.

    It may until the window is over, which opens when the oldest job comes, or each of the
    `num_sessions` open ones has a job. Nothing waits behind a job that is under way, as a prompt
    between its chunks is, with nothing but prompts, or for so long that a deadline would pass.
    """
    under_way = any(job.started_ns for job in jobs)
    is_whole = len({job.session for job in jobs}) >= num_sessions
    if under_way or is_whole or all(job.check is None for job in jobs):
        return 0
    closes_ns = min(job.arrived_ns for job in jobs) + window_ns
    if any(job.deadline_ns is not None and job.deadline_ns <= closes_ns for job in jobs):
        return 0
    return max(0, closes_ns - now)
