"""The `cloud_assisted` arm: a draft model beside the target.

Round follows round on the engine thread, by the same admit, check and settle as for drafts that
come over the wire; only their way is shorter.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from cloud_server.acceptance import Check, Judged
from cloud_server.drafting import Drafting, Guesses, Wanted
from cloud_server.jobs import Job
from cloud_server.live import LiveSession, Tell
from common.errors import OutriderError
from common.types import AssistedRound, Draft, GeneratedTokens, StepTiming

DRAFT_LENGTH = 4
"""Guesses a round where the client leaves their number to the server."""


@asynccontextmanager
async def assisting(
    live: LiveSession, drafting: Drafting, draft_length: int | None
) -> AsyncIterator[AsyncIterator[GeneratedTokens]]:
    """Makes the rest of a session's text for the length of an `async with` block.

    Raises OverloadedError where the draft model's cache has no room.
    """
    host = live.host
    slot = await host.reserved(
        partial(_allocate, live, drafting),
        lambda slot: host.engine.call(partial(drafting.close, slot)),
    )
    length = min(
        DRAFT_LENGTH if draft_length is None else draft_length, host.limits.max_draft_tokens
    )
    try:
        yield live.pieces(_Rounds(live, drafting, slot, length).begin, in_flight=1 + length)
    finally:
        host.engine.call(partial(drafting.close, slot))


def _allocate(
    live: LiveSession,
    drafting: Drafting,
    then: Callable[[int], None],
    failed: Callable[[OutriderError], None],
) -> None:
    def allocate() -> None:
        try:
            then(drafting.open(live.state.capacity))
        except OutriderError as error:
            failed(error)

    live.host.engine.call(allocate)


class _Rounds:
    """Drafts and verifies in turns; all of it but `begin` happens on the engine thread."""

    def __init__(self, live: LiveSession, drafting: Drafting, slot: int, draft_length: int) -> None:
        self._live = live
        self._state = live.state
        self._clock = live.host.clock
        self._drafting = drafting
        self._slot = slot
        self._draft_length = draft_length
        self._tell: Tell = lambda item: None

    def begin(self, tell: Tell) -> None:
        """Has the first round made; what each brings, or an error, is told."""
        self._tell = tell
        self._live.host.engine.call(partial(self._next, self._clock()))

    def _next(self, arrived_ns: int) -> None:
        """Asks for the guesses of the next round, which began when the one before was done."""
        remaining = self._state.stopper.remaining
        self._drafting.take(
            Wanted(
                session=self._slot,
                history=tuple(self._state.history),
                most=min(self._draft_length, remaining - 1),  # the last token is never drafted
                prompt_length=self._state.prompt_length,
                sampling=self._state.sampling,
                ends=self._state.stopper.eos_token_ids,
                then=partial(self._check, arrived_ns),
                failed=self._tell,
                deadline_ns=self._live.deadline_ns,
            )
        )

    def _check(self, arrived_ns: int, guesses: Guesses) -> Job:
        state, drafted_ns = self._state, self._clock()
        draft = Draft(state.position, state.position, 0, guesses.token_ids)
        check = state.admit(draft)
        assert isinstance(check, Check)

        def settle(judged: Judged, timing: StepTiming) -> None:
            verdict = state.settle(draft, check, judged)
            own = () if verdict.next_token_id is None else (verdict.next_token_id,)
            counts = len(check.guesses), verdict.accepted
            self._live.host.metrics.observe_draft(*counts)
            before_ns = drafted_ns - arrived_ns
            whole = replace(
                self._live.with_prompt(timing),
                queued_ns=timing.queued_ns + before_ns - guesses.spent_ns,
                total_ns=timing.total_ns + before_ns,
            )
            self._tell(
                GeneratedTokens(
                    check.guesses[: verdict.accepted] + own,
                    verdict.finish_reason,
                    whole,
                    AssistedRound(*counts, guesses.spent_ns, guesses.busy_ns),
                )
            )
            if not state.finished:
                # From the very end of this round: no time lies between two pieces.
                self._next(arrived_ns + whole.total_ns)

        return self._live.check_job(check, settle, self._tell, drafted_ns)
