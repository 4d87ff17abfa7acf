"""types <-> protobuf, and all validation of what comes over the wire.

Every `*_from_proto` raises InvalidRequestError naming the field, its value and
what it may be; what it returns needs no further checks.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from common.errors import (
    ConfigError,
    DeadlineError,
    EvictedError,
    HandshakeError,
    InternalError,
    InvalidRequestError,
    ModelError,
    OutriderError,
    OverloadedError,
    PrecisionError,
    PromptError,
    RefusedError,
    UnavailableError,
)
from common.types import (
    EXACT,
    LEAST_PENALTY,
    MAX_CANDIDATES,
    Draft,
    DraftDistribution,
    FinishReason,
    GeneratedTokens,
    GenerateMode,
    OpenSession,
    Outcome,
    Peer,
    SamplingParams,
    ServerInfo,
    StepTiming,
    StopParams,
    Verdict,
    VerificationMode,
    VerificationParams,
)
from outrider.v1 import verifier_pb2 as pb

ERROR_DOMAIN = "outrider"
MAX_STOP_STRINGS = 64  # each is looked for after every token
MAX_STOP_LENGTH = 1024

Key = TypeVar("Key")

_OUTCOMES: dict[Outcome, pb.Outcome] = {
    Outcome.VERIFIED: pb.OUTCOME_VERIFIED,
    Outcome.STALE: pb.OUTCOME_STALE,
    Outcome.MISMATCH: pb.OUTCOME_MISMATCH,
}
_FINISH_REASONS: dict[FinishReason | None, pb.FinishReason] = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    FinishReason.EOS: pb.FINISH_REASON_EOS,
    FinishReason.STOP_STRING: pb.FINISH_REASON_STOP_STRING,
    FinishReason.MAX_NEW_TOKENS: pb.FINISH_REASON_MAX_NEW_TOKENS,
    FinishReason.CONTEXT_LENGTH: pb.FINISH_REASON_CONTEXT_LENGTH,
}
_VERIFICATION_MODES: dict[VerificationMode, pb.VerificationMode] = {
    VerificationMode.COUPLED: pb.VERIFICATION_MODE_COUPLED,
    VerificationMode.REJECTION: pb.VERIFICATION_MODE_REJECTION,
    VerificationMode.RANK: pb.VERIFICATION_MODE_RANK,
    VerificationMode.TYPICAL: pb.VERIFICATION_MODE_TYPICAL,
}
_MODES: dict[GenerateMode, pb.GenerateMode] = {
    GenerateMode.STOCK: pb.GENERATE_MODE_STOCK,
    GenerateMode.OPTIMIZED: pb.GENERATE_MODE_OPTIMIZED,
}


@dataclass(frozen=True, slots=True)
class WireLimits:
    """States what a receiving server allows in a message."""

    vocab_size: int
    max_draft_tokens: int


# --- opening -------------------------------------------------------------------------------


def open_to_proto(opening: OpenSession) -> pb.OpenSession:
    """Converts an OpenSession."""
    stop = opening.stop
    return pb.OpenSession(
        peer=pb.Peer(
            protocol_version=opening.peer.protocol_version,
            tokenizer_fingerprint=opening.peer.tokenizer_fingerprint,
            vocab_size=opening.peer.vocab_size,
            dtype=opening.peer.dtype,
            model_fingerprint=opening.peer.model_fingerprint,
        ),
        prompt_token_ids=opening.prompt_token_ids,
        generated_token_ids=opening.generated_token_ids,
        sampling=pb.SamplingParams(
            temperature=opening.sampling.temperature,
            top_k=opening.sampling.top_k,
            top_p=opening.sampling.top_p,
            seed=opening.sampling.seed,
            min_p=opening.sampling.min_p,
            repetition_penalty=opening.sampling.repetition_penalty,
            presence_penalty=opening.sampling.presence_penalty,
            frequency_penalty=opening.sampling.frequency_penalty,
        ),
        stop=pb.StopParams(
            max_new_tokens=stop.max_new_tokens,
            eos_token_ids=stop.eos_token_ids or (),
            ignore_eos=stop.eos_token_ids == (),
            stop_strings=stop.stop_strings,
        ),
        verification=_verification_to_proto(opening.verification),
    )


def open_from_proto(message: pb.OpenSession, limits: WireLimits) -> OpenSession:
    """Converts and validates an OpenSession."""
    if not message.prompt_token_ids:
        raise InvalidRequestError("prompt_token_ids is empty; send at least one token")
    return OpenSession(
        peer=Peer(
            protocol_version=message.peer.protocol_version,
            tokenizer_fingerprint=message.peer.tokenizer_fingerprint,
            vocab_size=message.peer.vocab_size,
            dtype=message.peer.dtype,
            model_fingerprint=message.peer.model_fingerprint,
        ),
        prompt_token_ids=_token_ids("prompt_token_ids", message.prompt_token_ids, limits),
        generated_token_ids=_token_ids("generated_token_ids", message.generated_token_ids, limits),
        sampling=_sampling_from_proto(message.sampling),
        stop=_stop_from_proto(message.stop, limits),
        verification=_verification_from_proto(message.verification),
    )


def _sampling_from_proto(message: pb.SamplingParams) -> SamplingParams:
    return SamplingParams(
        temperature=_within("sampling.temperature", message.temperature, 0, 100),
        top_k=message.top_k,
        top_p=_within("sampling.top_p", message.top_p, 0, 1) or 1.0,
        seed=message.seed,
        min_p=_within("sampling.min_p", message.min_p, 0, 1),
        repetition_penalty=_within(
            "sampling.repetition_penalty", message.repetition_penalty or 1.0, LEAST_PENALTY, 100
        ),
        presence_penalty=_within("sampling.presence_penalty", message.presence_penalty, -100, 100),
        frequency_penalty=_within(
            "sampling.frequency_penalty", message.frequency_penalty, -100, 100
        ),
    )


def _within(field: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:  # nor is NaN
        raise InvalidRequestError(f"{field} is {value}; it must lie in [{low}, {high}]")
    return value


def _verification_to_proto(params: VerificationParams) -> pb.VerificationParams:
    """Converts a rule; numbers of other modes are left out, and so is the exact rule itself."""
    mode = params.mode
    return pb.VerificationParams(
        mode=None if mode is VerificationMode.COUPLED else _VERIFICATION_MODES[mode],
        rank_threshold=params.rank_threshold if mode is VerificationMode.RANK else None,
        typical_threshold=params.typical_threshold if mode is VerificationMode.TYPICAL else None,
        typical_alpha=params.typical_alpha if mode is VerificationMode.TYPICAL else None,
        gated=params.gated,
    )


def _verification_from_proto(message: pb.VerificationParams) -> VerificationParams:
    mode = VerificationMode.COUPLED
    if message.mode != pb.VERIFICATION_MODE_UNSPECIFIED:
        mode = _lookup("verification.mode", _VERIFICATION_MODES, message.mode)
    if mode is VerificationMode.RANK:
        if message.rank_threshold < 1:
            raise InvalidRequestError("verification.rank_threshold is 0; it must be at least 1")
        return VerificationParams(mode, message.rank_threshold, gated=message.gated)
    if mode is VerificationMode.TYPICAL:
        threshold = _within("verification.typical_threshold", message.typical_threshold, 0, 1)
        alpha = _within("verification.typical_alpha", message.typical_alpha, 0, 100)
        if not threshold or not alpha:
            raise InvalidRequestError(
                f"verification.typical_threshold is {threshold} and typical_alpha {alpha}; "
                "both must be above 0"
            )
        return VerificationParams(
            mode, typical_threshold=threshold, typical_alpha=alpha, gated=message.gated
        )
    return VerificationParams(mode, gated=message.gated)


def _stop_from_proto(message: pb.StopParams, limits: WireLimits) -> StopParams:
    if message.max_new_tokens < 1:
        raise InvalidRequestError("stop.max_new_tokens is 0; it must be at least 1")
    lengths = [len(text) for text in message.stop_strings]
    if len(lengths) > MAX_STOP_STRINGS or max(lengths, default=0) > MAX_STOP_LENGTH:
        raise InvalidRequestError(
            f"stop.stop_strings holds {len(lengths)} texts of up to {max(lengths)} characters; "
            f"at most {MAX_STOP_STRINGS} of {MAX_STOP_LENGTH} are taken"
        )
    if "" in message.stop_strings:
        raise InvalidRequestError("stop.stop_strings holds an empty string")
    eos = _token_ids("stop.eos_token_ids", message.eos_token_ids, limits) or None
    return StopParams(
        max_new_tokens=message.max_new_tokens,
        eos_token_ids=() if message.ignore_eos else eos,
        stop_strings=tuple(message.stop_strings),
    )


def _token_ids(field: str, ids: Sequence[int], limits: WireLimits) -> tuple[int, ...]:
    if ids and max(ids) >= limits.vocab_size:
        raise InvalidRequestError(
            f"{field} holds {max(ids)}, outside the vocabulary of {limits.vocab_size} tokens"
        )
    return tuple(ids)


# --- verifying -----------------------------------------------------------------------------


def draft_to_proto(draft: Draft) -> pb.VerifyRequest:
    """Converts a Draft."""
    return pb.VerifyRequest(
        step_id=draft.step_id,
        position=draft.position,
        epoch=draft.epoch,
        confirmed_token_ids=draft.confirmed_token_ids,
        draft_token_ids=draft.token_ids,
        **_distributions_to_proto(draft.distributions),
    )


def _distributions_to_proto(distributions: Sequence[DraftDistribution]) -> dict[str, Any]:
    weights = [weight for one in distributions for weight in one.weights]
    return {
        "candidate_counts": [len(one.token_ids) for one in distributions],
        "candidate_token_ids": [token for one in distributions for token in one.token_ids],
        "candidate_weights": struct.pack(f"<{len(weights)}H", *weights),
    }


def distributions_bytes(distributions: Sequence[DraftDistribution]) -> int:
    """Returns how many bytes of a serialized VerifyRequest these take."""
    return pb.VerifyRequest(**_distributions_to_proto(distributions)).ByteSize()


def draft_from_proto(message: pb.VerifyRequest, limits: WireLimits) -> Draft:
    """Converts and validates a VerifyRequest."""
    if message.step_id == 0:
        raise InvalidRequestError("step_id is 0; the first is 1")
    if len(message.draft_token_ids) > limits.max_draft_tokens:
        raise InvalidRequestError(
            f"draft_token_ids holds {len(message.draft_token_ids)} tokens; "
            f"this server takes at most {limits.max_draft_tokens} a round"
        )
    return Draft(
        step_id=message.step_id,
        position=message.position,
        epoch=message.epoch,
        token_ids=_token_ids("draft_token_ids", message.draft_token_ids, limits),
        confirmed_token_ids=_token_ids("confirmed_token_ids", message.confirmed_token_ids, limits),
        distributions=_distributions_from_proto(message, limits),
    )


def _distributions_from_proto(
    message: pb.VerifyRequest, limits: WireLimits
) -> tuple[DraftDistribution, ...]:
    counts, guesses = message.candidate_counts, message.draft_token_ids
    if not counts and not message.candidate_token_ids and not message.candidate_weights:
        return ()
    if not counts or len(counts) != len(guesses):
        raise InvalidRequestError(
            f"candidate_counts holds {len(counts)} numbers for {len(guesses)} draft_token_ids"
        )
    if not 1 <= min(counts) <= max(counts) <= MAX_CANDIDATES:
        raise InvalidRequestError(
            f"candidate_counts holds {min(counts)} to {max(counts)}; "
            f"each must lie in [1, {MAX_CANDIDATES}]"
        )
    ids = _token_ids("candidate_token_ids", message.candidate_token_ids, limits)
    total = sum(counts)
    if len(ids) != total or len(message.candidate_weights) != 2 * total:
        raise InvalidRequestError(
            f"candidate_counts come to {total}, but there are {len(ids)} candidate_token_ids and "
            f"{len(message.candidate_weights)} bytes of candidate_weights, two for each"
        )
    weights = struct.unpack(f"<{total}H", message.candidate_weights)
    made, start = [], 0
    for guess, count in zip(guesses, counts, strict=True):
        own = DraftDistribution(ids[start : start + count], weights[start : start + count])
        start += count
        if guess not in own.token_ids or len(set(own.token_ids)) < count or not all(own.weights):
            raise InvalidRequestError(
                f"the candidates of guess {guess} must hold it, hold no id twice, and weigh at "
                "least 1 each"
            )
        made.append(own)
    return tuple(made)


def verdict_to_proto(verdict: Verdict) -> pb.Verdict:
    """Converts a Verdict."""
    return pb.Verdict(
        step_id=verdict.step_id,
        epoch=verdict.epoch,
        outcome=_OUTCOMES[verdict.outcome],
        position=verdict.position,
        accepted_count=verdict.accepted,
        next_token_id=verdict.next_token_id,
        finish_reason=_FINISH_REASONS[verdict.finish_reason],
        timing=timing_to_proto(verdict.timing),
    )


def verdict_from_proto(message: pb.Verdict) -> Verdict:
    """Converts and validates a Verdict."""
    return Verdict(
        step_id=message.step_id,
        epoch=message.epoch,
        outcome=_lookup("verdict.outcome", _OUTCOMES, message.outcome),
        position=message.position,
        accepted=message.accepted_count,
        next_token_id=message.next_token_id if message.HasField("next_token_id") else None,
        finish_reason=_lookup("verdict.finish_reason", _FINISH_REASONS, message.finish_reason),
        timing=timing_from_proto(message.timing),
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


def _lookup(field: str, table: Mapping[Key, int], value: int) -> Key:
    for ours, theirs in table.items():
        if theirs == value:
            return ours
    raise InvalidRequestError(f"{field} is {value}, which this protocol version does not know")


# --- generating ----------------------------------------------------------------------------


def generate_to_proto(mode: GenerateMode, opening: OpenSession) -> pb.GenerateRequest:
    """Converts a request for a cloud arm."""
    return pb.GenerateRequest(mode=_MODES[mode], open=open_to_proto(opening))


def generate_from_proto(
    message: pb.GenerateRequest, limits: WireLimits
) -> tuple[GenerateMode, OpenSession]:
    """Converts and validates a request for a cloud arm."""
    opening = open_from_proto(message.open, limits)
    if opening.verification != EXACT:
        raise InvalidRequestError("open.verification is set; a cloud arm verifies nothing")
    return _lookup("mode", _MODES, message.mode), opening


def generated_to_proto(tokens: GeneratedTokens) -> pb.GenerateResponse:
    """Converts a piece of a cloud arm's output."""
    return pb.GenerateResponse(
        token_ids=tokens.token_ids,
        finish_reason=_FINISH_REASONS[tokens.finish_reason],
        timing=timing_to_proto(tokens.timing),
    )


