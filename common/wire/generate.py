"""The cloud arms, to protobuf and back: what is asked of them, and the pieces of their output."""

from __future__ import annotations

from common.errors import InvalidRequestError
from common.types import EXACT, AssistedRound, GeneratedTokens, GenerateMode, OpenSession
from common.wire.fields import (
    FINISH_REASONS,
    WireLimits,
    lookup,
    timing_from_proto,
    timing_to_proto,
)
from common.wire.opening import open_from_proto, open_to_proto
from outrider.v1 import verifier_pb2 as pb

_MODES: dict[GenerateMode, pb.GenerateMode] = {
    GenerateMode.STOCK: pb.GENERATE_MODE_STOCK,
    GenerateMode.OPTIMIZED: pb.GENERATE_MODE_OPTIMIZED,
    GenerateMode.ASSISTED: pb.GENERATE_MODE_ASSISTED,
}


def generate_to_proto(mode: GenerateMode, opening: OpenSession) -> pb.GenerateRequest:
    """Converts a request for a cloud arm."""
    return pb.GenerateRequest(mode=_MODES[mode], open=open_to_proto(opening))


def generate_from_proto(
    message: pb.GenerateRequest, limits: WireLimits
) -> tuple[GenerateMode, OpenSession]:
    """Converts and validates a request for a cloud arm."""
    mode = lookup("mode", _MODES, message.mode)
    opening = open_from_proto(message.open, limits, assisted=mode is GenerateMode.ASSISTED)
    if opening.verification != EXACT:
        raise InvalidRequestError("open.verification is set; a cloud arm has no rule but its own")
    if opening.run_ahead:
        raise InvalidRequestError("open.run_ahead is set; a cloud arm waits for no drafts")
    return mode, opening


def generated_to_proto(tokens: GeneratedTokens) -> pb.GenerateResponse:
    """Converts a piece of a cloud arm's output."""
    return pb.GenerateResponse(
        token_ids=tokens.token_ids,
        finish_reason=FINISH_REASONS[tokens.finish_reason],
        timing=timing_to_proto(tokens.timing),
        round=None if tokens.round is None else _round_to_proto(tokens.round),
    )


def generated_from_proto(message: pb.GenerateResponse) -> GeneratedTokens:
    """Converts a piece of a cloud arm's output."""
    return GeneratedTokens(
        token_ids=tuple(message.token_ids),
        finish_reason=lookup("finish_reason", FINISH_REASONS, message.finish_reason),
        timing=timing_from_proto(message.timing),
        round=_round_from_proto(message.round) if message.HasField("round") else None,
    )


def _round_to_proto(made: AssistedRound) -> pb.AssistedRound:
    return pb.AssistedRound(
        draft_count=made.num_draft_tokens,
        accepted_count=made.num_accepted_tokens,
        draft_ns=made.draft_ns,
        draft_busy_ns=made.draft_busy_ns,
    )


def _round_from_proto(message: pb.AssistedRound) -> AssistedRound:
    return AssistedRound(
        num_draft_tokens=message.draft_count,
        num_accepted_tokens=message.accepted_count,
        draft_ns=message.draft_ns,
        draft_busy_ns=message.draft_busy_ns,
    )
