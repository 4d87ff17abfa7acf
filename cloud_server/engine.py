"""One thread owns model and cache, and turns waiting jobs into ragged forwards.

The event loop hands in jobs and releases sessions; the thread answers through
each job's callbacks, which must not block. `step` is the whole engine:
plan, run, choose, answer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from cloud_server.drafting import Drafting
from cloud_server.jobs import TOO_LATE, Clock, Failed, Job, StepReport, as_ours
from cloud_server.kept import Conversation, KeptCaches
from cloud_server.scoring import Scoring, Scorings
from cloud_server.step import answer, form_step
from cloud_server.window import holds_ns
from common.errors import DeadlineError, InternalError, OutriderError, UnavailableError
from common.lm.runner import LanguageModel


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
        window_ns: int = 0,
    ) -> None:
        self._model = model
        self._token_budget = token_budget
        self._prefill_chunk = prefill_chunk
        self._clock = clock
        self._on_step = on_step
        self._window_ns = window_ns
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

    def hurry(self) -> None:
        """Has no step wait for company any more: the server drains."""
        self._inbox.put(self._hurry)

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
                if self._jobs and not self._holds_s():
                    self.step()
                if self._scorings:
                    self._score_on()
            except Exception as error:  # were the thread to end, nobody would be answered
                self._fail(list(self._jobs), as_ours(error))

    def _take_inbox(self) -> None:
        """Applies what others asked for; waits for something while there is nothing to run yet."""
        wait_s = self._holds_s() if self._jobs or self._scorings or self._drafting else None
        if wait_s != 0:
            with suppress(queue.Empty):
                self._inbox.get(timeout=wait_s)()
        while not self._inbox.empty():
            self._inbox.get()()

    def _holds_s(self) -> float:
        """Returns how long what waits may wait on for company, in seconds; 0: it is to run."""
        if not (self._window_ns and self._jobs) or self._scorings or self._drafting:
            return 0
        sessions = len(self._model.cache.sessions) - len(self._kept)
        return holds_ns(self._jobs, sessions, self._window_ns, self._clock()) / 1e9

    def step(self) -> None:
        """Runs one forward over what waits, and answers the jobs it completes."""
        formed_ns = self._clock()
        self._fail_expired(formed_ns)
        if not self._jobs:
            return
        cache, budget, chunk = self._model.cache, self._token_budget, self._prefill_chunk
        step = form_step(self._jobs, cache, budget, chunk, formed_ns)
        self.steps += 1
        self.step_started_ns = started_ns = self._clock()
        try:
            judged = step.judge(self._model.forward(step.segments))
        except Exception as error:  # whatever a model raises fails its step, never the engine
            slots = ",".join(str(job.session) for job in step.jobs)
            self._fail(step.jobs, as_ours(error, f"step={self.steps} slots={slots}"))
            return
        finally:
            self.step_started_ns = None
        done_ns = self._clock()
        self._on_step(step.account(done_ns - started_ns))
        step.publish(cache)
        for job in step.completed:
            self._jobs.remove(job)
            following = answer(job, judged.get(job.session), step.timing(job, done_ns))
            if following is not None:
                self._jobs.append(following)

    def _fail_expired(self, now: int) -> None:
        expired = [job for job in self._jobs if (job.deadline_ns or now + 1) <= now]
        self._fail(expired, DeadlineError(TOO_LATE))

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

    def _hurry(self) -> None:
        self._window_ns = 0

    def _halt(self) -> None:
        self._running = False
        error = UnavailableError("the server is shutting down")
        self._fail(list(self._jobs), error)
        self._scorings.fail(error)
        if self._drafting is not None:
            self._drafting.fail(error)
