"""A draft and what its guesses were drawn from, to protobuf and back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from common.errors import InvalidRequestError
from common.types import MAX_CANDIDATES, Draft, DraftDistribution
from common.wire.fields import WireLimits, token_ids_within
from outrider.v1 import verifier_pb2 as pb


def draft_to_proto(draft: Draft) -> pb.VerifyRequest:
    """Converts a Draft."""
    return pb.VerifyRequest(
        step_id=draft.step_id,
        position=draft.position,
        epoch=draft.epoch,
        confirmed_token_ids=draft.confirmed_token_ids,
        draft_token_ids=draft.token_ids,
        assumed_bonus_token_id=draft.assumed_bonus_token_id,
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
    assumed = None
    if message.HasField("assumed_bonus_token_id"):
        given = (message.assumed_bonus_token_id,)
        (assumed,) = token_ids_within("assumed_bonus_token_id", given, limits)
    return Draft(
        step_id=message.step_id,
        position=message.position,
        epoch=message.epoch,
        token_ids=token_ids_within("draft_token_ids", message.draft_token_ids, limits),
        confirmed_token_ids=token_ids_within(
            "confirmed_token_ids", message.confirmed_token_ids, limits
        ),
        distributions=_distributions_from_proto(message, limits),
        assumed_bonus_token_id=assumed,
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
    ids = token_ids_within("candidate_token_ids", message.candidate_token_ids, limits)
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
