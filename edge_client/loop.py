"""Speculative decoding over a link: draft, send, draft on; receive, settle, yield."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from common.errors import InternalError
from common.stopping import Kept, Stopper
from common.types import FinishReason, SamplingParams, StepTiming
from edge_client.draft_length import Pace
from edge_client.link import Ahead, Answer, Clock, VerifyStream
from edge_client.policy import PLAIN, Drafted, DraftPolicy, never
from edge_client.session import ClientSession, Round

Spans = tuple[tuple[int, int], ...]
"""Beginnings and ends, in nanoseconds of the client's clock."""


@dataclass(frozen=True, slots=True)
class Step:
    """Is one arrival of output tokens: a round, a streamed piece, or one local decode step.

    A round that mends a mismatch brings no tokens, nor does a draft that was `overtaken`:
    it is no round, the target never saw it. What does not apply to an arm is
    None: `elapsed_ns`, `received_ns`, `reconnects`, `lost_ns` (see link.py), `timing` and the
    bytes for `edge`; the drafts and `asked` for all arms but `speculative`. A block that the gate
    let pass was not `asked` about: it is no round, and nobody accepted it. `text` is what
    these tokens made certain, not their own: a half character, or what may begin a stop
    string, waits. `drafting` is when the draft was made: all since the draft before it was
    sent, with what a verdict in between has thrown away, `num_guessed_tokens` in all. `ahead`
    says that it was sent before the verdict on the one before it, and `num_wasted_tokens` counts
    the guesses that this verdict threw away, in flight and unsent ones among them. Tokens of
    `run_ahead` the target wrote alone: no round, nothing was drafted for them nor asked.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    elapsed_ns: int | None = None
    draft_ns: int | None = None
    num_draft_tokens: int | None = None
    num_accepted_tokens: int | None = None
    timing: StepTiming | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    asked: bool | None = None
    draft_probabilities_bytes: int | None = None
    reconnects: int | None = None
    lost_ns: int | None = None
    received_ns: int | None = None
    drafting: Spans | None = None
    num_guessed_tokens: int | None = None
    ahead: bool | None = None
    overtaken: bool | None = None
    num_wasted_tokens: int | None = None
    run_ahead: bool | None = None


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
    ) -> Drafted:
        """Guesses at most `count` tokens that follow `history`, a prompt first.

        None after one of `ends`, and none after the one in hand once `interrupted`.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Flight:
    """Is a draft that was sent: when it was made, and whether another verdict was awaited."""

    drafting: Spans
    num_guessed_tokens: int
    ahead: bool


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
    flights: deque[_Flight] = deque()
    drafting: list[tuple[int, int]] = []
    guessed = 0
    while stopper.finish_reason is None:
        lacking = _lacking(session, stopper, pace)
        is_heard = bool(flights) or session.runs_ahead
        if lacking is not None and not (is_heard and stream.arrived()):
            started = clock()
            drafted = drafter.draft(
                session.tokens,
                lacking,
                sampling,
                prompt_length=session.prompt_length,
                ends=stopper.eos_token_ids,
                policy=policy,
                interrupted=stream.arrived if is_heard else never,
            )
            drafting.append((started, clock()))
            guessed += len(drafted.token_ids)
            pace.drafted(len(drafted.token_ids), drafting[-1][1] - started)
            if drafted.sure:
                yield _unasked(session, stopper, stream, drafted, drafting)
                drafting, guessed = [], 0
                continue
            session.guess(drafted.token_ids, drafted.distributions)
            is_whole = not drafted.interrupted or not session.num_in_flight
            if is_whole and _is_worth_asking(session, stopper):
                flights.append(_Flight(tuple(drafting), guessed, session.num_standing > 0))
                drafting, guessed = [], 0
                stream.send(session.next_draft())
                continue

        step = _settle(session, stopper, stream.receive(), flights)
        pace.learn(step)
        yield step


