"""The rules of acceptance: what stands, what follows, and that no session sees another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.acceptance import Check, Judged, judge
from common.errors import InternalError
from common.lm.noise import Stream, uniform
from common.lm.sampling import Context, choose, distribution
from common.types import (
    EXACT,
    MAX_WEIGHT,
    DraftDistribution,
    SamplingParams,
    VerificationMode,
    VerificationParams,
)

VOCAB = 7
REJECTION = VerificationParams(VerificationMode.REJECTION)
TOKENS = st.integers(0, VOCAB - 1)
SAMPLING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    seed=st.integers(0, 2**64 - 1),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
)
RULES = st.builds(
    VerificationParams,
    mode=st.sampled_from(VerificationMode),
    rank_threshold=st.integers(1, VOCAB),
    typical_threshold=st.sampled_from([0.05, 0.09, 0.5]),
    typical_alpha=st.sampled_from([0.1, 0.3, 1.0]),
)


def by(mode: VerificationMode) -> st.SearchStrategy[VerificationParams]:
    return RULES.map(lambda rule: replace(rule, mode=mode))


@st.composite
def distributions(draw: st.DrawFn, guess: int) -> DraftDistribution:
    others = draw(st.lists(TOKENS.filter(lambda t: t != guess), max_size=4, unique=True))
    ids = (guess, *others)
    weights = draw(st.lists(st.integers(1, MAX_WEIGHT), min_size=len(ids), max_size=len(ids)))
    return DraftDistribution(ids, tuple(weights))


@st.composite
def checks(draw: st.DrawFn, rules: st.SearchStrategy[VerificationParams] = RULES) -> Check:
    context = draw(st.lists(TOKENS, min_size=1, max_size=5))
    guesses = draw(st.lists(TOKENS, max_size=4))
    rule, sampling = draw(rules), draw(SAMPLING)
    drawn = rule.mode is VerificationMode.REJECTION and sampling.temperature > 0
    return Check(
        context=tuple(context),
        guesses=tuple(guesses),
        valid=0,
        prompt_length=1,
        sampling=sampling,
        verification=rule,
        distributions=tuple(draw(distributions(guess)) for guess in guesses) if drawn else (),
    )


def logits_of(*asked: Check, seed: int = 0) -> torch.Tensor:
    rows = sum(check.num_rows for check in asked)
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def contexts(check: Check) -> list[Context]:
    tokens = (*check.context, *check.guesses)
    return [Context(tokens, len(check.context) + at, 1) for at in range(check.num_rows)]


@given(asked=st.lists(checks(), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_check_is_judged_alike_alone_and_among_others(asked: list[Check], seed: int) -> None:
    logits = logits_of(*asked, seed=seed)
    alone = [
        judge(rows, [check])[0]
        for rows, check in zip(torch.split(logits, [c.num_rows for c in asked]), asked, strict=True)
    ]
    assert judge(logits, asked) == alone


@given(check=checks(st.just(EXACT)), seed=st.integers(0, 99))
def test_coupled_accepts_exactly_what_the_target_chooses(check: Check, seed: int) -> None:
    logits = logits_of(check, seed=seed)
    choices = choose(logits, contexts(check), [check.sampling] * check.num_rows)
    (judged,) = judge(logits, [check])
    assert list(check.guesses[: judged.accepted]) == choices[: judged.accepted]
    assert judged.next_token_id == choices[judged.accepted]
    if judged.accepted < len(check.guesses):
        assert check.guesses[judged.accepted] != choices[judged.accepted]


@given(check=checks(st.just(REJECTION)), seed=st.integers(0, 99))
def test_rejection_follows_the_algorithm_of_the_paper(check: Check, seed: int) -> None:
    """Written again, a token at a time; temperature 0 is the limit in which only argmax stands."""
    logits = logits_of(check, seed=seed)
    (judged,) = judge(logits, [check])
    if check.sampling.temperature == 0:
        assert judged == judge(logits, [replace(check, verification=EXACT)])[0]
        return
    target = distribution(logits, contexts(check), [check.sampling] * check.num_rows)
    accepted = 0
    for at, (guess, given_by) in enumerate(zip(check.guesses, check.distributions, strict=True)):
        weight = given_by.weights[given_by.token_ids.index(guess)]
        q = weight / sum(given_by.weights)
        position = len(check.context) + at
        (drawn,) = uniform([check.sampling.seed], [position], Stream.ACCEPTANCE)
        if drawn >= target[at, guess] / q:
            break
        accepted += 1
    assert judged.accepted == accepted
    left = target[accepted].clone()
    if accepted < len(check.guesses):
        given_by = check.distributions[accepted]
        for token, weight in zip(given_by.token_ids, given_by.weights, strict=True):
            left[token] -= weight / sum(given_by.weights)
        assert judged.next_token_id != check.guesses[accepted]
    assert left[judged.next_token_id] > 0


@given(check=checks(st.just(REJECTION)))
def test_rejection_accepts_all_that_is_drawn_from_the_targets_own_distribution(
    check: Check,
) -> None:
    if check.sampling.temperature == 0:
        return
    weights = [3, 1, 2, 5, 1, 1, 4]
    own = DraftDistribution(tuple(range(VOCAB)), tuple(weights))
    flat = SamplingParams(temperature=1.0, seed=check.sampling.seed)
    check = replace(check, sampling=flat, distributions=(own,) * len(check.guesses))
    logits = torch.tensor(weights).float().log().expand(check.num_rows, VOCAB)
    # A ratio of 1 may round down: only the closest of numbers below 1 could fail.
    assert judge(logits, [check])[0].accepted == len(check.guesses)


def test_rejection_never_recovers_what_the_draft_made_more_of() -> None:
    """The residual is of the target's excess alone, whatever the seed."""
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    drawn_from = DraftDistribution((0, 1), (3, 1))
    for seed in range(200):
        check = Check((0,), (0,), 0, 1, SamplingParams(1.0, seed=seed), REJECTION, (drawn_from,))
        judged = judge(logits, [check])[0]
        assert judged.accepted == 1 or judged.next_token_id == 1