def generated_from_proto(message: pb.GenerateResponse) -> GeneratedTokens:
    """Converts a piece of a cloud arm's output."""
    return GeneratedTokens(
        token_ids=tuple(message.token_ids),
        finish_reason=_lookup("finish_reason", _FINISH_REASONS, message.finish_reason),
        timing=timing_from_proto(message.timing),
    )


def score_to_proto(
    context: Sequence[int], token_ids: Sequence[int] = (), text: Sequence[int] = ()
) -> pb.ScoreRequest:
    """Converts a request for the logits of `token_ids` after `context`, and for those of a text."""
    return pb.ScoreRequest(context_token_ids=context, token_ids=token_ids, text_token_ids=text)


def score_from_proto(
    message: pb.ScoreRequest, limits: WireLimits, context_length: int
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Converts and validates a request for what the target thinks after a context.

    Returns the context, the candidates for the place after it, and the text that follows it.
    """
    length, text = len(message.context_token_ids), len(message.text_token_ids)
    if not 1 <= length <= length + text <= context_length:
        raise InvalidRequestError(
            f"context_token_ids holds {length} and text_token_ids {text} tokens; the first must "
            f"hold at least 1 and both together at most {context_length}"
        )
    return (
        _token_ids("context_token_ids", message.context_token_ids, limits),
        _token_ids("token_ids", message.token_ids, limits),
        _token_ids("text_token_ids", message.text_token_ids, limits),
    )


# --- server info ---------------------------------------------------------------------------


def info_to_proto(info: ServerInfo) -> pb.ServerInfo:
    """Converts a ServerInfo."""
    return pb.ServerInfo(
        protocol_version=info.protocol_version,
        server_version=info.server_version,
        model_name=info.model_name,
        model_fingerprint=info.model_fingerprint,
        tokenizer_fingerprint=info.tokenizer_fingerprint,
        vocab_size=info.vocab_size,
        dtype=info.dtype,
        cache_dtype=info.cache_dtype,
        checkpoint_dtype=info.checkpoint_dtype,
        device=info.device,
        context_length=info.context_length,
        eos_token_ids=info.eos_token_ids,
        limits=pb.Limits(
            max_sessions=info.max_sessions,
            max_draft_tokens=info.max_draft_tokens,
            token_budget=info.token_budget,
            cache_tokens=info.cache_tokens,
            max_message_bytes=info.max_message_bytes,
            idle_session_seconds=info.idle_session_seconds,
        ),
        precision=info.precision,
        environment=info.environment,
    )


def info_from_proto(message: pb.ServerInfo) -> ServerInfo:
    """Converts a ServerInfo."""
    return ServerInfo(
        protocol_version=message.protocol_version,
        server_version=message.server_version,
        model_name=message.model_name,
        model_fingerprint=message.model_fingerprint,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        vocab_size=message.vocab_size,
        dtype=message.dtype,
        cache_dtype=message.cache_dtype,
        checkpoint_dtype=message.checkpoint_dtype,
        device=message.device,
        context_length=message.context_length,
        eos_token_ids=tuple(message.eos_token_ids),
        max_sessions=message.limits.max_sessions,
        max_draft_tokens=message.limits.max_draft_tokens,
        token_budget=message.limits.token_budget,
        cache_tokens=message.limits.cache_tokens,
        max_message_bytes=message.limits.max_message_bytes,
        idle_session_seconds=message.limits.idle_session_seconds,
        precision=dict(message.precision),
        environment=dict(message.environment),
    )


# --- handshake -----------------------------------------------------------------------------


def check_handshake(client: Peer, server: Peer) -> None:
    """Refuses two ends that do not fit together; a field the client left empty is not checked.

    Raises HandshakeError, or PrecisionError for the dtype, naming both values.
    """
    ours, theirs = server.protocol_version, client.protocol_version
    if theirs and theirs.split(".")[0] != ours.split(".")[0]:
        raise HandshakeError(
            f"protocol version: client {theirs}, server {ours}; install the same major version"
        )
    if client.dtype and client.dtype != server.dtype:
        raise PrecisionError(
            f"precision: client {client.dtype}, server {server.dtype}; set edge.dtype and "
            "cloud.dtype to the same value"
        )
    if (
        client.tokenizer_fingerprint
        and client.tokenizer_fingerprint != server.tokenizer_fingerprint
    ):
        raise HandshakeError(
            f"tokenizer: client {client.tokenizer_fingerprint[:12]} ({client.vocab_size} entries), "
            f"server {server.tokenizer_fingerprint[:12]} ({server.vocab_size} entries); "
            "use a draft model trained with the target's tokenizer"
        )
    if client.model_fingerprint and client.model_fingerprint != server.model_fingerprint:
        raise HandshakeError(
            f"target: the client's text began with {client.model_fingerprint[:12]}, this server "
            f"has {server.model_fingerprint[:12]}; serve the same model at every address"
        )


# --- errors --------------------------------------------------------------------------------

_BY_REASON: dict[str, type[OutriderError]] = {
    error.reason: error
    for error in (
        ConfigError,
        PromptError,
        ModelError,
        PrecisionError,
        HandshakeError,
        InvalidRequestError,
        UnavailableError,
        EvictedError,
        OverloadedError,
        DeadlineError,
        RefusedError,
        InternalError,
    )
}


def status_code(error: OutriderError) -> int:
    """Returns the canonical gRPC status code of an error."""
    return int(code_pb2.Code.Value(error.status))


def error_to_proto(error: OutriderError) -> pb.EntryError:
    """Converts the error of one entry of a batch."""
    return pb.EntryError(code=status_code(error), reason=error.reason, message=str(error))


def error_details(error: OutriderError) -> bytes:
    """Returns the google.rpc.Status, serialized, for the `grpc-status-details-bin` trailer."""
    info = any_pb2.Any()
    where = {"redirect": redirect} if (redirect := getattr(error, "redirect", None)) else {}
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=where))
    status = status_pb2.Status(code=status_code(error), message=str(error), details=[info])
    if isinstance(error, OverloadedError) and error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        status.details.add().Pack(retry)
    return bytes(status.SerializeToString())


def error_from_details(details: bytes | None, message: str) -> OutriderError | None:
    """Rebuilds the error a server sent, or returns None when the details are not ours."""
    try:
        status = status_pb2.Status.FromString(details or b"")
    except DecodeError:
        return None
    found: OutriderError | None = None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for packed in status.details:
        if packed.Unpack(info) and info.domain == ERROR_DOMAIN and info.reason in _BY_REASON:
            found = _BY_REASON[info.reason](message)
            if isinstance(found, UnavailableError):
                found.redirect = info.metadata.get("redirect")
        elif packed.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if isinstance(found, OverloadedError):
        found.retry_after_s = retry_after_s
    return found
