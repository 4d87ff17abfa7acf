"""Verify requests of a session whose text is known: in place, out of place, and out of bounds."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from outrider.v1 import verifier_pb2 as pb
from tests.models import VOCAB_SIZE
from tests.robustness.absurd_openings import BEYOND, LARGEST
from tests.robustness.known import CONTEXT, Known


@dataclass
class Place:
    """Is where a session stands if all that was sent was answered: what the next request needs."""

    known: Known
    position: int
    epoch: int = 0
    step: int = 0
    sent: list[pb.VerifyRequest] = field(default_factory=list)

    def request(
        self, guesses: list[int] | None = None, position: int | None = None
    ) -> pb.VerifyRequest:
        """Makes the next request; in the right place unless another is given."""
        self.step += 1
        return pb.VerifyRequest(
            step_id=self.step,
            position=self.position if position is None else position,
            epoch=self.epoch,
            draft_token_ids=guesses or [],
        )

    def right(self, length: int) -> list[int]:
        """Returns the next tokens of the text."""
        return list(self.known.sequence[self.position : self.position + length])

    def went(self, tokens: int) -> None:
        self.position = min(self.position + tokens, CONTEXT)


Make = Callable[[st.DrawFn, Place], pb.VerifyRequest]
_short = st.integers(1, 6)


def right_draft(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    guesses = place.right(draw(_short))
    request = place.request(guesses)
    place.went(len(guesses) + 1)
    return request


def wrong_draft(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    guesses = place.right(draw(_short))
    request = place.request(guesses)
    at = draw(st.integers(0, 5))
    if at < len(guesses):
        request.draft_token_ids[at] = (guesses[at] + 1) % VOCAB_SIZE
        place.epoch += 1
    place.went(min(at, len(guesses)) + 1)
    return request


def empty_draft(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    request = place.request()
    place.went(1)
    return request


def back_with_confirmed(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    start = max(place.known.prompt_length, place.position - draw(st.integers(1, 40)))
    request = place.request(place.right(draw(_short)), position=start)
    request.confirmed_token_ids.extend(place.known.sequence[start : place.position])
    place.went(len(request.draft_token_ids) + 1)
    return request


def rolled_back(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    place.position = max(place.known.prompt_length, place.position - draw(st.integers(1, 40)))
    return right_draft(draw, place)


def beyond_what_is_held(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    return place.request(place.right(2), position=place.position + draw(st.integers(1, 9)))


def huge_position(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    position = draw(st.sampled_from((CONTEXT, 2**16, 2**31 - 1, 2**31, LARGEST)))
    return place.request(place.right(2), position=position)


def inside_the_prompt(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    return place.request(position=draw(st.integers(0, place.known.prompt_length - 1)))


def old_epoch(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    request = place.request(place.right(2))
    request.epoch = max(0, place.epoch - 1)
    return request


def last_epoch(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    """All that follow with honest epochs are then out of date."""
    request = place.request(place.right(2))
    request.epoch = LARGEST
    return request


def repeated_step(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    return draw(st.sampled_from(place.sent)) if place.sent else place.request()


def repeated_id_other_draft(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    request = place.request([1, 2, 3], position=place.known.prompt_length)
    request.step_id = draw(st.integers(1, place.step))
    return request


def beyond_vocabulary(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    request = place.request(place.right(2))
    ids = draw(st.sampled_from((request.draft_token_ids, request.confirmed_token_ids)))
    ids.append(draw(st.sampled_from(BEYOND)))
    return request


def sent_ahead(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    """Assumes a bonus token, rightly and in its place or not."""
    request = right_draft(draw, place)
    start = request.position
    request.position = max(0, start + draw(st.sampled_from((0, 0, 0, -1, 1, CONTEXT))))
    right = place.known.sequence[:start][-1]
    request.assumed_bonus_token_id = draw(st.sampled_from((right, right, right, 0, *BEYOND)))
    return request


def past_context(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    request = place.request()
    ids = draw(st.sampled_from((request.draft_token_ids, request.confirmed_token_ids)))
    ids.extend([*place.right(CONTEXT), *[1] * draw(st.sampled_from((0, 1, 5)))])
    if ids is request.draft_token_ids:
        del request.draft_token_ids[32:]
    return request


def too_long(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    return place.request([1] * draw(st.sampled_from((33, 300, 20_000))))


def absurd_step(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    request = place.request(place.right(1))
    request.step_id = draw(st.sampled_from((0, 2**63, 2**64 - 1)))
    place.went(2)
    return request


def candidates(draw: st.DrawFn, place: Place) -> pb.VerifyRequest:
    """Names what guesses were drawn from: as it should be, or with one thing wrong."""
    request = right_draft(draw, place)
    guesses = list(request.draft_token_ids)
    request.candidate_counts.extend([1] * len(guesses))
    request.candidate_token_ids.extend(guesses)
    request.candidate_weights = struct.pack(f"<{len(guesses)}H", *[9] * len(guesses))
    match draw(st.integers(0, 6)):
        case 0:
            request.candidate_counts.append(draw(st.sampled_from((0, 1, LARGEST))))
        case 1 if guesses:
            request.candidate_counts[0] = draw(st.sampled_from((0, 1024, 1025, LARGEST)))
        case 2:
            request.candidate_weights += b"\x00"
        case 3:
            request.candidate_weights = bytes(len(request.candidate_weights))
        case 4:
            request.candidate_token_ids.append(draw(st.sampled_from(BEYOND)))
    return request


KINDS: dict[str, tuple[Make, int]] = {
    "right draft": (right_draft, 10),
    "wrong draft": (wrong_draft, 6),
    "empty draft": (empty_draft, 3),
    "confirmed tokens again": (back_with_confirmed, 2),
    "rolled back": (rolled_back, 2),
    "beyond what is held": (beyond_what_is_held, 1),
    "huge position": (huge_position, 2),
    "inside the prompt": (inside_the_prompt, 1),
    "contradictory epoch": (old_epoch, 2),
    "last epoch": (last_epoch, 1),
    "repeated step": (repeated_step, 2),
    "repeated id, other draft": (repeated_id_other_draft, 1),
    "token beyond the vocabulary": (beyond_vocabulary, 1),
    "sent ahead": (sent_ahead, 6),
    "past the context's end": (past_context, 2),
    "too long a draft": (too_long, 1),
    "absurd step id": (absurd_step, 1),
    "candidates": (candidates, 2),
}
"""What a verify request may be, and how often."""

_kinds = st.sampled_from([kind for kind, (_, often) in KINDS.items() for _ in range(often)])


def draw_verify(draw: st.DrawFn, place: Place) -> tuple[str, pb.VerifyRequest]:
    """Draws one request and its kind."""
    kind = draw(_kinds)
    request = KINDS[kind][0](draw, place)
    place.sent.append(request)
    return kind, request
