"""What a server says of itself, to protobuf and back."""

from __future__ import annotations

from collections.abc import Mapping

from common.types import ServerInfo
from common.wire.fields import printable
from outrider.v1 import verifier_pb2 as pb


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
        draft_model_name=info.draft_model_name,
        draft_model_fingerprint=info.draft_model_fingerprint,
    )


def info_from_proto(message: pb.ServerInfo) -> ServerInfo:
    """Converts a ServerInfo; its texts may be printed."""
    return ServerInfo(
        protocol_version=printable(message.protocol_version),
        server_version=printable(message.server_version),
        model_name=printable(message.model_name),
        model_fingerprint=printable(message.model_fingerprint),
        tokenizer_fingerprint=printable(message.tokenizer_fingerprint),
        vocab_size=message.vocab_size,
        dtype=printable(message.dtype),
        cache_dtype=printable(message.cache_dtype),
        checkpoint_dtype=printable(message.checkpoint_dtype),
        device=printable(message.device),
        context_length=message.context_length,
        eos_token_ids=tuple(message.eos_token_ids),
        max_sessions=message.limits.max_sessions,
        max_draft_tokens=message.limits.max_draft_tokens,
        token_budget=message.limits.token_budget,
        cache_tokens=message.limits.cache_tokens,
        max_message_bytes=message.limits.max_message_bytes,
        idle_session_seconds=message.limits.idle_session_seconds,
        precision=_printable(message.precision),
        environment=_printable(message.environment),
        draft_model_name=printable(message.draft_model_name),
        draft_model_fingerprint=printable(message.draft_model_fingerprint),
    )


def _printable(texts: Mapping[str, str]) -> dict[str, str]:
    return {printable(key): printable(value) for key, value in texts.items()}
