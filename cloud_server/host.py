"""What all sessions of a server share: engine, limits, books; and how one is let in."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from cloud_server.admission import Admission, Guest
from cloud_server.drafting import Drafting
from cloud_server.engine import Engine
from cloud_server.jobs import Clock, Failed
from cloud_server.live import LiveSession, resolving
from cloud_server.metrics import Metrics
from cloud_server.scoring import Scores, Scoring
from cloud_server.sessions import TargetSession
from common.config import CloudSection
from common.detokenizer import Detokenizer
from common.errors import InvalidRequestError, ModelError, OutriderError, OverloadedError
from common.lm.execution import Execution
from common.lm.loading import LoadedModel
from common.types import OpenSession, Peer, ServerInfo
from common.wire import WireLimits, check_handshake

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Host:
    """Holds the engine, the limits and the books of one server."""

    engine: Engine
    loaded: LoadedModel
    info: ServerInfo
    execution: Execution
    limits: CloudSection
    metrics: Metrics
    clock: Clock
    admission: Admission
    drafting: Drafting | None = None

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
        if state.capacity > self.info.cache_tokens:
            raise InvalidRequestError(
                f"prompt and output may come to {state.capacity} tokens and this server's cache "
                f"holds {self.info.cache_tokens}; ask for fewer new tokens, or raise "
                "cloud.cache_tokens"
            )
        with self.admit(client, len(state.history), "session") as guest:
            self.metrics.observe_opening(opening.verification)
            self.metrics.prompt_tokens.inc(len(state.history))
            kept = (client, opening.conversation) if opening.conversation else None
            handle = await self.reserved(
                partial(
                    self.engine.allocate,
                    state.capacity,
                    client=client,
                    conversation=kept,
                    prompt=state.history,
                ),
                self.engine.release,
            )
            guest.slot, guest.in_flight = handle, 0  # from here on, what its jobs hold
            try:
                yield LiveSession(self, state, handle, guest, deadline_ns)
            finally:
                self.engine.release(handle, kept, state.cached)

    async def reserved(
        self,
        allocate: Callable[[Callable[[int], None], Failed], None],
        release: Callable[[int], None],
    ) -> int:
        """Returns the handle that `allocate` gives on the engine thread, once it is there.

        Cancelled before that, it is released when it comes. Raises OverloadedError, saying when to
        ask again, where there is no room.
        """
        reservation: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        allocate(*resolving(reservation))

        def release_unwanted(granted: asyncio.Future[int]) -> None:
            if not granted.cancelled() and granted.exception() is None:
                release(granted.result())

        try:
            return await asyncio.shield(reservation)
        except asyncio.CancelledError:
            reservation.add_done_callback(release_unwanted)
            raise
        except OverloadedError as error:
            error.retry_after_s = self.admission.retry_after_s
            raise

    def drafts(self) -> Drafting:
        """Returns the draft model beside the target; raises ModelError where there is none."""
        if self.drafting is None:
            raise ModelError(
                f"this server has no draft model beside {self.info.model_name}: start it with "
                "--draft-model, or ask for another arm than cloud_assisted"
            )
        return self.drafting

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
            scoring = Scoring(context, candidates, text, *resolving(answer), deadline_ns)
            self.engine.score(scoring)
            try:
                return await answer
            finally:
                scoring.unwanted.set()

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
            f"cache {engine.cache_tokens_in_use} of {self.info.cache_tokens} tokens",
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
