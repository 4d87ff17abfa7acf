"""One thread owns model and cache, and turns waiting jobs into ragged forwards.

The event loop hands in jobs and releases sessions; the thread answers through
each job's callbacks, which must not block. `step` is the whole engine:
plan, run, choose, answer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence

import torch

from cloud_server.acceptance import Judged, judge
from cloud_server.drafting import Drafting
from cloud_server.jobs import TOO_LATE, Clock, Failed, Job, StepReport, as_ours
from cloud_server.kept import Conversation, KeptCaches
from cloud_server.scheduler import Waiting, plan_step
from cloud_server.scoring import Scoring, Scorings
from common.errors import DeadlineError, InternalError, OutriderError, UnavailableError
from common.lm.runner import LanguageModel, Segment
from common.types import StepTiming


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
        drafting: Drafting | None = None,
    ) -> None:
        self._model = model
        self._token_budget = token_budget
        self._prefill_chunk = prefill_chunk
        self._clock = clock
        self._on_step = on_step
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: list[Job] = []
        self._scorings = Scorings(model, prefill_chunk)
        self._drafting = drafting
        self._kept = KeptCaches(model.cache)
        self._running = True
        self.step_started_ns: int | None = None
        """When the step now running began; None between steps. Read by any thread."""
        self.steps = 0
        """How many steps were begun; the number of the one now running."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def cache_tokens_in_use(self) -> int:
        """Tokens whose keys and values have room reserved; may be a step old."""
        return self._model.cache.used_tokens

    @property
    def jobs_waiting(self) -> int:
        """Jobs that are not answered yet; may be a step old."""
        return len(self._jobs)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, patience_s: float | None = None) -> None:
        """Stops the thread after the step in hand; jobs still waiting are failed.

        After `patience_s` it is left to the end of the process: a step may be stuck.
        """
        self._inbox.put(self._halt)
        self._thread.join(patience_s)

    def withdraw(self, job: Job) -> None:
        """Drops a job that nobody waits for any more, unanswered."""
        self._inbox.put(lambda: self._withdraw(job))

    def allocate(
        self,
        tokens: int,
        then: Callable[[int], None],
        failed: Failed,
        conversation: Conversation | None = None,
        prompt: Sequence[int] = (),
        client: str | None = None,
    ) -> None:
        """Reserves cache for a session of at most `tokens` tokens and gives `then` its handle.

        It holds already what an earlier session of the conversation left of the prompt, and will
        share with others of the client what they begin with alike.
        """
        self._inbox.put(lambda: self._allocate(tokens, then, failed, conversation, prompt, client))

    def submit(self, job: Job) -> None:
        """Queues a job behind the others of its session."""
        self._inbox.put(lambda: self._take(job))

    def call(self, work: Callable[[], Job | None]) -> None:
        """Has work done on the engine thread between two steps, and queues the job it returns."""

        def do() -> None:
            if (job := work()) is not None:
                self._take(job)

        self._inbox.put(do)

    def forestall(self, job: Job) -> bool:
        """Drops a job of which nothing has run, and says whether it did; on the engine thread."""
        if job.started_ns or job not in self._jobs:
            return False
        self._jobs.remove(job)
        return True

    def score(self, scoring: Scoring) -> None:
        """Answers a scoring by forwards of its own, one between two steps.

        So it holds no session up for long.
        """
        self._inbox.put(lambda: self._scorings.take(scoring))

    def release(
        self,
        session: int,
        conversation: Conversation | None = None,
        token_ids: Sequence[int] = (),
    ) -> None:
        """Drops a session's jobs, unanswered, and frees its cache or keeps it for a conversation.

        `token_ids` are then what the cache begins with, as far as it goes.
        """
        self._inbox.put(lambda: self._release(session, conversation, token_ids))

    def _run(self) -> None:
        while self._running:
            try:
                self._take_inbox()
                if self._drafting:
                    self._draft()
                if self._jobs:
                    self.step()
                if self._scorings:
                    self._score_on()
            except Exception as error:  # were the thread to end, nobody would be answered
                self._fail(list(self._jobs), as_ours(error))

    def _take_inbox(self) -> None:
        """Applies what others asked for; waits for something when there is nothing to run."""
        if not (self._jobs or self._scorings or self._drafting):
            self._inbox.get()()
        while not self._inbox.empty():
            self._inbox.get()()

    def step(self) -> None:
        """Runs one forward over what waits, and answers the jobs it completes."""
        formed_ns = self._clock()
        self._fail_expired(formed_ns)
        if not self._jobs:
            return
        jobs, segments = self._form(formed_ns)
        self.steps += 1
        self.step_started_ns = started_ns = self._clock()
        try:
            logits = self._model.forward(segments)
            judged = self._judge(jobs, segments, logits)
        except Exception as error:  # whatever a model raises fails its step, never the engine
            slots = ",".join(str(job.session) for job in jobs)
            self._fail(jobs, as_ours(error, f"step={self.steps} slots={slots}"))
            return
        finally:
            self.step_started_ns = None
        done_ns = self._clock()
        self._account(jobs, segments, done_ns - started_ns)
        self._answer(jobs, segments, judged, done_ns)

    def _fail_expired(self, now: int) -> None:
        expired = [job for job in self._jobs if (job.deadline_ns or now + 1) <= now]
        self._fail(expired, DeadlineError(TOO_LATE))

    def _form(self, now: int) -> tuple[list[Job], list[Segment]]:
        """Plans the step; returns the jobs that take part and the segment of each."""
        self._share()
        pending = [len(job.tokens) - self._start(job) for job in self._jobs]
        waiting = [
            Waiting(job.session, tokens, job.num_logits, job.fills_room)
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

    def _share(self) -> None:
        """Has sessions take over what others ran since of the sequences they begin with."""
        cache = self._model.cache
        for job in {job.session: job for job in reversed(self._jobs)}.values():  # each's oldest
            if job.valid >= cache.length(job.session):
                job.valid = max(job.valid, cache.adopt(job.session, job.tokens, _last(job)))

    def _start(self, job: Job) -> int:
        """Returns the position of the first token that still has to run."""
        known = min(job.valid, self._model.cache.length(job.session))
        return min(known, _last(job))

    def _judge(
        self, jobs: Sequence[Job], segments: Sequence[Segment], logits: torch.Tensor
    ) -> dict[int, Judged]:
        """Returns the judgement of each session whose check this step completes."""
        asked = {
            job.session: job.check
            for job, segment in zip(jobs, segments, strict=True)
            if job.check is not None and segment.num_logits
        }
        return dict(zip(asked, judge(logits, list(asked.values())), strict=True))

    def _account(self, jobs: Sequence[Job], segments: Sequence[Segment], computed_ns: int) -> None:
        step_tokens = sum(len(segment.token_ids) for segment in segments)
        for job, segment in zip(jobs, segments, strict=True):
            job.valid = segment.position + len(segment.token_ids)
            job.computed_ns += computed_ns
            job.busy_ns += computed_ns * len(segment.token_ids) // step_tokens
            job.forward_passes += 1
            self._model.cache.publish(job.session, job.tokens, min(job.valid, job.certain))
        self._on_step(StepReport(len(jobs), step_tokens, computed_ns))

    def _answer(
        self,
        jobs: Sequence[Job],
        segments: Sequence[Segment],
        judged: Mapping[int, Judged],
        done_ns: int,
    ) -> None:
        step_tokens = sum(len(segment.token_ids) for segment in segments)
        for job in jobs:
            if job.valid < len(job.tokens):
                continue
            self._jobs.remove(job)
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
                following = job.then(judged.get(job.session), timing)
            except Exception as error:  # a fault in one session's bookkeeping ends that session
                job.failed(as_ours(error))
                continue
            if following is not None:
                self._jobs.append(following)

    def _allocate(
        self,
        tokens: int,
        then: Callable[[int], None],
        failed: Failed,
        conversation: Conversation | None,
        prompt: Sequence[int],
        client: str | None,
    ) -> None:
        try:
            then(self._kept.allocate(tokens, conversation, prompt, client))
        except Exception as error:  # a CPU out of memory says RuntimeError
            failed(as_ours(error))

    def _take(self, job: Job) -> None:
        if job.session in self._model.cache.sessions:
            self._jobs.append(job)
        else:
            job.failed(InternalError(f"session {job.session} was released before its job came"))

    def _draft(self) -> None:
        """Has guesses made for all that wait for some; their checks join the very next step."""
        assert self._drafting is not None
        self.step_started_ns = self._clock()
        try:
            for job in self._drafting.step():
                self._take(job)
        finally:
            self.step_started_ns = None

    def _score_on(self) -> None:
        self.step_started_ns = now = self._clock()
        try:
            self._scorings.step(now)
        finally:
            self.step_started_ns = None

    def _withdraw(self, job: Job) -> None:
        if job in self._jobs:
            self._jobs.remove(job)

    def _release(
        self, session: int, conversation: Conversation | None, token_ids: Sequence[int]
    ) -> None:
        self._jobs = [job for job in self._jobs if job.session != session]
        if conversation is None:
            self._model.cache.free(session)
        else:
            self._kept.keep(conversation, session, token_ids)
        if not self._jobs:
            self._model.cache.check_integrity()

    def _fail(self, jobs: Sequence[Job], error: OutriderError) -> None:
        for job in jobs:
            self._jobs.remove(job)
            job.failed(error)

    def _halt(self) -> None:
        self._running = False
        error = UnavailableError("the server is shutting down")
        self._fail(list(self._jobs), error)
        self._scorings.fail(error)
        if self._drafting is not None:
            self._drafting.fail(error)


def _last(job: Job) -> int:
    """Returns the position from which a job's tokens are run whatever is known of them."""
    return len(job.tokens) - max(job.num_logits, 1)
