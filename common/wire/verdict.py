"""The verdict on a draft, and what the target wrote ahead of any, to protobuf and back."""

from __future__ import annotations

from common.types import AheadTokens, Outcome, Verdict
from common.wire.fields import FINISH_REASONS, lookup, timing_from_proto, timing_to_proto
from outrider.v1 import verifier_pb2 as pb

_OUTCOMES: dict[Outcome, pb.Outcome] = {
    Outcome.VERIFIED: pb.OUTCOME_VERIFIED,
    Outcome.STALE: pb.OUTCOME_STALE,
    Outcome.MISMATCH: pb.OUTCOME_MISMATCH,
}


def verdict_to_proto(verdict: Verdict) -> pb.Verdict:
    """Converts a Verdict."""
    return pb.Verdict(
        step_id=verdict.step_id,
        epoch=verdict.epoch,
        outcome=_OUTCOMES[verdict.outcome],
        position=verdict.position,
        accepted_count=verdict.accepted,
        next_token_id=verdict.next_token_id,
        finish_reason=FINISH_REASONS[verdict.finish_reason],
        timing=timing_to_proto(verdict.timing),
    )


def verdict_from_proto(message: pb.Verdict) -> Verdict:
    """Converts and validates a Verdict."""
    return Verdict(
        step_id=message.step_id,
        epoch=message.epoch,
        outcome=lookup("verdict.outcome", _OUTCOMES, message.outcome),
        position=message.position,
        accepted=message.accepted_count,
        next_token_id=message.next_token_id if message.HasField("next_token_id") else None,
        finish_reason=lookup("verdict.finish_reason", FINISH_REASONS, message.finish_reason),
        timing=timing_from_proto(message.timing),
    )


def ahead_to_proto(ahead: AheadTokens) -> pb.AheadTokens:
    """Converts AheadTokens."""
    return pb.AheadTokens(
        position=ahead.position,
        token_ids=ahead.token_ids,
        finish_reason=FINISH_REASONS[ahead.finish_reason],
        timing=timing_to_proto(ahead.timing),
    )


def ahead_from_proto(message: pb.AheadTokens) -> AheadTokens:
    """Converts and validates AheadTokens."""
    return AheadTokens(
        position=message.position,
        token_ids=tuple(message.token_ids),
        finish_reason=lookup("ahead.finish_reason", FINISH_REASONS, message.finish_reason),
        timing=timing_from_proto(message.timing),
    )
