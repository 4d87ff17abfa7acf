"""A cloud that outlives its servers: lost sessions are opened again, here or elsewhere, and go on.

The client holds every token, and the target's choice is a function of tokens, seed and
position alone; so a session opened with what is confirmed writes what the lost one would have.
Used by one thread at a time.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

from common.config import NetworkSection
from common.errors import OutriderError
from common.types import Draft, GenerateMode, OpenSession, Opinion, Outcome, ServerInfo
from edge_client.link import Ahead, Answer, Clock, Opened, Piece, Server, VerifyStream
from edge_client.patience import Patience

logger = logging.getLogger(__name__)

Response = TypeVar("Response")


class ResilientCloud:
    """Is one of several servers at a time; moves to the next when one fails."""

    def __init__(
        self,
        addresses: Sequence[str],
        connect: Callable[[str], Server],
        network: NetworkSection,
        *,
        clock: Clock = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
        dice: Callable[[], float] = random.random,
    ) -> None:
        """Connects when first used, to the first of `addresses`.

        `connect` makes a connection of its own for each attempt, so that no attempt waits
        out another one's failures.
        """
        self._addresses = deque(addresses)
        self._connect = connect
        self._network = network
        self._clock = clock
        self._sleep = sleep
        self._patience = Patience(network, len(addresses), clock, dice)
        self._server = connect(addresses[0])
        self._target = ""  # fingerprint of the model whose text this is

    def __enter__(self) -> ResilientCloud:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()

    @property
    def address(self) -> str:
        """The server now in use."""
        return self._addresses[0]

    def info(self) -> ServerInfo:
        """Asks what the server is, each of them once until one answers; raises the first error."""
        failed: OutriderError | None = None
        for _ in range(len(self._addresses)):
            try:
                info = self._server.info()
            except OutriderError as error:
                failed = failed or error
                self._move_on()
            else:
                self._target = info.model_fingerprint
                return info
        assert failed is not None  # there is at least one server
        raise failed

    def echo(self, payload: bytes) -> tuple[int, int]:
        """Sends a payload and has it back: see CloudConnection.echo; a failed one is not timed."""
        return self._ask(lambda server: server.echo(payload))

    def score(self, context: Sequence[int], token_ids: Sequence[int]) -> tuple[float, ...]:
        """Asks for logits: see CloudConnection.score."""
        return self._ask(lambda server: server.score(context, token_ids))

    def opinion(self, context: Sequence[int], text: Sequence[int]) -> Opinion:
        """Asks what the target thinks of a text: see CloudConnection.opinion."""
        return self._ask(lambda server: server.opinion(context, text))

    @contextmanager
    def open(self, opening: OpenSession) -> Iterator[ResumingStream]:
        """Opens a session that goes on after losses, until network.deadline_s from now."""
        with ExitStack() as stack:
            yield ResumingStream(
                self, self._named(opening), self._deadline_ns(), stack, self._clock
            )

    def generate(self, mode: GenerateMode, opening: OpenSession) -> Iterator[Piece]:
        """Streams the output of a cloud arm; after a loss it is continued, not begun again."""
        deadline_ns = self._deadline_ns()
        asked = self._named(opening)
        started_ns = sent_ns = self._clock()  # of the wait for the next piece, losses included
        reconnects = 0
        ended = False
        while not ended:
            try:
                with closing(
                    self._server.generate(mode, asked, self.remaining_s(deadline_ns))
                ) as pieces:
                    for piece in pieces:
                        self._patience.answered()
                        token_ids = piece.tokens.token_ids
                        ended = piece.tokens.finish_reason is not None
                        yield replace(piece, reconnects=reconnects, lost_ns=sent_ns - started_ns)
                        asked = replace(
                            asked, generated_token_ids=asked.generated_token_ids + token_ids
                        )
                        started_ns = sent_ns = self._clock()
                        reconnects = 0
                ended = True  # the arm sees for itself whether the text is whole
            except OutriderError as error:
                if not ended:
                    self.recover(error, deadline_ns)
                    reconnects += 1
                    sent_ns = self._clock()

    def enter(
        self, opening: OpenSession, stack: ExitStack, deadline_ns: int | None
    ) -> VerifyStream:
        """Opens a session at the server now in use, for as long as `stack` lasts."""
        return stack.enter_context(self._server.open(opening, self.remaining_s(deadline_ns)))

    def answered(self) -> None:
        """Notes that the server answers."""
        self._patience.answered()

    def recover(self, error: OutriderError, deadline_ns: int | None) -> None:
        """Waits and moves to the next server; raises when that is no use (see Patience)."""
        wait_s = self._patience.wait_s(error, deadline_ns)
        logger.warning("%s; trying again in %.2f s", error, wait_s)
        self._sleep(wait_s)
        self._move_on(getattr(error, "redirect", None))

    def remaining_s(self, deadline_ns: int | None) -> float | None:
        """Returns what is left of a deadline, None of none; raises DeadlineError at its end."""
        if deadline_ns is None:
            return None
        remaining_ns = deadline_ns - self._clock()
        if remaining_ns <= 0:
            raise self._patience.late()
        return remaining_ns / 1e9

    def _named(self, opening: OpenSession) -> OpenSession:
        """Returns the opening with the target it is meant for: no other may continue the text."""
        return replace(opening, peer=replace(opening.peer, model_fingerprint=self._target))

    def _deadline_ns(self) -> int | None:
        allowed = self._network.deadline_s
        return None if allowed is None else self._clock() + round(allowed * 1e9)

    def _ask(self, ask: Callable[[Server], Response]) -> Response:
        deadline_ns = self._deadline_ns()
        while True:
            try:
                response = ask(self._server)
            except OutriderError as error:
                self.recover(error, deadline_ns)
            else:
                self._patience.answered()
                return response

    def _move_on(self, redirect: str | None = None) -> None:
        """Goes to the server named by the last one, if the user named it too, or to the next."""
        self._server.close()
        self._addresses.rotate(-1)
        if redirect is not None and redirect in self._addresses:
            self._addresses.rotate(-self._addresses.index(redirect))
        self._server = self._connect(self._addresses[0])


@dataclass(frozen=True, slots=True)
class _Flight:
    """Is a draft whose verdict is awaited, and when it was first sent."""

    draft: Draft
    first_ns: int


class ResumingStream:
    """Is a session that the loop sees as one, over however many streams it takes."""

    def __init__(
        self,
        cloud: ResilientCloud,
        opening: OpenSession,
        deadline_ns: int | None,
        stack: ExitStack,
        clock: Clock,
    ) -> None:
        self._cloud = cloud
        self._opening = opening
        self._deadline_ns = deadline_ns
        self._clock = clock
        self._flights: deque[_Flight] = deque()
        self._held = [*opening.prompt_token_ids, *opening.generated_token_ids]
        self._reconnects = 0
        self._reopened_ns = 0
        self._told_ns = 0  # when the last answer came, with the losses before it
        self._left = stack.enter_context(ExitStack())
        self._stream = cloud.enter(opening, self._left, deadline_ns)

    def send(self, draft: Draft) -> None:
        """Sends a draft and does not wait; it is sent again if the stream is lost."""
        self._flights.append(_Flight(draft, self._clock()))
        self._stream.send(draft)

    def opened(self) -> Opened:
        """Waits until a server has the session; losses on the way are in it."""
        started_ns = self._clock()
        opened = self._ask(lambda stream: stream.opened())
        if self._flights:
            return opened  # the verdicts in flight tell what was lost
        reconnects, lost_ns = self._losses(started_ns)
        return replace(opened, reconnects=reconnects, lost_ns=lost_ns)

    def arrived(self, within_s: float = 0.0) -> bool:
        """Whether a verdict, or the loss of its stream, is here or comes within that time."""
        return self._stream.arrived(within_s)

    def receive(self) -> Answer | Ahead:
        """Waits for the verdict on the oldest draft in flight, or tokens before it.

        Losses on the way are in it.
        """
        asked_ns = self._flights[0].first_ns if self._flights else self._clock()
        answer = self._ask(lambda stream: stream.receive())
        reconnects, lost_ns = self._losses(asked_ns)
        if isinstance(answer, Ahead):
            self._keep(answer.tokens.position, answer.tokens.token_ids)
        else:
            self._take(self._flights.popleft().draft, answer)
        return replace(answer, reconnects=reconnects, lost_ns=lost_ns)

    def _losses(self, asked_ns: int) -> tuple[int, int]:
        """Returns the reconnects nobody was told of yet and the time they took: no time twice."""
        reconnects, self._reconnects = self._reconnects, 0
        lost_ns = self._reopened_ns - max(asked_ns, self._told_ns) if reconnects else 0
        self._told_ns = self._clock()
        return reconnects, lost_ns

    def _take(self, draft: Draft, answer: Answer) -> None:
        verdict = answer.verdict
        if verdict.outcome is not Outcome.VERIFIED:
            return
        accepted = draft.token_ids[: verdict.accepted]
        own = () if verdict.next_token_id is None else (verdict.next_token_id,)
        self._keep(draft.position, (*draft.confirmed_token_ids, *accepted, *own))

    def _keep(self, position: int, token_ids: Sequence[int]) -> None:
        # What the target wrote alone may reach further than a draft that came later.
        self._held[position : position + len(token_ids)] = token_ids

    def _ask(self, ask: Callable[[VerifyStream], Response]) -> Response:
        while True:
            try:
                response = ask(self._stream)
            except OutriderError as error:
                self._reopen(error)
            else:
                self._cloud.answered()
                return response

    def _reopen(self, error: OutriderError) -> None:
        self._cloud.recover(error, self._deadline_ns)
        self._left.pop_all().close()
        held = len(self._held)
        if self._flights and not self._opening.run_ahead:
            held = self._flights[0].draft.position
        prompt_length = len(self._opening.prompt_token_ids)
        opening = replace(self._opening, generated_token_ids=tuple(self._held[prompt_length:held]))
        self._stream = self._cloud.enter(opening, self._left, self._deadline_ns)
        self._reconnects += 1
        self._reopened_ns = self._clock()
        for flight in self._flights:
            self._stream.send(flight.draft)
