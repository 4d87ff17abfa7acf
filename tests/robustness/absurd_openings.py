"""OpenSession messages with one thing wrong, or right but as far as the contract allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from outrider.v1 import verifier_pb2 as pb
from tests.models import VOCAB_SIZE
from tests.robustness.known import CONTEXT

LARGEST = 2**32 - 1
BEYOND = (VOCAB_SIZE, VOCAB_SIZE + 1, 2**31 - 1, 2**31, LARGEST)
"""Token ids outside the vocabulary."""

_FLOATS = (
    ("sampling", "temperature"),
    ("sampling", "top_p"),
    ("sampling", "min_p"),
    ("sampling", "repetition_penalty"),
    ("sampling", "presence_penalty"),
    ("sampling", "frequency_penalty"),
    ("verification", "typical_threshold"),
    ("verification", "typical_alpha"),
)
_ABSURD = (-1.0, -0.0, 1e-45, 1e-38, 1e-7, 0.5, 1.0, 1.0001, 100.0, 101.0, -100.0, 3e38)
_NOT_NUMBERS = (float("nan"), float("inf"), float("-inf"))
_STOP_STRINGS = (
    [""],
    ["a", ""],
    ["the"],
    ["\x00"],
    ["\U0010ffff" * 1024],
    ["e"] * 64,
    ["e"] * 65,
    ["x" * 1025],
    ["é́ ‮ 中"],
)

Spoil = Callable[[st.DrawFn, pb.OpenSession], None]


def _typical(opening: pb.OpenSession) -> None:
    opening.verification.mode = pb.VERIFICATION_MODE_TYPICAL
    opening.verification.typical_threshold = 0.1
    opening.verification.typical_alpha = 0.3


def _number(draw: st.DrawFn, opening: pb.OpenSession, values: tuple[float, ...]) -> None:
    section, name = draw(st.sampled_from(_FLOATS))
    if section == "verification":
        _typical(opening)
    setattr(getattr(opening, section), name, draw(st.sampled_from(values)))


def absurd_sampling(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    for _ in range(draw(st.integers(1, 3))):
        _number(draw, opening, _ABSURD)
    opening.sampling.top_k = draw(
        st.sampled_from((0, 1, VOCAB_SIZE, VOCAB_SIZE + 1, 2**31, LARGEST))
    )
    opening.sampling.seed = draw(st.sampled_from((0, 2**63, 2**64 - 1)))


def not_a_number(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    _number(draw, opening, _NOT_NUMBERS)


def beyond_vocabulary(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    fields: tuple[Any, ...] = (
        opening.prompt_token_ids,
        opening.generated_token_ids,
        opening.stop.eos_token_ids,
    )
    draw(st.sampled_from(fields)).append(draw(st.sampled_from(BEYOND)))


def past_context(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    length = draw(st.sampled_from((CONTEXT - 1, CONTEXT, CONTEXT + 1, 5000)))
    field = draw(st.sampled_from((opening.prompt_token_ids, opening.generated_token_ids)))
    field.extend([1] * (length - len(field)))


def empty_prompt(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    del opening.prompt_token_ids[:]


def strange_stop(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    stop = opening.stop
    stop.max_new_tokens = draw(st.sampled_from((0, 1, 2**31, LARGEST)))
    stop.ignore_eos = draw(st.booleans())
    stop.eos_token_ids.extend(range(draw(st.sampled_from((0, 1, VOCAB_SIZE)))))
    stop.stop_strings.extend(draw(st.sampled_from(_STOP_STRINGS)))


def another_peer(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    field = draw(st.sampled_from(("protocol_version", "tokenizer_fingerprint", "dtype")))
    setattr(opening.peer, field, draw(st.sampled_from(("1.999", "2", ".", "float16", "ÿ" * 300))))
    opening.peer.vocab_size = LARGEST


def another_rule(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    opening.verification.mode = draw(st.sampled_from((1, 2, 3, 4, 5, -1, 2**31 - 1)))  # type: ignore[assignment]
    opening.verification.rank_threshold = draw(st.sampled_from((0, 1, 5, LARGEST)))
    opening.verification.gated = draw(st.booleans())


def runs_ahead(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    opening.run_ahead = draw(st.sampled_from((1, 3, 64, 2**31, LARGEST)))
    if draw(st.booleans()):
        another_rule(draw, opening)


def nothing_set(draw: st.DrawFn, opening: pb.OpenSession) -> None:
    opening.Clear()


SPOILS: dict[str, Spoil] = {
    "absurd sampling": absurd_sampling,
    "NaN or infinity": not_a_number,
    "token beyond the vocabulary": beyond_vocabulary,
    "past the context's end": past_context,
    "empty prompt": empty_prompt,
    "strange stop rule": strange_stop,
    "another peer": another_peer,
    "another rule": another_rule,
    "run-ahead": runs_ahead,
    "nothing set": nothing_set,
}
