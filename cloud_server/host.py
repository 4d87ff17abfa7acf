"""What all sessions of a server share, and a session that is alive on it.

This is the seam between the event loop and the engine thread: requests cross
as jobs, answers come back through the loop, and nobody waits for the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from cloud_server.acceptance import Check, Judged
from cloud_server.admission import Admission, Guest
from cloud_server.engine import Clock, Engine, Job, Scores
from cloud_server.metrics import Metrics
from cloud_server.sessions import TargetSession
from common.config import CloudSection
from common.detokenizer import Detokenizer
from common.errors import InvalidRequestError, OutriderError, OverloadedError
from common.lm.loading import LoadedModel
from common.types import (
    Draft,
    GeneratedTokens,
    OpenSession,
    Peer,
    ServerInfo,
    StepTiming,
    Verdict,
)
from common.wire import WireLimits, check_handshake

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")


@dataclass(slots=True)
class Host:
    """Holds the engine, the limits and the books of one server."""

    engine: Engine
    loaded: LoadedModel
    info: ServerInfo
    limits: CloudSection
    metrics: Metrics
    clock: Clock
    admission: Admission

    @property
    def peer(self) -> Peer:
        """This server's side of the handshake."""
        info = self.info
        return Peer(
            info.protocol_version,
            info.tokenizer_fingerprint,
            info.vocab_size,
            info.dtype,
            info.model_fingerprint,
        )

    @property
    def wire_limits(self) -> WireLimits:
        """What a message may hold."""
        return WireLimits(self.info.vocab_size, self.limits.max_draft_tokens)

    @contextmanager
    def admit(self, client: str, tokens: int, kind: str) -> Iterator[Guest]:
        """Lets a client in and logs it; raises what Admission.guest does."""
        with self.admission.guest(client, tokens, self.clock()) as guest:
            log = f"session=%s kind={kind} client=%s"
            logger.info(f"opened {log} tokens=%d", guest.name, client, tokens)
            self.metrics.sessions.inc()
            ending = "LEFT"
            try:
                yield guest
                ending = "DONE"
            except OutriderError as error:
                ending = error.reason
                raise
            finally:
                seconds = (self.clock() - guest.came_ns) / 1e9
                self.admission.stayed(seconds)
                self.metrics.sessions.dec()
                logger.info(
                    f"ended {log} slot=%s step=%d reason=%s seconds=%.3f",
                    *(guest.name, client, guest.slot, self.engine.steps, ending, seconds),
                )

    @asynccontextmanager
    async def open(
        self, opening: OpenSession, client: str, deadline_ns: int | None = None
    ) -> AsyncIterator[LiveSession]:
        """Opens a session for the length of an `async with` block; nothing of it runs too late.

        Raises the errors of the handshake, PromptError, and OverloadedError.
        """
        state = self.new_state(opening)
        if state.capacity > self.limits.cache_tokens:
            raise InvalidRequestError(
                f"prompt and output may come to {state.capacity} tokens and this server's cache "
                f"holds {self.limits.cache_tokens}; ask for fewer new tokens, or raise "
                "cloud.cache_tokens"
            )
        with self.admit(client, len(state.history), "session") as guest:
            self.metrics.observe_opening(opening.verification)
            self.metrics.prompt_tokens.inc(len(state.history))
            reservation: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self.engine.allocate(state.capacity, *_resolve(reservation))
            try:
                handle = await asyncio.shield(reservation)
            except asyncio.CancelledError:
                reservation.add_done_callback(self._release_unwanted)
                raise
            except OverloadedError as error:
                error.retry_after_s = self.admission.retry_after_s
                raise
            guest.slot, guest.in_flight = handle, 0  # from here on, what its jobs hold
            try:
                yield LiveSession(self, state, handle, guest, deadline_ns)
            finally:
                self.engine.release(handle)

    async def score(
        self,
        context: Sequence[int],
        candidates: Sequence[int],
        text: Sequence[int],
        client: str,
        deadline_ns: int | None = None,
    ) -> Scores:
        """Returns the target's logits of the candidates after `context`, and its view of `text`."""
        tokens = len(context) + len(text)
        self.admission.check_prompt(tokens)
        with self.admit(client, tokens, "score"):
            answer: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
            unwanted = self.engine.score(context, candidates, text, *_resolve(answer), deadline_ns)
            try:
                return await answer
            finally:
                unwanted.set()

    def work(self) -> list[str]:
        """Says in lines what the server is doing, for a person."""
        began_ns, engine = self.engine.step_started_ns, self.engine
        running = (
            "between steps"
            if began_ns is None
            else f"in step {engine.steps} for {(self.clock() - began_ns) / 1e6:.1f} ms"
        )
        by_client = Counter(guest.client for guest in self.admission.guests)
        return [
            f"engine {running}, {engine.steps} begun so far, {engine.jobs_waiting} jobs waiting",
            f"cache {engine.cache_tokens_in_use} of {self.limits.cache_tokens} tokens",
            f"{len(self.admission.guests)} of {self.limits.max_sessions} sessions, "
            f"{self.admission.in_flight} tokens in flight",
            *(f"{count} sessions of {client}" for client, count in sorted(by_client.items())),
        ]

    def new_state(self, opening: OpenSession) -> TargetSession:
        """Checks an opening and makes its pure state; raises as `open` does."""
        check_handshake(opening.peer, self.peer)
        self.admission.check_opening(opening)
        return TargetSession(
            opening,
            context_length=self.info.context_length,
            model_eos=self.info.eos_token_ids,
            detokenizer=lambda: Detokenizer(self.loaded.tokenizer),
        )

    def _release_unwanted(self, reservation: asyncio.Future[int]) -> None:
        """Gives back cache that was granted after its session had gone."""
        if not reservation.cancelled() and reservation.exception() is None:
            self.engine.release(reservation.result())


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
        self._host = host
        self._handle = handle
        self._guest = guest
        self._deadline_ns = deadline_ns
        self._prompt_timing = StepTiming()
        self._prompt_in_flight = 0

    def prefill(self) -> None:
        """Sends the prompt, but for its last token, through the target; waits for nothing."""

        prompt = self.state.history[:-1]
        if not prompt:
            return
        loop = asyncio.get_running_loop()
        self._prompt_in_flight = self._guest.in_flight = len(prompt)

        def through() -> None:
            self._guest.in_flight -= self._prompt_in_flight
            self._prompt_in_flight = 0

        def done(_: Judged | None, timing: StepTiming) -> None:
            self._prompt_timing = timing
            loop.call_soon_threadsafe(through)

        def failed(_: OutriderError) -> None:
            # It shows again, and is answered, in the verify that follows.
            loop.call_soon_threadsafe(through)

        self._host.engine.submit(self._job(prompt, len(prompt), None, done, failed))

    async def verify(self, draft: Draft, deadline_ns: int | None = None) -> Verdict:
        """Answers one verify request; see TargetSession.admit for the errors.

        From `deadline_ns` on, or once it is cancelled, nothing of it is run. Raises
        OverloadedError for more confirmed tokens than may wait now.
        """
        arrived_ns = self._host.clock()
        if draft.confirmed_token_ids:
            self._host.admission.check_tokens(self._guest.client, len(draft.confirmed_token_ids))
        admitted = self.state.admit(draft)
        if isinstance(admitted, Verdict):
            return admitted
        answer: asyncio.Future[tuple[Judged, StepTiming]]
        answer = asyncio.get_running_loop().create_future()
        resolve, fail = _resolve(answer)
        job = self._check_job(admitted, lambda *answered: resolve(answered), fail, arrived_ns)
        job.deadline_ns = deadline_ns or self._deadline_ns
        unread = len(admitted.context) - admitted.valid - self._prompt_in_flight
        self._host.engine.submit(job)
        try:
            with self._guest.waiting(max(unread, 1) + len(admitted.guesses)):
                judged, timing = await answer
        except asyncio.CancelledError:
            self._host.engine.withdraw(job)
            raise
        verdict = self.state.settle(draft, admitted, judged)
        timing = self._with_prompt(timing)
        verdict = replace(verdict, timing=replace(timing, total_ns=self._host.clock() - arrived_ns))
        self.state.remember(verdict)
        self._host.metrics.observe_verdict(draft, verdict, self.state.verification.gated)
        return verdict

    async def decode(self) -> AsyncIterator[GeneratedTokens]:
        """Makes the rest of the text with zero drafts: the same admit, check and settle.

        The next step is queued by the engine thread itself, so that it never
        waits for the event loop.
        """
        made: asyncio.Queue[GeneratedTokens | OutriderError] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(item: GeneratedTokens | OutriderError) -> None:
            loop.call_soon_threadsafe(made.put_nowait, item)

        def next_job(arrived_ns: int) -> Job:
            draft = Draft(step_id=self.state.position, position=self.state.position, epoch=0)
            check = self.state.admit(draft)
            assert isinstance(check, Check)

            def settle(judged: Judged, timing: StepTiming) -> Job | None:
                verdict = self.state.settle(draft, check, judged)
                token_ids = (judged.next_token_id,)
                tell(GeneratedTokens(token_ids, verdict.finish_reason, self._with_prompt(timing)))
                if self.state.finished:
                    return None
                # From the very end of this step: no time lies between two pieces.
                return next_job(arrived_ns + timing.total_ns)

            return self._check_job(check, settle, tell, arrived_ns)

        self._host.engine.submit(next_job(self._host.clock()))
        self._guest.in_flight = len(self.state.history)
        while True:
            item = await made.get()
            if isinstance(item, OutriderError):
                raise item
            self._guest.in_flight = 1
            self._host.metrics.generation_tokens.inc(len(item.token_ids))
            yield item
            if item.finish_reason is not None:
                return

    def _check_job(
        self,
        check: Check,
        then: Callable[[Judged, StepTiming], Job | None],
        failed: Callable[[OutriderError], None],
        arrived_ns: int,
    ) -> Job:
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
            arrived_ns=self._host.clock(),
            then=then,
            failed=failed,
            deadline_ns=self._deadline_ns,
        )

    def _with_prompt(self, timing: StepTiming) -> StepTiming:
        """Adds the target's work on the prompt, once, to the first judged step."""
        prompt, self._prompt_timing = self._prompt_timing, StepTiming()
        return replace(
            timing,
            busy_ns=timing.busy_ns + prompt.busy_ns,
            forward_passes=timing.forward_passes + prompt.forward_passes,
        )


def _resolve(
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
