"""Choosing tokens: Hugging Face's own processors, ties included, and independence of rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList

from cloud_server.processors import stock_processors
from common.errors import InternalError
from common.lm import sampling
from common.lm.runner import Segment
from common.lm.sampling import Context, choose, distribution, penalise, truncate, warp
from common.types import COLDEST, LEAST_PENALTY, SamplingParams
from tests.models import VOCAB_SIZE, language_model, tiny


def padded(params: SamplingParams, rows: torch.Tensor, padding: int) -> torch.Tensor:
    """Runs the stock chain, all but the noise, over logits with columns beyond the vocabulary."""
    vocab_size = rows.shape[1]
    chain: Any = stock_processors(
        params, prompt_length=1, vocab_size=vocab_size, logits_width=vocab_size + padding
    )
    wide = torch.nn.functional.pad(rows, (0, padding), value=9.0)
    without_noise: Any = LogitsProcessorList(chain[:-1])
    left: torch.Tensor = without_noise(torch.zeros(len(rows), 1, dtype=torch.long), wide)
    return left


def after(*positions: int) -> list[Context]:
    """Makes a context of so many zeros for each row."""
    return [Context((0,) * position, position, 0) for position in positions]


def stock(params: SamplingParams, context: Context, width: int) -> LogitsProcessorList:
    return stock_processors(
        params, prompt_length=context.prompt_length, vocab_size=width, logits_width=width
    )


LOGITS = st.floats(-20, 20, width=32) | st.integers(-3, 3).map(float)  # the integers make ties
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 3, 100]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 1e-9]),
    seed=st.integers(0, 2**64 - 1),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -0.5]),
)


@given(
    logits=st.lists(LOGITS, min_size=12, max_size=12),
    tokens=st.lists(st.integers(0, 11), min_size=1, max_size=9),
    prompt_length=st.integers(1, 9),
    params=PARAMS,
)
def test_what_is_left_is_what_hugging_faces_processors_leave(
    logits: list[float], tokens: list[int], prompt_length: int, params: SamplingParams
) -> None:
    context = Context(tokens, len(tokens), min(prompt_length, len(tokens)))
    rows = torch.tensor([logits])
    theirs: Any = LogitsProcessorList(stock(params, context, 12)[:-1])  # all but the noise
    ours = truncate(penalise(rows, [context], [params]), [params])
    assert torch.equal(ours, theirs(torch.tensor([tokens]), rows.clone()))


@given(
    logits=st.lists(LOGITS, min_size=12, max_size=12),
    tokens=st.lists(st.integers(0, 11), min_size=1, max_size=9),
    params=PARAMS,
    greedy=st.booleans(),
)
def test_the_choice_is_that_of_the_stock_chain(
    logits: list[float], tokens: list[int], params: SamplingParams, greedy: bool
) -> None:
    if greedy:
        params = dataclasses.replace(params, temperature=0.0)
    context = Context(tokens, len(tokens), 1)
    rows = torch.tensor([logits])
    chain: Any = stock(params, context, 12)
    theirs = chain(torch.tensor([tokens]), rows.clone()).argmax(-1).tolist()
    assert choose(rows, [context], [params]) == theirs


@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("top_k", [0, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.3, 1e-9])
def test_truncation_of_a_real_vocabulary_is_hugging_faces(
    spread: float, top_k: int, top_p: float
) -> None:
    """The head of a large one is found without sorting all of it."""
    logits = spread * torch.randn(6, 9000, generator=torch.Generator().manual_seed(1))
    logits[:2] = logits[:2].round()  # ties at whatever rank
    context, given = Context((0,), 1, 1), SamplingParams(0.7, top_k, top_p)
    chain: Any = LogitsProcessorList(stock(given, context, 9000)[:-1])
    theirs = chain(torch.zeros(6, 1, dtype=torch.long), logits.clone())
    assert torch.equal(warp(logits, 0.7, top_k, top_p), theirs)


@pytest.mark.parametrize("seed", range(40))
def test_where_rounding_decides_top_p_it_decides_as_in_hugging_faces(seed: int) -> None:
    """Just there: top_p is what some of the likeliest tokens come to."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 300, generator=generator)
    reached = logits.softmax(-1).sort(descending=True).values.cumsum(-1)[0]
    top_p = float(reached[int(torch.randint(250, (1,), generator=generator))])
    context, given = Context((0,), 1, 1), SamplingParams(1.0, top_p=top_p)
    chain: Any = LogitsProcessorList(stock(given, context, 300)[:-1])
    theirs = chain(torch.zeros(1, 1, dtype=torch.long), logits.clone())
    assert torch.equal(warp(logits, 1.0, top_p=top_p), theirs)