def _settle(
    session: ClientSession, stopper: Stopper, arrived: Answer | Ahead, flights: deque[_Flight]
) -> Step:
    if isinstance(arrived, Answer):
        settled = session.apply(arrived.verdict)
    else:
        settled = session.receive_ahead(arrived.tokens)
    kept = stopper.push(settled.token_ids)
    check_agreement(kept, settled.token_ids, settled.finish_reason)
    if isinstance(arrived, Answer):
        return _step(arrived, settled, kept, flights.popleft())
    return Step(
        token_ids=kept.token_ids,
        text=kept.text,
        finish_reason=kept.finish_reason,
        timing=arrived.tokens.timing,
        bytes_up=arrived.bytes_up,
        bytes_down=arrived.bytes_down,
        reconnects=arrived.reconnects,
        lost_ns=arrived.lost_ns,
        received_ns=arrived.received_ns,
        num_wasted_tokens=settled.num_wasted_tokens,
        run_ahead=True,
    )


def _lacking(session: ClientSession, stopper: Stopper, pace: Pace) -> int | None:
    """Returns how many guesses the next draft lacks; None when it cannot be sent yet."""
    standing = session.num_standing
    if not standing:
        return max(0, pace.next(stopper.remaining) - session.num_unsent_tokens)
    remaining = stopper.remaining - session.num_sent_tokens - 1  # 1: the assumed bonus token
    if standing > pace.ahead or remaining < 1 or session.tokens[-1] in stopper.eos_token_ids:
        return None
    return max(0, 1 + pace.next(remaining) - session.num_unsent_tokens)


def _is_worth_asking(session: ClientSession, stopper: Stopper) -> bool:
    """Whether the next draft may be sent: behind another it needs a bonus token to go on from."""
    if not session.num_standing:
        return True
    unsent = session.num_unsent_tokens
    return unsent > 1 or (unsent == 1 and session.tokens[-1] not in stopper.eos_token_ids)


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
        draft_ns=_length(drafting),
        num_draft_tokens=len(drafted.token_ids),
        bytes_up=None if opened is None else opened.bytes_up,
        bytes_down=None if opened is None else opened.bytes_down,
        asked=False,
        reconnects=None if opened is None else opened.reconnects,
        lost_ns=None if opened is None else opened.lost_ns,
        drafting=tuple(drafting),
        num_guessed_tokens=len(drafted.token_ids),
    )


def _step(answer: Answer, settled: Round, kept: Kept, flight: _Flight) -> Step:
    seen = not settled.overtaken
    return Step(
        token_ids=kept.token_ids,
        text=kept.text,
        finish_reason=kept.finish_reason,
        elapsed_ns=answer.elapsed_ns if seen else None,
        draft_ns=_length(flight.drafting),
        num_draft_tokens=settled.num_draft_tokens if seen else None,
        num_accepted_tokens=settled.num_accepted_tokens if seen else None,
        timing=answer.verdict.timing if seen else None,
        bytes_up=answer.bytes_up,
        bytes_down=answer.bytes_down,
        asked=True,
        draft_probabilities_bytes=answer.draft_probabilities_bytes,
        reconnects=answer.reconnects,
        lost_ns=answer.lost_ns,
        received_ns=answer.received_ns,
        drafting=flight.drafting,
        num_guessed_tokens=flight.num_guessed_tokens,
        ahead=flight.ahead,
        overtaken=settled.overtaken,
        num_wasted_tokens=settled.num_wasted_tokens,
    )


def _length(spans: Sequence[tuple[int, int]]) -> int:
    return sum(end - begin for begin, end in spans)


def check_agreement(kept: Kept, sent: tuple[int, ...], reason: FinishReason | None) -> None:
    """Raises InternalError unless both ends end the output with the same token and reason."""
    if (kept.token_ids, kept.finish_reason) != (sent, reason):
        raise InternalError(
            f"the two ends disagree where the output ends: of the server's {len(sent)} tokens "
            f"with finish reason {reason}, the client keeps {len(kept.token_ids)} "
            f"with {kept.finish_reason}"
        )
