"""The opening of a session, to protobuf and back."""

from __future__ import annotations

from common.errors import InvalidRequestError
from common.types import EXACT, LEAST_PENALTY, OpenSession, Peer, SamplingParams, StopParams
from common.wire.fields import WireLimits, token_ids_within, within
from common.wire.rule import rule_from_proto, rule_to_proto
from outrider.v1 import verifier_pb2 as pb

MAX_STOP_STRINGS = 64  # each is looked for after every token
MAX_STOP_LENGTH = 1024
MAX_CONVERSATION_BYTES = 64


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
        verification=rule_to_proto(opening.verification),
        run_ahead=opening.run_ahead,
        draft_length=opening.draft_length,
        conversation=opening.conversation,
    )


def open_from_proto(
    message: pb.OpenSession, limits: WireLimits, *, assisted: bool = False
) -> OpenSession:
    """Converts and validates an OpenSession; `assisted`: the server is to draft for it."""
    if not message.prompt_token_ids:
        raise InvalidRequestError("prompt_token_ids is empty; send at least one token")
    verification = rule_from_proto(message.verification)
    if message.run_ahead and verification != EXACT:
        raise InvalidRequestError(
            f"run_ahead is {message.run_ahead}, and the rule of verification is not coupled "
            "without a gate; leave one of them out"
        )
    drafts = message.HasField("draft_length")
    if drafts and not assisted:
        raise InvalidRequestError(
            f"draft_length is {message.draft_length}, and here the server drafts nothing; leave it "
            "out, or ask Generate for GENERATE_MODE_ASSISTED"
        )
    if message.draft_length > limits.max_draft_tokens:
        raise InvalidRequestError(
            f"draft_length is {message.draft_length}; this server drafts at most "
            f"{limits.max_draft_tokens} tokens a round (cloud.max_draft_tokens)"
        )
    if len(message.conversation) > MAX_CONVERSATION_BYTES:
        raise InvalidRequestError(
            f"conversation has {len(message.conversation)} bytes; send at most "
            f"{MAX_CONVERSATION_BYTES}"
        )
    return OpenSession(
        peer=Peer(
            protocol_version=message.peer.protocol_version,
            tokenizer_fingerprint=message.peer.tokenizer_fingerprint,
            vocab_size=message.peer.vocab_size,
            dtype=message.peer.dtype,
            model_fingerprint=message.peer.model_fingerprint,
        ),
        prompt_token_ids=token_ids_within("prompt_token_ids", message.prompt_token_ids, limits),
        generated_token_ids=token_ids_within(
            "generated_token_ids", message.generated_token_ids, limits
        ),
        sampling=_sampling_from_proto(message.sampling),
        stop=_stop_from_proto(message.stop, limits),
        verification=verification,
        run_ahead=message.run_ahead,
        draft_length=message.draft_length if drafts else None,
        conversation=message.conversation,
    )


def _sampling_from_proto(message: pb.SamplingParams) -> SamplingParams:
    return SamplingParams(
        temperature=within("sampling.temperature", message.temperature, 0, 100),
        top_k=message.top_k,
        top_p=within("sampling.top_p", message.top_p, 0, 1) or 1.0,
        seed=message.seed,
        min_p=within("sampling.min_p", message.min_p, 0, 1),
        repetition_penalty=within(
            "sampling.repetition_penalty", message.repetition_penalty or 1.0, LEAST_PENALTY, 100
        ),
        presence_penalty=within("sampling.presence_penalty", message.presence_penalty, -100, 100),
        frequency_penalty=within(
            "sampling.frequency_penalty", message.frequency_penalty, -100, 100
        ),
    )


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
    eos = token_ids_within("stop.eos_token_ids", message.eos_token_ids, limits) or None
    return StopParams(
        max_new_tokens=message.max_new_tokens,
        eos_token_ids=() if message.ignore_eos else eos,
        stop_strings=tuple(message.stop_strings),
    )