@pytest.mark.parametrize("top_p", [0.5, 0.9])
def test_columns_beyond_the_vocabulary_break_no_tie(top_p: float) -> None:
    """A sort of more columns leaves equal ones in another order."""
    logits = 3 * torch.randn(40, 2000, generator=torch.Generator().manual_seed(1))
    logits = logits.bfloat16().float()  # full of ties
    given = SamplingParams(1.0, top_p=top_p)
    assert torch.equal(padded(given, logits, 48), warp(logits, 1.0, top_p=top_p))


def test_top_p_takes_the_slow_way_only_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_rows: list[int] = []
    as_stock = sampling._keep_head_as_stock

    def counting(scores: torch.Tensor, top_p: float) -> torch.Tensor:
        slow_rows.append(len(scores))
        return as_stock(scores, top_p)

    monkeypatch.setattr(sampling, "_keep_head_as_stock", counting)
    peaked = 6 * torch.randn(3, 9000, generator=torch.Generator().manual_seed(1))
    warp(peaked, 1.0, top_p=0.9)
    warp(peaked, 1.0, top_k=50, top_p=0.9)
    assert slow_rows == []
    peaked[1] = 0.0  # all alike: nothing but the order of a sort tells them apart
    warp(peaked, 1.0, top_p=0.9)
    assert slow_rows == [1]


def test_the_likeliest_token_survives_any_top_p() -> None:
    kept = warp(torch.tensor([[0.0, 100.0, 0.0]]), 1.0, top_p=1e-9).isfinite()
    assert kept.tolist() == [[False, True, False]]


def test_penalties_by_their_definitions() -> None:
    """Repetition regards the prompt too; presence and frequency only what was generated."""
    context = Context((0, 1, 2, 2, 2, 3), 5, 2)  # the prompt is 0 1; 3 is not there yet
    given = SamplingParams(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    scores = penalise(torch.tensor([[3.0, -1.0, 4.0, 4.0, 1.0]]), [context], [given])
    assert scores.tolist() == [[1.5, -2.0, 2.0 - 0.5 - 3 * 0.25, 4.0, 1.0]]


def test_rows_without_penalties_are_left_alone_and_inputs_unchanged() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    given = [SamplingParams(), SamplingParams(presence_penalty=1.0)]
    scores = penalise(logits, [Context((0, 1), 2, 1)] * 2, given)
    assert torch.equal(scores[0], before[0])
    assert not torch.equal(scores[1], before[1])
    assert torch.equal(logits, before)


@given(params=PARAMS, seed=st.integers(0, 999))
def test_a_distribution_is_what_choices_are_drawn_from(params: SamplingParams, seed: int) -> None:
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed))
    context = Context((1, 2, 3), 3, 1)
    probabilities = distribution(logits, [context], [params])[0]
    assert float(probabilities.sum()) == pytest.approx(1.0)
    assert probabilities[choose(logits, [context], [params])[0]] > 0
    greedy = dataclasses.replace(params, temperature=0.0)
    likeliest = distribution(logits, [context], [greedy])[0]
    assert likeliest.tolist().index(1.0) == choose(logits, [context], [greedy])[0]


def test_temperature_zero_is_argmax_and_rows_keep_their_own_parameters() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    hot = SamplingParams(temperature=1.5, seed=9)
    params = [SamplingParams(), hot, SamplingParams(), hot]
    mixed = choose(logits, after(3, 4, 5, 6), params)
    for row in range(4):
        assert mixed[row] == choose(logits[row : row + 1], after(3 + row), [params[row]])[0]
    assert [mixed[0], mixed[2]] == logits.argmax(-1)[[0, 2]].tolist()


