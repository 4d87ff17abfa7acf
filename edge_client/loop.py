"""Speculative decoding over a link: draft, send, draft on; receive, settle, yield."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from common.errors import InternalError
from common.stopping import Kept, Stopper
from common.types import FinishReason, SamplingParams
from edge_client.draft_length import Pace
from edge_client.link import Ahead, Answer, Clock, VerifyStream
from edge_client.policy import PLAIN, Drafted, DraftPolicy, never
from edge_client.session import ClientSession, Round
from edge_client.steps import (
    Flight,
    Step,
    ahead_step,
    answered_step,
    left_step,
    length,
    with_the_rest,
)

LISTEN_S = 0.1
"""Without a draft to send: how long the next token of a target that writes alone is waited for."""


class DraftSource(Protocol):
    """Is the draft model to the loop."""

    def draft(
        self,
        history: Sequence[int],
        count: int,
        sampling: SamplingParams,
        *,
        prompt_length: int,
        ends: Collection[int] = (),
        policy: DraftPolicy = PLAIN,
        interrupted: Callable[[], bool] = never,
        behind: bool = False,
    ) -> Drafted:
        """Guesses at most `count` tokens that follow `history`, a prompt first.

        None after one of `ends`, and none after the one in hand once `interrupted`. `behind`: the
        first stands for a bonus token.
        """
        ...


def speculate(
    session: ClientSession,
    drafter: DraftSource,
    stream: VerifyStream,
    stopper: Stopper,
    pace: Pace,
    policy: DraftPolicy,
    sampling: SamplingParams,
    clock: Clock,
) -> Iterator[Step]:
    """Yields text that the target confirmed, a round at a time.

    The stream is open already: the server takes the prompt in while the first draft is made.
    While verdicts travel it drafts on, as far ahead as `pace` says. Where the target runs ahead
    its tokens interrupt a draft as verdicts do; with nothing in flight what there is, or nothing,
    is then sent: the server counts what it may write alone from the latest draft.
    """
    flights: deque[Flight] = deque()
    drafting: list[tuple[int, int]] = []
    guessed = 0
    while stopper.finish_reason is None:
        lacking = _lacking(session, stopper, pace)
        is_heard = bool(flights) or session.runs_ahead
        listens = _listens(session, lacking)
        if lacking is not None and not (is_heard and stream.arrived(listens * LISTEN_S)):
            if listens:
                session.fall_silent()
            started = clock()
            drafted = drafter.draft(
                session.tokens,
                lacking,
                sampling,
                prompt_length=session.prompt_length,
                ends=stopper.eos_token_ids,
                policy=policy,
                interrupted=stream.arrived if is_heard else never,
                behind=session.num_standing > 0 and not session.num_unsent_tokens,
            )
            drafting.append((started, clock()))
            guessed += len(drafted.token_ids)
            pace.drafted(drafted, drafting[-1][1] - started)
            if drafted.sure:
                yield _unasked(session, stopper, stream, drafted, drafting)
                drafting, guessed = [], 0
                continue
            session.guess(drafted.token_ids, drafted.distributions)
            is_whole = not drafted.interrupted or not session.num_in_flight
            if is_whole and _is_worth_asking(session, stopper):
                flights.append(Flight(tuple(drafting), guessed, session.num_standing > 0))
                drafting, guessed = [], 0
                stream.send(session.next_draft())
                continue

        arrived = stream.receive()
        settled = _apply(session, arrived)
        kept = stopper.push(settled.token_ids)
        check_agreement(kept, settled.token_ids, settled.finish_reason)
        flight = flights.popleft() if isinstance(arrived, Answer) else None
        if kept.finish_reason is not None:
            yield from map(left_step, flights)
            flight = with_the_rest(flight, drafting, guessed)
        step = _step(arrived, settled, kept, flight)
        pace.learn(step)
        yield step


def _lacking(session: ClientSession, stopper: Stopper, pace: Pace) -> int | None:
    """Returns how many guesses the next draft lacks; None when it cannot be sent yet."""
    standing = session.num_standing
    if not standing:
        return max(0, pace.next(stopper.remaining) - session.num_unsent_tokens)
    remaining = stopper.remaining - session.num_sent_tokens - 1  # 1: the assumed bonus token
    if standing > pace.ahead or remaining < 1 or session.tokens[-1] in stopper.eos_token_ids:
        return None
    return max(0, 1 + pace.next(remaining) - session.num_unsent_tokens)


def _listens(session: ClientSession, lacking: int | None) -> bool:
    """Whether there is nothing to do but wait for a target that writes alone."""
    return lacking == 0 and not session.num_unsent_tokens and session.is_written_on


def _is_worth_asking(session: ClientSession, stopper: Stopper) -> bool:
    """Whether the next draft may be sent: behind another it needs a bonus token to go on from."""
    if not session.num_standing:
        return True
    unsent = session.num_unsent_tokens
    return unsent > 1 or (unsent == 1 and session.tokens[-1] not in stopper.eos_token_ids)


def _apply(session: ClientSession, arrived: Answer | Ahead) -> Round:
    if isinstance(arrived, Answer):
        return session.apply(arrived.verdict)
    return session.receive_ahead(arrived.tokens)


def _step(arrived: Answer | Ahead, settled: Round, kept: Kept, flight: Flight | None) -> Step:
    if isinstance(arrived, Answer):
        assert flight is not None  # an answer is to a draft
        return answered_step(arrived, settled, kept, flight)
    return ahead_step(arrived, settled, kept, flight)


def _unasked(
    session: ClientSession,
    stopper: Stopper,
    stream: VerifyStream,
    drafted: Drafted,
    drafting: list[tuple[int, int]],
) -> Step:
    """Commits a block that the gate let pass."""
    kept = stopper.push(drafted.token_ids)
    session.commit(kept.token_ids)
    # An answer nobody was asked about still needs a server that would have taken it.
    opened = None if kept.finish_reason is None else stream.opened()
    return Step(
        token_ids=kept.token_ids,
        text=kept.text,
        finish_reason=kept.finish_reason,
        draft_ns=length(drafting),
        num_draft_tokens=len(drafted.token_ids),
        bytes_up=None if opened is None else opened.bytes_up,
        bytes_down=None if opened is None else opened.bytes_down,
        asked=False,
        reconnects=None if opened is None else opened.reconnects,
        lost_ns=None if opened is None else opened.lost_ns,
        drafting=tuple(drafting),
        num_guessed_tokens=len(drafted.token_ids),
    )


def check_agreement(kept: Kept, sent: tuple[int, ...], reason: FinishReason | None) -> None:
    """Raises InternalError unless both ends end the output with the same token and reason."""
    if (kept.token_ids, kept.finish_reason) != (sent, reason):
        raise InternalError(
            f"the two ends disagree where the output ends: of the server's {len(sent)} tokens "
            f"with finish reason {reason}, the client keeps {len(kept.token_ids)} "
            f"with {kept.finish_reason}"
        )
