"""A request for what the target thinks of tokens, to protobuf and back."""

from __future__ import annotations

from collections.abc import Sequence

from common.errors import InvalidRequestError
from common.wire.fields import WireLimits, token_ids_within
from outrider.v1 import verifier_pb2 as pb


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
        token_ids_within("context_token_ids", message.context_token_ids, limits),
        token_ids_within("token_ids", message.token_ids, limits),
        token_ids_within("text_token_ids", message.text_token_ids, limits),
    )