def test_seed_and_position_change_the_choice_and_nothing_else_does() -> None:
    logits = torch.zeros(1, 1000)
    hot = SamplingParams(temperature=1.0, seed=1)
    base = choose(logits, after(10), [hot])
    assert base == choose(logits.clone(), after(10), [hot])
    assert base != choose(logits, after(11), [hot])
    assert base != choose(logits, after(10), [SamplingParams(temperature=1.0, seed=2)])
    assert base != choose(logits, after(10), [SamplingParams(temperature=1.0, seed=1 + (1 << 32))])


def test_top_k_one_is_greedy_at_any_temperature() -> None:
    logits = torch.randn(8, 40, generator=torch.Generator().manual_seed(3))
    params = [SamplingParams(temperature=2.0, top_k=1, seed=4)] * 8
    assert choose(logits, after(*range(8)), params) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-21, 9e-7])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float) -> None:
    logits = 30 * torch.randn(4, 50, generator=torch.Generator().manual_seed(3))
    params = [SamplingParams(temperature, seed=5)] * 4
    assert choose(logits, after(*range(4)), params) == logits.argmax(-1).tolist()


def test_of_equal_logits_the_first_is_chosen_and_what_is_cut_is_not_in_the_way() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-math.inf, -2.0, -math.inf, -2.0]])
    assert choose(logits, after(0, 0), [SamplingParams()] * 2) == [1, 1]


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0)])
@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_logits_without_a_finite_maximum_are_an_error(params: SamplingParams, fault: float) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = fault
    for ask in (choose, distribution):
        with pytest.raises(InternalError, match="NaN"):
            ask(logits, after(0, 0), [params] * 2)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("penalty", [LEAST_PENALTY, 100.0])
def test_no_legal_parameters_make_logits_infinite(penalty: float, top_p: float) -> None:
    """Or one session's would fail all that share its forward."""
    logits = 1e4 * torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    given = SamplingParams(COLDEST, top_p=top_p, repetition_penalty=penalty, seed=1)
    context = Context(tuple(range(50)), 50, 1)
    for ask in (choose, distribution):
        ask(logits, [context] * 3, [given] * 3)


def test_unequal_numbers_of_rows_are_an_error() -> None:
    with pytest.raises(InternalError, match="2 contexts"):
        choose(torch.zeros(1, 5), after(0, 1), [SamplingParams()])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=11, min_p=0.01),
        SamplingParams(1.2, seed=3, repetition_penalty=1.2, frequency_penalty=0.4),
        SamplingParams(repetition_penalty=1.5, presence_penalty=1.0),
    ],
    ids=["greedy", "truncated", "penalised", "greedy and penalised"],
)
def test_stock_generate_makes_the_same_choices(params: SamplingParams) -> None:
    prompt, new = [7, 99, 31, 200], 24
    model: Any = tiny("llama")
    whole = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=new,
        do_sample=False,
        logits_processor=stock(params, Context(prompt, 4, 4), VOCAB_SIZE),
        eos_token_id=None,
    )
    lm, tokens = language_model("llama"), list(prompt)
    with lm.cache.session() as session:
        logits = lm.forward([Segment(session, tokens, 0, 1)])
        for _ in range(new):
            tokens += choose(logits, [Context(tokens, len(tokens), 4)], [params])
            logits = lm.forward([Segment(session, tokens[-1:], len(tokens) - 1, 1)])
    assert whole[0].tolist() == tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_stock_chain_never_chooses_beyond_the_vocabulary(temperature: float) -> None:
    scores = torch.zeros(2, 10)
    scores[:, 8] = 50.0
    chain: Any = stock_processors(
        SamplingParams(temperature), prompt_length=3, vocab_size=8, logits_width=10
    )
    assert chain(torch.zeros(2, 3, dtype=torch.long), scores).argmax(-1).max().item() < 8
