"""What several messages hold: numbers in a range, token ids, enum values, texts, timings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from common.errors import InvalidRequestError
from common.types import FinishReason, StepTiming
from outrider.v1 import verifier_pb2 as pb

Key = TypeVar("Key")

FINISH_REASONS: dict[FinishReason | None, pb.FinishReason] = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    FinishReason.EOS: pb.FINISH_REASON_EOS,
    FinishReason.STOP_STRING: pb.FINISH_REASON_STOP_STRING,
    FinishReason.MAX_NEW_TOKENS: pb.FINISH_REASON_MAX_NEW_TOKENS,
    FinishReason.CONTEXT_LENGTH: pb.FINISH_REASON_CONTEXT_LENGTH,
}


@dataclass(frozen=True, slots=True)
class WireLimits:
    """States what a receiving server allows in a message."""

    vocab_size: int
    max_draft_tokens: int


def within(field: str, value: float, low: float, high: float) -> float:
    """Returns the value if it lies in [low, high]."""
    if not low <= value <= high:  # nor is NaN
        raise InvalidRequestError(f"{field} is {value}; it must lie in [{low}, {high}]")
    return value


def token_ids_within(field: str, ids: Sequence[int], limits: WireLimits) -> tuple[int, ...]:
    """Returns the ids if all of them are in the vocabulary."""
    if ids and max(ids) >= limits.vocab_size:
        raise InvalidRequestError(
            f"{field} holds {max(ids)}, outside the vocabulary of {limits.vocab_size} tokens"
        )
    return tuple(ids)


def lookup(field: str, table: Mapping[Key, int], value: int) -> Key:
    """Returns what an enum value stands for."""
    for ours, theirs in table.items():
        if theirs == value:
            return ours
    raise InvalidRequestError(f"{field} is {value}, which this protocol version does not know")


def printable(text: str) -> str:
    """Returns a text on one line, with what a terminal would obey, or not show, escaped.

    The other end is not trusted with the user's terminal, nor with the lines of a log.
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def timing_to_proto(timing: StepTiming) -> pb.StepTiming:
    """Converts a StepTiming."""
    return pb.StepTiming(
        queued_ns=timing.queued_ns,
        batched_ns=timing.batched_ns,
        computed_ns=timing.computed_ns,
        total_ns=timing.total_ns,
        busy_ns=timing.busy_ns,
        step_sessions=timing.step_sessions,
        step_tokens=timing.step_tokens,
        forward_passes=timing.forward_passes,
    )


def timing_from_proto(message: pb.StepTiming) -> StepTiming:
    """Converts a StepTiming."""
    return StepTiming(
        queued_ns=message.queued_ns,
        batched_ns=message.batched_ns,
        computed_ns=message.computed_ns,
        total_ns=message.total_ns,
        busy_ns=message.busy_ns,
        step_sessions=message.step_sessions,
        step_tokens=message.step_tokens,
        forward_passes=message.forward_passes,
    )
