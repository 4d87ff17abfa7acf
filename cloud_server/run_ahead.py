"""A session whose target writes on alone while no draft of it waits.

Once begun, all that happens to the session happens on the engine thread, between two steps: a
draft that came during one is taken before the next is formed, and what follows a step joins the
very next. So neither the drafts nor the target ever wait for the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cloud_server.acceptance import Check, Judged
from cloud_server.arrivals import READ_AHEAD
from cloud_server.jobs import Job, as_ours
from common.types import AheadTokens, Draft, Outcome, StepTiming, Verdict

if TYPE_CHECKING:
    from cloud_server.live import LiveSession

Arrived = tuple[Draft, int]
"""A draft and when it came, in nanoseconds."""


class RunAhead:
    """Answers the drafts of one session in order, and streams what the target writes between.

    `limit` is how many tokens it may write alone, counted anew with each draft that comes.
    """

    def __init__(self, live: LiveSession, limit: int) -> None:
        self._live = live
        self._state = live.state
        self._engine = live.host.engine
        self._limit = self._left = limit
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[Verdict | AheadTokens | Exception | None] = asyncio.Queue()
        self._unanswered: deque[int] = deque()  # the tokens of each draft
        self._room = asyncio.Semaphore(READ_AHEAD)
        # The engine thread's:
        self._waiting: deque[Arrived | Exception | None] = deque()
        self._job: Job | None = None
        self._over = False

    async def answers(
        self, drafts: AsyncIterator[Arrived]
    ) -> AsyncGenerator[Verdict | AheadTokens, None]:
        """Yields what becomes of the session until `drafts` end and all are answered.

        Raises what `drafts` do, when those before are answered, and as TargetSession.admit.
        """
        reader = asyncio.create_task(self._read(drafts))
        self._engine.call(lambda: self._go_on(self._live.host.clock()))
        try:
            while (told := await self._told.get()) is not None:
                if isinstance(told, Exception):
                    raise told
                if isinstance(told, Verdict):
                    self._live.guest.in_flight -= self._unanswered.popleft()
                    self._room.release()
                yield told
        finally:
            self._over = True
            reader.cancel()
            await asyncio.wait({reader})  # so that who closes `drafts` does not find it running

    async def _read(self, drafts: AsyncIterator[Arrived]) -> None:
        ended: Exception | None = None
        guest = self._live.guest
        try:
            async for draft, arrived_ns in drafts:
                confirmed = len(draft.confirmed_token_ids)
                if confirmed:
                    self._live.host.admission.check_tokens(guest.client, confirmed)
                await self._room.acquire()
                self._unanswered.append(1 + confirmed + len(draft.token_ids))
                guest.in_flight += self._unanswered[-1]
                self._engine.call(partial(self._take, (draft, arrived_ns)))
        except Exception as error:  # raised again where the answers are taken
            ended = error
        self._engine.call(partial(self._take, ended))

    def _take(self, arrived: Arrived | Exception | None) -> Job | None:
        """Takes what came; what the target would write alone makes way for it."""
        self._waiting.append(arrived)
        job = self._job
        if job is not None and not (job.fills_room and self._engine.forestall(job)):
            return None  # it is looked at when that one is through
        return self._go_on(self._live.host.clock())

    def _go_on(self, now: int) -> Job | None:
        try:
            self._job = self._next(now)
        except Exception as error:  # one session's fault ends that session
            self._fail(as_ours(error))
        return self._job

    def _next(self, now: int) -> Job | None:
        """Answers what needs no forward, and returns what is to run next, if anything is."""
        while self._waiting and not self._over:
            arrived = self._waiting.popleft()
            if arrived is None or isinstance(arrived, Exception):
                self._over = True
                self._tell(arrived)
                break
            draft, arrived_ns = arrived
            self._left = self._limit
            held, earlier = self._state.position, self._state.earlier(draft.step_id)
            admitted = earlier or self._state.admit(draft)
            if isinstance(admitted, Check):
                return self._verify(draft, admitted, arrived_ns)
            waited = StepTiming(queued_ns=now - arrived_ns, total_ns=now - arrived_ns)
            self._tell(earlier or self._noted(draft, admitted, waited, held))
        if self._over or self._state.finished or not self._left:
            return None
        self._left -= 1
        return self._alone(now)

    def _verify(self, draft: Draft, check: Check, arrived_ns: int) -> Job:
        def settle(judged: Judged, timing: StepTiming) -> Job | None:
            verdict = self._state.settle(draft, check, judged)
            timing = self._live.with_prompt(timing)
            self._tell(self._noted(draft, verdict, timing, len(check.context)))
            return self._go_on(arrived_ns + timing.total_ns)

        return self._live.check_job(check, settle, self._fail, arrived_ns)

    def _alone(self, now: int) -> Job:
        """Returns the job of one token that nobody asked for: a plain decode step."""
        position = self._state.position
        draft = Draft(step_id=0, position=position, epoch=self._state.epoch)
        check = self._state.admit(draft)
        assert isinstance(check, Check)

        def settle(judged: Judged, timing: StepTiming) -> Job | None:
            verdict = self._state.settle(draft, check, judged)
            token_ids, reason = (judged.next_token_id,), verdict.finish_reason
            self._tell(AheadTokens(position, token_ids, reason, self._live.with_prompt(timing)))
            self._live.host.metrics.observe_run_ahead(len(token_ids))
            # From the very end of this step: no time lies between two tokens.
            return self._go_on(now + timing.total_ns)

        job = self._live.check_job(check, settle, self._fail, now)
        job.fills_room = True
        return job

    def _noted(self, draft: Draft, verdict: Verdict, timing: StepTiming, held: int) -> Verdict:
        """Completes a fresh verdict, counts and remembers it; `held` is what was held before."""
        verdict = replace(verdict, timing=timing)
        if verdict.outcome is Outcome.VERIFIED:
            known = max(0, held - draft.position - len(draft.confirmed_token_ids))
            self._live.host.metrics.observe_verdict(draft, verdict, gated=False, known=known)
            self._state.remember(verdict)
        return verdict

    def _fail(self, error: Exception) -> None:
        self._job, self._over = None, True
        self._tell(error)

    def _tell(self, told: Verdict | AheadTokens | Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._told.put_nowait, told)
