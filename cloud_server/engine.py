"""One thread owns model and cache, and turns waiting jobs into ragged forwards.

The event loop hands in jobs and releases sessions; the thread answers through
each job's callbacks, which must not block. `step` is the whole engine:
plan, run, choose, answer.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cloud_server.scheduler import Waiting, plan_step
from common.errors import InternalError, OutriderError, UnavailableError
from common.lm.loading import load
from common.lm.precision import apply_policy
from common.lm.runner import LanguageModel, Segment
from common.lm.sampling import choose
from common.lm.threads import set_threads
from common.types import SamplingParams, StepTiming

logger = logging.getLogger(__name__)

Clock = Callable[[], int]
Failed = Callable[[OutriderError], None]
Scored = Callable[[list[float]], None]


class CloudModel(LanguageModel):
    """Is the target: weights in float32 unless asked otherwise, and the cache of many sessions."""

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        device: str = "auto",
        threads: int | None = None,
        cache_tokens: int = 65536,
    ) -> None:
        """Applies the precision policy of this process and loads the model.

        `threads` is how many torch uses in this process (see common/lm/threads.py).
        Raises ModelError for a model that is missing or cannot be served exactly.
        """
        self.precision = apply_policy(dtype)
        loaded = load(path, dtype=dtype, device=device)
        set_threads(threads, loaded)
        super().__init__(loaded, cache_tokens)


@dataclass(slots=True)
class Job:
    """Runs `tokens` of one session through the target and judges the last `num_logits`.

    `tokens` is the session's whole sequence, guesses included; the cache's first
    `valid` tokens are known to agree with it and are not run again. `then` gets
    the target's choices after each of the last `num_logits` tokens and may
    return the session's next job, which joins the very next step; `failed` gets
    the reason instead. Both are called on the engine thread.
    """

    session: int
    tokens: Sequence[int]
    valid: int
    num_logits: int
    sampling: SamplingParams
    arrived_ns: int
    then: Callable[[list[int], StepTiming], Job | None]
    failed: Failed
    started_ns: int = 0
    computed_ns: int = 0
    busy_ns: int = 0
    forward_passes: int = 0


@dataclass(frozen=True, slots=True)
class StepReport:
    """Is what one forward was made of, for the metrics."""

    sessions: int
    tokens: int
    computed_ns: int


class Engine:
    """Runs the engine thread; its public methods but `step` may be called from any other."""

    def __init__(
        self,
        model: LanguageModel,
        *,
        token_budget: int,
        prefill_chunk: int,
        clock: Clock,
        on_step: Callable[[StepReport], None],
    ) -> None:
        self._model = model
        self._token_budget = token_budget
        self._prefill_chunk = prefill_chunk
        self._clock = clock
        self._on_step = on_step
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: list[Job] = []
        self._running = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread after the step in hand; jobs still waiting are failed."""
        self._inbox.put(self._halt)
        self._thread.join()

    def allocate(self, tokens: int, then: Callable[[int], None], failed: Failed) -> None:
        """Reserves cache for a session of at most `tokens` tokens and gives `then` its handle."""
        self._inbox.put(lambda: self._allocate(tokens, then, failed))

    def submit(self, job: Job) -> None:
        """Queues a job behind the others of its session."""
        self._inbox.put(lambda: self._take(job))

    def score(
        self, tokens: Sequence[int], candidates: Sequence[int], then: Scored, failed: Failed
    ) -> None:
        """Gives `then` the logits of the candidates after `tokens`, from forwards of their own."""
        self._inbox.put(lambda: self._score(tokens, candidates, then, failed))

    def release(self, session: int) -> None:
        """Drops a session's jobs, unanswered, and frees its cache."""
        self._inbox.put(lambda: self._release(session))

    def _run(self) -> None:
        while self._running:
            try:
                self._take_inbox()
                if self._jobs:
                    self.step()
            except Exception as error:  # were the thread to end, nobody would be answered
                self._fail(list(self._jobs), _as_ours(error))

    def _take_inbox(self) -> None:
        """Applies what others asked for; waits for something when there is nothing to run."""
        if not self._jobs:
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def step(self) -> None:
        """Runs one forward over what waits, and answers the jobs it completes."""
        formed_ns = self._clock()
        jobs, segments = self._form(formed_ns)
        started_ns = self._clock()
        try:
            logits = self._model.forward(segments)
            choices = self._choose(jobs, segments, logits)
        except Exception as error:  # whatever a model raises fails its step, never the engine
            self._fail(jobs, _as_ours(error))
            return
        done_ns = self._clock()
        self._account(jobs, segments, done_ns - started_ns)
        self._answer(jobs, segments, choices, done_ns)

    def _form(self, now: int) -> tuple[list[Job], list[Segment]]:
        """Plans the step; returns the jobs that take part and the segment of each."""
        pending = [len(job.tokens) - self._start(job) for job in self._jobs]
        waiting = [
            Waiting(job.session, tokens, job.num_logits)
            for job, tokens in zip(self._jobs, pending, strict=True)
        ]
        jobs, segments = [], []
        for planned in plan_step(waiting, self._token_budget, self._prefill_chunk):
            job = self._jobs[planned.index]
            start = self._start(job)
            job.started_ns = job.started_ns or now
            jobs.append(job)
            segments.append(
                Segment(
                    session=job.session,
                    token_ids=job.tokens[start : start + planned.num_tokens],
                    position=start,
                    num_logits=job.num_logits if planned.is_last else 0,
                )
            )
        return jobs, segments

    def _start(self, job: Job) -> int:
        """Returns the position of the first token that still has to run."""
        known = min(job.valid, self._model.cache.length(job.session))
        return min(known, len(job.tokens) - max(job.num_logits, 1))

    def _choose(
        self, jobs: Sequence[Job], segments: Sequence[Segment], logits: torch.Tensor
    ) -> list[int]:
        positions: list[int] = []
        sampling: list[SamplingParams] = []
        for job, segment in zip(jobs, segments, strict=True):
            end = segment.position + len(segment.token_ids)
            positions += range(end - segment.num_logits + 1, end + 1)
            sampling += [job.sampling] * segment.num_logits
        return choose(logits, positions, sampling)

    def _account(self, jobs: Sequence[Job], segments: Sequence[Segment], computed_ns: int) -> None:
        step_tokens = sum(len(segment.token_ids) for segment in segments)
        for job, segment in zip(jobs, segments, strict=True):
            job.valid = segment.position + len(segment.token_ids)
            job.computed_ns += computed_ns
            job.busy_ns += computed_ns * len(segment.token_ids) // step_tokens
            job.forward_passes += 1
        self._on_step(StepReport(len(jobs), step_tokens, computed_ns))

    def _answer(
        self,
        jobs: Sequence[Job],
        segments: Sequence[Segment],
        choices: Sequence[int],
        done_ns: int,
    ) -> None:
        step_tokens = sum(len(segment.token_ids) for segment in segments)
        taken = 0
        for job, segment in zip(jobs, segments, strict=True):
            if job.valid < len(job.tokens):
                continue
            self._jobs.remove(job)
            own = list(choices[taken : taken + segment.num_logits])
            taken += segment.num_logits
            timing = StepTiming(
                queued_ns=job.started_ns - job.arrived_ns,
                batched_ns=done_ns - job.started_ns - job.computed_ns,
                computed_ns=job.computed_ns,
                total_ns=done_ns - job.arrived_ns,
                busy_ns=job.busy_ns,
                step_sessions=len(jobs),
                step_tokens=step_tokens,
                forward_passes=job.forward_passes,
            )
            try:
                following = job.then(own, timing)
            except Exception as error:  # a fault in one session's bookkeeping ends that session
                job.failed(_as_ours(error))
                continue
            if following is not None:
                self._jobs.append(following)

    def _allocate(self, tokens: int, then: Callable[[int], None], failed: Failed) -> None:
        try:
            then(self._model.cache.allocate(tokens))
        except Exception as error:  # a CPU out of memory says RuntimeError
            failed(_as_ours(error))

    def _take(self, job: Job) -> None:
        if job.session in self._model.cache.sessions:
            self._jobs.append(job)
        else:
            job.failed(InternalError(f"session {job.session} was released before its job came"))

    def _score(
        self, tokens: Sequence[int], candidates: Sequence[int], then: Scored, failed: Failed
    ) -> None:
        try:
            with self._model.cache.session(len(tokens)) as session:
                for start in range(0, len(tokens), self._prefill_chunk):
                    chunk = tokens[start : start + self._prefill_chunk]
                    logits = self._model.forward([Segment(session, chunk, start, 1)])
            then(logits[0, list(candidates)].tolist())
        except Exception as error:  # as in step: the engine goes on
            failed(_as_ours(error))

    def _release(self, session: int) -> None:
        self._jobs = [job for job in self._jobs if job.session != session]
        self._model.cache.free(session)
        if not self._jobs:
            self._model.cache.check_integrity()

    def _fail(self, jobs: Sequence[Job], error: OutriderError) -> None:
        for job in jobs:
            self._jobs.remove(job)
            job.failed(error)

    def _halt(self) -> None:
        self._running = False
        self._fail(list(self._jobs), UnavailableError("the server is shutting down"))


def _as_ours(error: Exception) -> OutriderError:
    if not isinstance(error, OutriderError) or isinstance(error, InternalError):
        logger.error("a step failed; its sessions fail, the server goes on", exc_info=error)
    if isinstance(error, OutriderError):
        return error
    return InternalError(f"the step failed: {type(error).__name__}: {error}")
