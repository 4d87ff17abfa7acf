"""One table of values, read both ways; and everything a stranger could send wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import wire
from common.errors import HandshakeError, InvalidRequestError, PrecisionError
from common.types import (
    MAX_WEIGHT,
    AheadTokens,
    AssistedRound,
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

LIMITS = wire.WireLimits(vocab_size=100, max_draft_tokens=3)
PEER = Peer("1.0", "f" * 64, 100, "float32")
TIMING = StepTiming(1, 2, 3, 4, 5, 6, 7, 8)
OPENING = OpenSession(
    PEER,
    (1, 99),
    SamplingParams(0.5, 5, 0.75, 2**64 - 1, 0.25, 1.5, -0.5, 0.125),
    StopParams(9, (3,), ("é",)),
    (7,),
)
INFO = ServerInfo(
    "1.0", "0.1", "m", "a", "b", 100, "float32", "float32", "bfloat16", "cpu", 64, (0, 1),
    4, 3, 32, 1000, 4096, 300.0, {"a": "b"}, {"c": "d"},
)  # fmt: skip

CASES: list[tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]] = [
    (OPENING, wire.open_to_proto, lambda m: wire.open_from_proto(m, LIMITS)),
    (
        replace(OPENING, conversation=b"talk"),
        wire.open_to_proto,
        lambda m: wire.open_from_proto(m, LIMITS),
    ),
    (replace(OPENING, run_ahead=64), wire.open_to_proto, lambda m: wire.open_from_proto(m, LIMITS)),
    (AheadTokens(5, (6, 7), FinishReason.EOS, TIMING), wire.ahead_to_proto, wire.ahead_from_proto),
    (Draft(1, 2, 3, (4, 5, 6), (7,)), wire.draft_to_proto,
     lambda m: wire.draft_from_proto(m, LIMITS)),
    *(
        (replace(OPENING, verification=rule), wire.open_to_proto,
         lambda m: wire.open_from_proto(m, LIMITS))
        for rule in (
            VerificationParams(gated=True), VerificationParams(VerificationMode.REJECTION),
            VerificationParams(VerificationMode.RANK, rank_threshold=3, gated=True),
            VerificationParams(VerificationMode.TYPICAL, typical_threshold=0.5, typical_alpha=2.0),
        )
    ),
    (Draft(1, 2, 3, (4, 5), distributions=(
        DraftDistribution((4, 9), (MAX_WEIGHT, 1)), DraftDistribution((5,), (258,)))),
     wire.draft_to_proto, lambda m: wire.draft_from_proto(m, LIMITS)),
    *(
        (Draft(1, 2, 3, assumed_bonus_token_id=assumed), wire.draft_to_proto,
         lambda m: wire.draft_from_proto(m, LIMITS))
        for assumed in (None, 0, 99)
    ),
    *(
        (Verdict(1, 2, outcome, 3, 4, next_token, reason, TIMING), wire.verdict_to_proto,
         wire.verdict_from_proto)
        for outcome in Outcome for next_token in (None, 0, 5) for reason in (None, *FinishReason)
    ),
    *(
        (GeneratedTokens((1, 2), reason, TIMING), wire.generated_to_proto,
         wire.generated_from_proto)
        for reason in (None, *FinishReason)
    ),
    *(
        (GeneratedTokens((1,), None, TIMING, made), wire.generated_to_proto,
         wire.generated_from_proto)
        for made in (AssistedRound(0, 0, 0, 0), AssistedRound(3, 2, 5, 4))
    ),
    (INFO, wire.info_to_proto, wire.info_from_proto),
    (replace(INFO, draft_model_name="d", draft_model_fingerprint="e"), wire.info_to_proto,
     wire.info_from_proto),
]  # fmt: skip


@pytest.mark.parametrize(("value", "there", "back"), CASES)
def test_there_and_back(
    value: Any, there: Callable[[Any], Any], back: Callable[[Any], Any]
) -> None:
    message = there(value)
    assert back(type(message).FromString(message.SerializeToString())) == value


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\x9b31m \x07 \x00", r"\x9b31m \x07 \x00"),
        ("back\u202ewards", r"back\u202ewards"),
        ("", ""),
        (r"C:\new Größe 模型 🙂", r"C:\new Größe 模型 🙂"),
    ],
)
def test_what_a_server_says_of_itself_may_be_printed(said: str, shown: str) -> None:
    texts = {key: said for key, value in asdict(INFO).items() if isinstance(value, str)}
    given = replace(INFO, **texts, precision={said: said}, environment={said: said})  # type: ignore[arg-type]
    back = wire.info_from_proto(wire.info_to_proto(given))
    assert {getattr(back, key) for key in texts} == {shown}
    assert back.precision == back.environment == {shown: shown}


@given(st.text())
def test_a_printable_text_is_one_line_that_no_terminal_obeys(text: str) -> None:
    shown = wire.printable(text)
    assert shown.isprintable()
    assert wire.printable(shown) == shown
    assert len(shown.splitlines()) <= 1
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    ("mode", "length"),
    [*((mode, None) for mode in GenerateMode), *((GenerateMode.ASSISTED, n) for n in (0, 3))],
)
@pytest.mark.parametrize("eos", [None, (), (5, 6)])
def test_generate_there_and_back(
    mode: GenerateMode, length: int | None, eos: tuple[int, ...] | None
) -> None:
    opening = OpenSession(PEER, (1,), SamplingParams(), StopParams(9, eos), draft_length=length)
    message = wire.generate_to_proto(mode, opening)
    assert wire.generate_from_proto(message, LIMITS) == (mode, opening)


def opened(**change: Any) -> pb.OpenSession:
    message = wire.open_to_proto(OPENING)
    for field, value in change.items():
        message.MergeFrom(pb.OpenSession(**{field: value}))
    return message


def ruled(mode: VerificationMode) -> OpenSession:
    return replace(OPENING, verification=VerificationParams(mode))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: wire.open_from_proto(pb.OpenSession(), LIMITS), "prompt_token_ids is empty"),
        (lambda: wire.open_from_proto(opened(prompt_token_ids=[100]), LIMITS), "holds 100"),
        (lambda: wire.open_from_proto(opened(generated_token_ids=[200]), LIMITS), "holds 200"),
        (
            lambda: wire.open_from_proto(
                opened(sampling=pb.SamplingParams(temperature=-1)), LIMITS
            ),
            "temperature is -1",
        ),
        (
            lambda: wire.open_from_proto(
                opened(sampling=pb.SamplingParams(temperature=float("nan"))), LIMITS
            ),
            "temperature is nan",
        ),
        (
            lambda: wire.open_from_proto(opened(sampling=pb.SamplingParams(top_p=1.5)), LIMITS),
            "top_p is 1.5",
        ),
        (
            lambda: wire.open_from_proto(pb.OpenSession(prompt_token_ids=[1]), LIMITS),
            "max_new_tokens is 0",
        ),
        (
            lambda: wire.open_from_proto(opened(stop=pb.StopParams(stop_strings=[""])), LIMITS),
            "empty string",
        ),
        (
            lambda: wire.open_from_proto(
                opened(stop=pb.StopParams(stop_strings="ab" * 40)), LIMITS
            ),
            "holds 81 texts of up to 1 characters; at most 64 of 1024",
        ),
        (
            lambda: wire.open_from_proto(
                opened(stop=pb.StopParams(stop_strings=["a" * 1025])), LIMITS
            ),
            "holds 2 texts of up to 1025 characters",
        ),
        (
            lambda: wire.open_from_proto(opened(stop=pb.StopParams(eos_token_ids=[300])), LIMITS),
            "eos_token_ids holds 300",
        ),
        (lambda: wire.draft_from_proto(pb.VerifyRequest(), LIMITS), "step_id is 0"),
        (
            lambda: wire.draft_from_proto(
                pb.VerifyRequest(step_id=1, draft_token_ids=[1] * 4), LIMITS
            ),
            "at most 3 a round",
        ),
        (
            lambda: wire.draft_from_proto(
                pb.VerifyRequest(step_id=1, draft_token_ids=[100]), LIMITS
            ),
            "outside the vocabulary of 100",
        ),
        (
            lambda: wire.draft_from_proto(
                pb.VerifyRequest(step_id=1, confirmed_token_ids=[100]), LIMITS
            ),
            "confirmed_token_ids holds 100",
        ),
        (
            lambda: wire.generate_from_proto(pb.GenerateRequest(open=opened()), LIMITS),
            "mode is 0",
        ),
        (
            lambda: wire.generate_from_proto(
                wire.generate_to_proto(GenerateMode.STOCK, ruled(VerificationMode.RANK)), LIMITS
            ),
            "a cloud arm has no rule but its own",
        ),
        (lambda: wire.open_from_proto(opened(draft_length=2), LIMITS), "draft_length is 2, and"),
        (
            lambda: wire.generate_from_proto(
                wire.generate_to_proto(GenerateMode.OPTIMIZED, replace(OPENING, draft_length=2)),
                LIMITS,
            ),
            "the server drafts nothing",
        ),
        (
            lambda: wire.generate_from_proto(
                wire.generate_to_proto(GenerateMode.ASSISTED, replace(OPENING, draft_length=4)),
                LIMITS,
            ),
            r"draft_length is 4; .* at most 3 tokens a round \(cloud.max_draft_tokens\)",
        ),
        (lambda: wire.score_from_proto(pb.ScoreRequest(), LIMITS, 9), "holds 0 and"),
        (
            lambda: wire.score_from_proto(wire.score_to_proto([1] * 10, [1]), LIMITS, 9),
            "holds 10 and .* at most 9",
        ),
        (
            lambda: wire.score_from_proto(wire.score_to_proto([1] * 5, text=[1] * 5), LIMITS, 9),
            "holds 5 and text_token_ids 5 tokens",
        ),
        (
            lambda: wire.score_from_proto(wire.score_to_proto([1], text=[100]), LIMITS, 9),
            "text_token_ids holds 100",
        ),
        (
            lambda: wire.score_from_proto(wire.score_to_proto([1], [100]), LIMITS, 9),
            "token_ids holds 100",
        ),
        (lambda: wire.verdict_from_proto(pb.Verdict()), "outcome is 0"),
    ],
)
def test_what_breaks_the_protocol_is_named(read: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1"),
        ({"repetition_penalty": 1e-39}, "repetition_penalty is"),
        ({"presence_penalty": 101.0}, "presence_penalty is 101"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
    ],
)
def test_sampling_out_of_range_is_named(change: dict[str, float], message: str) -> None:
    sampling = pb.SamplingParams(**change)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match=message):
        wire.open_from_proto(opened(sampling=sampling), LIMITS)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"mode": 9}, "verification.mode is 9"),
        ({"mode": pb.VERIFICATION_MODE_RANK}, "rank_threshold is 0"),
        (
            {"mode": pb.VERIFICATION_MODE_TYPICAL, "typical_threshold": 2, "typical_alpha": 1},
            "typical_threshold is 2",
        ),
        (
            {"mode": pb.VERIFICATION_MODE_TYPICAL, "typical_threshold": 0.5},
            "typical_alpha 0.0; both must be above 0",
        ),
    ],
)
def test_a_rule_that_lacks_its_numbers_is_named(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        wire.open_from_proto(opened(verification=pb.VerificationParams(**rule)), LIMITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidate_counts": [2]}, "holds 1 numbers for 2 draft_token_ids"),
        ({"candidate_counts": [2, 0]}, "holds 0 to 2; each must lie in"),
        ({"candidate_counts": [2, 1025]}, "holds 2 to 1025"),
        ({"candidate_token_ids": [4, 9, 100]}, "candidate_token_ids holds 100"),
        ({"candidate_token_ids": [4, 9]}, "come to 3, but there are 2"),
        ({"candidate_weights": bytes(5)}, "and 5 bytes of candidate_weights"),
        ({"candidate_token_ids": [3, 9, 5]}, "candidates of guess 4 must hold it"),
        ({"candidate_token_ids": [4, 4, 5]}, "hold no id twice"),
        ({"candidate_weights": bytes(6)}, "weigh at least 1"),
        ({"candidate_counts": [], "draft_token_ids": []}, "holds 0 numbers for 0"),
    ],
)
def test_candidates_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    origins = (DraftDistribution((4, 9), (7, 1)), DraftDistribution((5,), (MAX_WEIGHT,)))
    request = wire.draft_to_proto(Draft(1, 2, 0, (4, 5), distributions=origins))
    for field in change:
        request.ClearField(field)
    request.MergeFrom(pb.VerifyRequest(**change))
    with pytest.raises(InvalidRequestError, match=message):
        wire.draft_from_proto(request, LIMITS)


@pytest.mark.parametrize(
    ("change", "error", "both"),
    [
        ({"protocol_version": "2.3"}, HandshakeError, "client 2.3, server 1.0"),
        ({"dtype": "bfloat16"}, PrecisionError, "client bfloat16, server float32"),
        ({"tokenizer_fingerprint": "e" * 64}, HandshakeError, "client eeeeeeeeeeee .* fffffff"),
    ],
)
def test_the_handshake_names_both_sides(
    change: dict[str, str], error: type[Exception], both: str
) -> None:
    client = {**{"protocol_version": "1.9", "tokenizer_fingerprint": "f" * 64,
                 "vocab_size": 100, "dtype": "float32"}, **change}  # fmt: skip
    with pytest.raises(error, match=both):
        wire.check_handshake(Peer(**client), PEER)  # type: ignore[arg-type]


def test_the_handshake_lets_a_silent_or_newer_minor_peer_in() -> None:
    wire.check_handshake(Peer("", "", 0, ""), PEER)
    wire.check_handshake(Peer("1.9", "f" * 64, 100, "float32"), PEER)


@given(st.lists(st.integers(0, 151_935), min_size=1, max_size=64))
def test_a_drafted_token_takes_three_bytes_and_the_list_two_more(
    tokens: list[int],
) -> None:
    bare = wire.draft_to_proto(Draft(1, 1000, 3)).ByteSize()
    full = wire.draft_to_proto(Draft(1, 1000, 3, tuple(tokens))).ByteSize()
    assert full - bare <= 2 + 3 * len(tokens)


@given(
    st.lists(st.integers(0, 151_935), max_size=64),
    st.integers(1, 2**20),
    st.integers(1, 2**20),
    st.integers(0, 2**20),
    st.none() | st.integers(0, 151_935),
)
def test_a_round_takes_four_bytes_a_drafted_token_and_twenty_four_more(
    tokens: list[int], step_id: int, position: int, epoch: int, assumed: int | None
) -> None:
    """Whatever the numbers come to within a million steps."""
    draft = Draft(step_id, position, epoch, tuple(tokens), assumed_bonus_token_id=assumed)
    message = pb.SessionRequest(verify=wire.draft_to_proto(draft))
    assert message.ByteSize() <= 24 + 4 * len(tokens)


@given(
    st.lists(
        st.dictionaries(
            st.integers(0, 151_935), st.integers(1, MAX_WEIGHT), min_size=1, max_size=32
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_candidate_takes_five_bytes_and_is_counted(tables: list[dict[int, int]]) -> None:
    origins = tuple(DraftDistribution(tuple(t), tuple(t.values())) for t in tables)
    guesses = tuple(next(iter(table)) for table in tables)
    bare = wire.draft_to_proto(Draft(1, 1000, 3, guesses))
    full = wire.draft_to_proto(Draft(1, 1000, 3, guesses, distributions=origins))
    counted = wire.distributions_bytes(origins)
    assert full.ByteSize() - bare.ByteSize() == counted
    assert counted <= 12 + len(tables) + 5 * sum(map(len, tables))
    assert wire.draft_from_proto(full, wire.WireLimits(151_936, 8)).distributions == origins


def test_the_exact_rule_takes_no_bytes() -> None:
    assert not wire.open_to_proto(OPENING).verification.ByteSize()


def test_a_conversations_name_is_short() -> None:
    with pytest.raises(InvalidRequestError, match="65 bytes; send at most 64"):
        wire.open_from_proto(wire.open_to_proto(replace(OPENING, conversation=b"x" * 65)), LIMITS)


def test_run_ahead_needs_a_rule_under_which_all_tokens_are_the_targets_own() -> None:
    for rule in (VerificationParams(VerificationMode.REJECTION), VerificationParams(gated=True)):
        message = wire.open_to_proto(replace(OPENING, run_ahead=8, verification=rule))
        with pytest.raises(InvalidRequestError, match="run_ahead is 8"):
            wire.open_from_proto(message, LIMITS)
    asked = wire.generate_to_proto(GenerateMode.OPTIMIZED, replace(OPENING, run_ahead=8))
    with pytest.raises(InvalidRequestError, match="run_ahead is set"):
        wire.generate_from_proto(asked, LIMITS)
