"""What each arrival of output tokens is: when it came, what it cost, what was drafted for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.stopping import Kept
from common.types import FinishReason, StepTiming
from edge_client.link import Ahead, Answer, Piece
from edge_client.session import Round

Spans = tuple[tuple[int, int], ...]
"""Beginnings and ends, in nanoseconds of the client's clock."""


@dataclass(frozen=True, slots=True)
class Step:
    """Is one arrival of output tokens: a round, a streamed piece, or one local decode step.

    A round that mends a mismatch brings no tokens, nor does a draft that was `overtaken`: it is no
    round, the target never saw it. Those still in flight when the text ends come just before the
    last step, with nothing of an answer, for which nobody waits. What does not apply to an arm is
    None: `elapsed_ns`, `received_ns`, `serialization_ns`, `reconnects`, `lost_ns` (see link.py),
    `timing` and the bytes for `edge`; the drafts and `asked` for all arms but `speculative`; but
    what a draft model on the server drafted for a piece is told, and was not asked about. A
    block that the gate let pass was not `asked` about: it is no round, and nobody accepted it.
    `text` is what these tokens made certain, not their own: a half character, or what may begin a
    stop string, waits. `drafting` is when the draft was made: all since the draft before it was
    sent, with what a verdict in between has thrown away, `num_guessed_tokens` in all. `ahead` says
    that it was sent before the verdict on the one before it, and `num_wasted_tokens` counts the
    guesses that this verdict threw away, in flight and unsent ones among them. What was drafted
    after the last draft that was sent belongs to the last step. Tokens of `run_ahead` the target
    wrote alone: no round, nothing was drafted for them nor asked.
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
    serialization_ns: int | None = None
    run_ahead: bool | None = None


@dataclass(frozen=True, slots=True)
class Flight:
    """Is a draft that was sent: when it was made, and whether another verdict was awaited."""

    drafting: Spans
    num_guessed_tokens: int
    ahead: bool


def with_the_rest(
    flight: Flight | None, drafting: list[tuple[int, int]], guessed: int
) -> Flight | None:
    """Adds to the last flight what was drafted since it was sent."""
    if flight is None:
        return Flight(tuple(drafting), guessed, ahead=False) if drafting else None
    return replace(
        flight,
        drafting=(*flight.drafting, *drafting),
        num_guessed_tokens=flight.num_guessed_tokens + guessed,
    )


def left_step(flight: Flight) -> Step:
    """Tells of a draft in flight that the end of the text overtook."""
    return Step(
        token_ids=(),
        text="",
        finish_reason=None,
        draft_ns=length(flight.drafting),
        asked=True,
        drafting=flight.drafting,
        num_guessed_tokens=flight.num_guessed_tokens,
        ahead=flight.ahead,
        overtaken=True,
    )


def answered_step(answer: Answer, settled: Round, kept: Kept, flight: Flight) -> Step:
    """Tells of a verdict."""
    seen = not settled.overtaken
    return Step(
        token_ids=kept.token_ids,
        text=kept.text,
        finish_reason=kept.finish_reason,
        elapsed_ns=answer.elapsed_ns if seen else None,
        draft_ns=length(flight.drafting),
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
        serialization_ns=answer.serialization_ns,
    )


def streamed_step(piece: Piece, kept: Kept) -> Step:
    """Tells of a piece of a cloud arm's output, and of what the server drafted for it, if it did.

    What it guessed and the target did not confirm is thrown away: nothing else stands on it.
    """
    made = piece.tokens.round
    wasted = None if made is None else made.num_draft_tokens - made.num_accepted_tokens
    return Step(
        token_ids=kept.token_ids,
        text=kept.text,
        finish_reason=kept.finish_reason,
        elapsed_ns=piece.elapsed_ns,
        draft_ns=None if made is None else made.draft_ns,
        num_draft_tokens=None if made is None else made.num_draft_tokens,
        num_accepted_tokens=None if made is None else made.num_accepted_tokens,
        timing=piece.tokens.timing,
        bytes_up=piece.bytes_up,
        bytes_down=piece.bytes_down,
        reconnects=piece.reconnects,
        lost_ns=piece.lost_ns,
        received_ns=piece.received_ns,
        num_guessed_tokens=None if made is None else made.num_draft_tokens,
        num_wasted_tokens=wasted,
        serialization_ns=piece.serialization_ns,
    )


def ahead_step(arrived: Ahead, settled: Round, kept: Kept, rest: Flight | None) -> Step:
    """Tells of what the target wrote alone, at a text's end with what was drafted in vain."""
    return Step(
        token_ids=kept.token_ids,
        text=kept.text,
        finish_reason=kept.finish_reason,
        draft_ns=None if rest is None else length(rest.drafting),
        timing=arrived.tokens.timing,
        bytes_up=arrived.bytes_up,
        bytes_down=arrived.bytes_down,
        reconnects=arrived.reconnects,
        lost_ns=arrived.lost_ns,
        received_ns=arrived.received_ns,
        drafting=None if rest is None else rest.drafting,
        num_guessed_tokens=None if rest is None else rest.num_guessed_tokens,
        num_wasted_tokens=settled.num_wasted_tokens,
        run_ahead=True,
    )


def length(spans: Sequence[tuple[int, int]]) -> int:
    """Returns how long spans are together, in nanoseconds."""
    return sum(end - begin for begin, end in spans)
