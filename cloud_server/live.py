"""A session that is alive on a server: its requests become jobs, their answers verdicts and tokens.

This is the seam between the event loop and the engine thread: requests cross
as jobs, answers come back through the loop, and nobody waits for the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from cloud_server.acceptance import Check, Judged
from cloud_server.admission import Guest
from cloud_server.jobs import Job
from cloud_server.sessions import TargetSession
from common.errors import OutriderError
from common.types import Draft, GeneratedTokens, Outcome, StepTiming, Verdict

if TYPE_CHECKING:
    from cloud_server.host import Host

Answer = TypeVar("Answer")

Tell = Callable[[GeneratedTokens | OutriderError], None]
"""Passes a piece of output, or why there is none, from the engine thread to the event loop."""


class LiveSession:
    """Is a session with a place in the engine; it lives as long as its stream."""

    def __init__(
        self,
        host: Host,
        state: TargetSession,
        handle: int,
        guest: Guest,
        deadline_ns: int | None,
    ) -> None:
        self.state = state
        self.host = host
        self._handle = handle
        self.guest = guest
        self.deadline_ns = deadline_ns
        self._prompt_timing = StepTiming()
        self._prompt_in_flight = 0

    def prefill(self) -> None:
        """Sends the prompt, but for its last token, through the target; waits for nothing."""

        prompt = self.state.history[:-1]
        if not prompt:
            return
        loop = asyncio.get_running_loop()
        self._prompt_in_flight = self.guest.in_flight = len(prompt)

        def through() -> None:
            self.guest.in_flight -= self._prompt_in_flight
            self._prompt_in_flight = 0

        def done(_: Judged | None, timing: StepTiming) -> None:
            self._prompt_timing = timing
            loop.call_soon_threadsafe(through)

        def failed(_: OutriderError) -> None:
            # It shows again, and is answered, in the verify that follows.
            loop.call_soon_threadsafe(through)

        # What a conversation's turn before left in the cache agrees with it.
        self.host.engine.submit(self._job(prompt, len(prompt), None, done, failed))

    async def verify(
        self, draft: Draft, arrived_ns: int, deadline_ns: int | None = None
    ) -> Verdict:
        """Answers one verify request, the session's next; see TargetSession.admit for the errors.

        From `deadline_ns` on, or once it is cancelled, nothing of it is run. Raises
        OverloadedError for more confirmed tokens than may wait now.
        """
        if draft.confirmed_token_ids:
            self.host.admission.check_tokens(self.guest.client, len(draft.confirmed_token_ids))
        admitted = self.state.admit(draft)
        if isinstance(admitted, Verdict):
            if admitted.outcome is Outcome.VERIFIED:
                return admitted  # once more, as it was
            waited_ns = self.host.clock() - arrived_ns
            return replace(admitted, timing=StepTiming(queued_ns=waited_ns, total_ns=waited_ns))
        answer: asyncio.Future[tuple[Judged, StepTiming]]
        answer = asyncio.get_running_loop().create_future()
        resolve, fail = resolving(answer)
        job = self.check_job(admitted, lambda *answered: resolve(answered), fail, arrived_ns)
        job.deadline_ns = deadline_ns or self.deadline_ns
        unread = len(admitted.context) - admitted.valid - self._prompt_in_flight
        self.host.engine.submit(job)
        try:
            with self.guest.waiting(max(unread, 1) + len(admitted.guesses)):
                judged, timing = await answer
        except asyncio.CancelledError:
            self.host.engine.withdraw(job)
            raise
        verdict = self.state.settle(draft, admitted, judged)
        timing = self.with_prompt(timing)
        verdict = replace(verdict, timing=replace(timing, total_ns=self.host.clock() - arrived_ns))
        self.state.remember(verdict)
        self.host.metrics.observe_verdict(draft, verdict, self.state.verification.gated)
        return verdict

    async def verdicts(
        self, drafts: AsyncIterator[tuple[Draft, int]]
    ) -> AsyncGenerator[Verdict, None]:
        """Yields the verdict on each draft, given with its arrival, in turn."""
        async for draft, arrived_ns in drafts:
            yield await self.verify(draft, arrived_ns)

    def decode(self) -> AsyncIterator[GeneratedTokens]:
        """Makes the rest of the text with zero drafts: the same admit, check and settle.

        The next step is queued by the engine thread itself, so that it never
        waits for the event loop.
        """
        return self.pieces(self._begin_decoding)

    def _begin_decoding(self, tell: Tell) -> None:
        def next_job(arrived_ns: int) -> Job:
            draft = Draft(step_id=self.state.position, position=self.state.position, epoch=0)
            check = self.state.admit(draft)
            assert isinstance(check, Check)

            def settle(judged: Judged, timing: StepTiming) -> Job | None:
                verdict = self.state.settle(draft, check, judged)
                token_ids = (judged.next_token_id,)
                tell(GeneratedTokens(token_ids, verdict.finish_reason, self.with_prompt(timing)))
                if self.state.finished:
                    return None
                # From the very end of this step: no time lies between two pieces.
                return next_job(arrived_ns + timing.total_ns)

            return self.check_job(check, settle, tell, arrived_ns)

        self.host.engine.submit(next_job(self.host.clock()))

    async def pieces(
        self, begin: Callable[[Tell], None], in_flight: int = 1
    ) -> AsyncIterator[GeneratedTokens]:
        """Yields what the engine thread tells, once `begin` has set it to work, to the text's end.

        `in_flight`: so many tokens of the session wait for the target from the first piece on.
        """
        made: asyncio.Queue[GeneratedTokens | OutriderError] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(item: GeneratedTokens | OutriderError) -> None:
            loop.call_soon_threadsafe(made.put_nowait, item)

        begin(tell)
        self.guest.in_flight = len(self.state.history)
        while True:
            item = await made.get()
            if isinstance(item, OutriderError):
                raise item
            self.guest.in_flight = in_flight
            self.host.metrics.generation_tokens.inc(len(item.token_ids))
            yield item
            if item.finish_reason is not None:
                return

    def check_job(
        self,
        check: Check,
        then: Callable[[Judged, StepTiming], Job | None],
        failed: Callable[[OutriderError], None],
        arrived_ns: int,
    ) -> Job:
        """Makes the job of one check; nothing is queued."""

        def answered(judged: Judged | None, timing: StepTiming) -> Job | None:
            assert judged is not None  # a check was asked
            return then(judged, timing)

        tokens = [*check.context, *check.guesses]
        job = self._job(tokens, check.valid, check, answered, failed)
        job.arrived_ns = arrived_ns
        return job

    def _job(
        self,
        tokens: list[int],
        valid: int,
        check: Check | None,
        then: Callable[[Judged | None, StepTiming], Job | None],
        failed: Callable[[OutriderError], None],
    ) -> Job:
        return Job(
            session=self._handle,
            tokens=tokens,
            valid=valid,
            check=check,
            arrived_ns=self.host.clock(),
            then=then,
            failed=failed,
            deadline_ns=self.deadline_ns,
        )

    def with_prompt(self, timing: StepTiming) -> StepTiming:
        """Adds the target's work on the prompt, once, to the first judged step."""
        prompt, self._prompt_timing = self._prompt_timing, StepTiming()
        return replace(
            timing,
            busy_ns=timing.busy_ns + prompt.busy_ns,
            forward_passes=timing.forward_passes + prompt.forward_passes,
        )


def resolving(
    future: asyncio.Future[Answer],
) -> tuple[Callable[[Answer], None], Callable[[OutriderError], None]]:
    """Returns callbacks for the engine thread that set a future's result or exception."""
    loop = future.get_loop()

    def settle(apply: Callable[[], None]) -> None:
        if not future.done():
            apply()

    def resolve(answer: Answer) -> None:
        loop.call_soon_threadsafe(settle, lambda: future.set_result(answer))

    def fail(error: OutriderError) -> None:
        loop.call_soon_threadsafe(settle, lambda: future.set_exception(error))

    return resolve, fail