@given(
    check=checks(by(VerificationMode.RANK)),
    seed=st.integers(0, 99),
)
def test_rank_accepts_by_place_and_writes_the_likeliest(check: Check, seed: int) -> None:
    plain = replace(check, sampling=SamplingParams(check.sampling.temperature))
    logits = logits_of(check, seed=seed)
    places = (-logits).argsort(-1).argsort(-1) + 1
    accepted = 0
    while accepted < len(check.guesses) and (
        places[accepted, check.guesses[accepted]] <= check.verification.rank_threshold
    ):
        accepted += 1
    assert judge(logits, [plain])[0] == Judged(accepted, int(logits[accepted].argmax()))


@pytest.mark.parametrize(("guess", "accepted"), [(0, 1), (1, 0)])
def test_of_equal_scores_the_lower_id_ranks_first(guess: int, accepted: int) -> None:
    rule = VerificationParams(VerificationMode.RANK, rank_threshold=1)
    check = Check((0,), (guess,), 0, 1, SamplingParams(), rule)
    assert judge(torch.tensor([[1.0, 1.0, 0.0]] * 2), [check]) == [Judged(accepted, 0)]


@given(
    check=checks(by(VerificationMode.TYPICAL)),
    seed=st.integers(0, 99),
)
def test_typical_accepts_above_the_bound_of_the_paper(check: Check, seed: int) -> None:
    logits = logits_of(check, seed=seed)
    warm = check.sampling
    if warm.temperature == 0:
        warm = replace(warm, temperature=1.0)
    target = distribution(logits, contexts(check), [warm] * check.num_rows)
    accepted = 0
    for at, guess in enumerate(check.guesses):
        entropy = -sum(float(p) * float(p.log()) for p in target[at] if p > 0)
        rule = check.verification
        bound = torch.tensor(-entropy).exp() * rule.typical_alpha
        if not target[at, guess] > min(rule.typical_threshold, float(bound)):
            break
        accepted += 1
    choices = choose(logits, contexts(check), [check.sampling] * check.num_rows)
    assert judge(logits, [check])[0] == Judged(accepted, choices[accepted])


@pytest.mark.parametrize("mode", VerificationMode)
def test_logits_without_a_number_are_an_error(mode: VerificationMode) -> None:
    check = Check((0,), (), 0, 1, SamplingParams(0.5), VerificationParams(mode))
    with pytest.raises(InternalError, match="NaN"):
        judge(torch.full((1, VOCAB), float("nan")), [check])
