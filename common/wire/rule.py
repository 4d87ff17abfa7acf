"""The rule a draft is verified by, to protobuf and back."""

from __future__ import annotations

from common.errors import InvalidRequestError
from common.types import VerificationMode, VerificationParams
from common.wire.fields import lookup, within
from outrider.v1 import verifier_pb2 as pb

_VERIFICATION_MODES: dict[VerificationMode, pb.VerificationMode] = {
    VerificationMode.COUPLED: pb.VERIFICATION_MODE_COUPLED,
    VerificationMode.REJECTION: pb.VERIFICATION_MODE_REJECTION,
    VerificationMode.RANK: pb.VERIFICATION_MODE_RANK,
    VerificationMode.TYPICAL: pb.VERIFICATION_MODE_TYPICAL,
}


def rule_to_proto(params: VerificationParams) -> pb.VerificationParams:
    """Converts a rule; numbers of other modes are left out, and so is the exact rule itself."""
    mode = params.mode
    return pb.VerificationParams(
        mode=None if mode is VerificationMode.COUPLED else _VERIFICATION_MODES[mode],
        rank_threshold=params.rank_threshold if mode is VerificationMode.RANK else None,
        typical_threshold=params.typical_threshold if mode is VerificationMode.TYPICAL else None,
        typical_alpha=params.typical_alpha if mode is VerificationMode.TYPICAL else None,
        gated=params.gated,
    )


def rule_from_proto(message: pb.VerificationParams) -> VerificationParams:
    """Converts and validates a rule; none is the exact one."""
    mode = VerificationMode.COUPLED
    if message.mode != pb.VERIFICATION_MODE_UNSPECIFIED:
        mode = lookup("verification.mode", _VERIFICATION_MODES, message.mode)
    if mode is VerificationMode.RANK:
        if message.rank_threshold < 1:
            raise InvalidRequestError("verification.rank_threshold is 0; it must be at least 1")
        return VerificationParams(mode, message.rank_threshold, gated=message.gated)
    if mode is VerificationMode.TYPICAL:
        threshold = within("verification.typical_threshold", message.typical_threshold, 0, 1)
        alpha = within("verification.typical_alpha", message.typical_alpha, 0, 100)
        if not threshold or not alpha:
            raise InvalidRequestError(
                f"verification.typical_threshold is {threshold} and typical_alpha {alpha}; "
                "both must be above 0"
            )
        return VerificationParams(
            mode, typical_threshold=threshold, typical_alpha=alpha, gated=message.gated
        )
    return VerificationParams(mode, gated=message.gated)
