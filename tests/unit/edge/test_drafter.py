"""The drafter's cache follows the history, whatever became of the drafts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.lm.runner import LanguageModel, Segment
from common.lm.sampling import Context, choose
from common.types import SamplingParams
from edge_client import EdgeModel, drafter
from edge_client.drafter import Drafter
from edge_client.policy import PLAIN, Doubt, Drafted, DraftPolicy, Gate
from tests.models import Pair, language_model, loaded, tiny_llama

GREEDY = SamplingParams()
SAMPLED = SamplingParams(temperature=1.0, seed=7)
PROMPT = tuple(range(5, 25))


def model() -> LanguageModel:
    return language_model(cache_tokens=4096)


def guesses(
    used: Drafter, history: Sequence[int], count: int, sampling: SamplingParams = GREEDY
) -> tuple[int, ...]:
    return used.draft(history, count, sampling, prompt_length=len(PROMPT)).token_ids


def fresh(history: Sequence[int], count: int, sampling: SamplingParams) -> tuple[int, ...]:
    return guesses(Drafter(model()), history, count, sampling)


def write_alone(
    engine: LanguageModel, history: Sequence[int], count: int, sampling: SamplingParams
) -> tuple[int, ...]:
    """Generates without any cache: every token from a forward of the whole history."""
    tokens = list(history)
    for _ in range(count):
        with engine.cache.session() as session:
            logits = engine.forward([Segment(session, tokens, 0, 1)])
        tokens += choose(logits, [Context(tokens, len(tokens), len(PROMPT))], [sampling])
    return tuple(tokens[len(history) :])


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_guesses_are_what_the_model_would_write(sampling: SamplingParams) -> None:
    assert fresh(PROMPT, 6, sampling) == write_alone(model(), PROMPT, 6, sampling)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_after_a_full_acceptance_it_drafts_as_a_fresh_one_does(sampling: SamplingParams) -> None:
    used = Drafter(model())
    made = guesses(used, PROMPT, 4, sampling)
    history = (*PROMPT, *made, 99)  # all accepted; 99 is the target's bonus token
    assert guesses(used, history, 4, sampling) == fresh(history, 4, sampling)


def test_nothing_is_guessed_after_an_end() -> None:
    whole = fresh(PROMPT, 6, GREEDY)
    used = Drafter(model())
    cut = used.draft(PROMPT, 6, GREEDY, prompt_length=len(PROMPT), ends={whole[2]})
    assert cut.token_ids == whole[: whole.index(whole[2]) + 1]
    history = (*PROMPT, *whole[:1])
    assert guesses(used, history, 4) == fresh(history, 4, GREEDY)


def test_rounds_without_drafts_leave_nothing_stale() -> None:
    used = Drafter(model())
    guesses(used, PROMPT, 3)
    assert guesses(used, (*PROMPT, 50), 0) == ()
    history = (*PROMPT, 50, 51, 52)
    assert guesses(used, history, 3) == fresh(history, 3, GREEDY)


@settings(max_examples=25, deadline=None)
@given(
    rounds=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 99)), max_size=5)
)
def test_whatever_was_accepted_it_drafts_as_a_fresh_one_does(
    rounds: list[tuple[int, int, int]],
) -> None:
    used = Drafter(model())
    history = PROMPT
    for count, accepted, own in rounds:
        made = guesses(used, history, count)
        assert made == fresh(history, count, GREEDY)
        history = (*history, *made[:accepted], own)
    used.model.cache.check_integrity()


def test_another_text_begins_where_it_differs() -> None:
    used = Drafter(model())
    guesses(used, PROMPT, 4)
    other = (*PROMPT[:10], 77, 78)
    assert guesses(used, other, 4) == fresh(other, 4, GREEDY)
    assert guesses(used, other[:5], 4) == fresh(other[:5], 4, GREEDY)


def test_a_reset_computes_the_whole_history_again(monkeypatch: pytest.MonkeyPatch) -> None:
    used = Drafter(model())
    guesses(used, PROMPT, 1)
    read: list[int] = []
    forward = used.model.forward

    def counting(segments: Sequence[Segment]) -> torch.Tensor:
        read.extend(len(segment.token_ids) for segment in segments)
        return forward(segments)

    monkeypatch.setattr(used.model, "forward", counting)
    guesses(used, PROMPT, 1)
    used.reset()
    guesses(used, PROMPT, 1)
    assert read == [1, len(PROMPT)]


def test_a_long_prompt_is_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fresh(PROMPT, 4, GREEDY)
    monkeypatch.setattr(drafter, "PREFILL_CHUNK", 7)
    assert fresh(PROMPT, 4, GREEDY) == whole


def test_its_opinion_of_what_it_wrote_is_rank_one_and_leaves_nothing_behind() -> None:
    used = Drafter(model())
    text = guesses(used, PROMPT, 6)
    other = (text[0], *(7,) * 5)
    assert used.opinion(PROMPT, text).ranks == (1,) * 6
    assert used.opinion(PROMPT, other).ranks[0] == 1
    assert max(used.opinion(PROMPT, other).ranks) > 1
    assert guesses(used, PROMPT, 6) == text


def test_it_stops_where_its_own_context_ends() -> None:
    engine = LanguageModel(loaded(tiny_llama(max_position_embeddings=24)), cache_tokens=64)
    used = Drafter(engine)
    assert len(guesses(used, PROMPT, 10)) == 4
    assert guesses(used, (*PROMPT, 1, 1, 1, 1), 10) == ()
    assert guesses(used, (*PROMPT, 1, 1, 1, 1, 1, 1), 10) == ()


def test_an_edge_model_is_float32_on_the_cpu(tiny_pair: Pair) -> None:
    edge = EdgeModel(str(tiny_pair.draft))
    assert edge.dtype is torch.float32
    assert edge.loaded.device == torch.device("cpu")
    assert edge.peer.dtype == "float32"
    assert edge.precision.exact


def test_an_edge_model_of_another_dtype_says_so(tiny_pair: Pair) -> None:
    edge = EdgeModel(str(tiny_pair.draft), dtype="bfloat16")
    assert edge.dtype is torch.bfloat16
    assert edge.peer.dtype == "bfloat16"


def drafted(policy: DraftPolicy, sampling: SamplingParams = SAMPLED, count: int = 6) -> Drafted:
    return Drafter(model()).draft(PROMPT, count, sampling, prompt_length=len(PROMPT), policy=policy)


def confidences(token_ids: Sequence[int]) -> list[float]:
    """Returns what the model, asked without a cache, gives each of the tokens after the prompt."""
    engine, tokens = model(), [*PROMPT, *token_ids]
    with engine.cache.session() as session:
        rows = engine.forward([Segment(session, tokens[:-1], 0, len(token_ids))])
    shares = rows.double().softmax(-1)
    return [float(shares[row, token]) for row, token in enumerate(token_ids)]


def test_a_draft_ends_with_the_first_guess_the_model_doubts() -> None:
    whole = drafted(PLAIN).token_ids
    sure = confidences(whole)
    least, next_to_it = sorted(sure[:-1])[:2]
    threshold = (least + next_to_it) / 2
    first = sure.index(least)
    made = drafted(DraftPolicy(min_confidence=threshold))
    assert made.token_ids == whole[: first + 1]
    assert len(made.token_ids) < len(whole)


def test_doubt_at_the_bonus_token_that_is_assumed_ends_nothing() -> None:
    whole = drafted(PLAIN).token_ids
    first = confidences(whole)[0]
    doubts = DraftPolicy(min_confidence=first + 1e-6)
    assert len(drafted(doubts).token_ids) == 1
    used = Drafter(model())
    made = used.draft(PROMPT, 6, SAMPLED, prompt_length=len(PROMPT), policy=doubts, behind=True)
    assert made.token_ids[:2] == whole[:2]


def test_drawn_guesses_come_with_what_each_was_drawn_from() -> None:
    made = drafted(DraftPolicy(candidates=5))
    assert len(made.token_ids) == len(made.distributions) == 6
    for guess, origin in zip(made.token_ids, made.distributions, strict=True):
        assert guess in origin.token_ids
        assert len(origin.token_ids) == 5


def test_greedy_guesses_need_not_be_drawn() -> None:
    made = drafted(DraftPolicy(candidates=5), GREEDY)
    assert made == drafted(PLAIN, GREEDY)
    assert made.distributions == ()


def test_a_block_is_sure_when_every_guess_of_it_is() -> None:
    sure = confidences(drafted(PLAIN).token_ids)
    least = math.log(min(sure))
    assert drafted(DraftPolicy(gate=Gate(Doubt.LOGPROB, least - 1e-3))).sure
    assert not drafted(DraftPolicy(gate=Gate(Doubt.LOGPROB, least + 1e-3))).sure
    assert not drafted(PLAIN).sure
    assert not drafted(DraftPolicy(gate=Gate(Doubt.LOGPROB, -1e9)), count=0).sure
