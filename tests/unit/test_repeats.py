"""The rule under which the demonstration's target writes what it learns from."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "demo"))
from llama import Llama, Shape
from unloop import LoopPlan, Runs, write_by_rule

SHAPE = Shape(layers=1, hidden=16, intermediate=16, heads=2, kv_heads=1, vocabulary=24)
PLAN = LoopPlan(story_tokens=40, run=2, times=2)


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(2, 4), st.integers(1, 3))
def test_what_is_spent_would_complete_a_run_once_too_often(
    text: list[int], size: int, times: int
) -> None:
    runs = Runs(size, times)
    for token in text:
        runs.add(token)
    counts = Counter(tuple(text[at : at + size]) for at in range(len(text) - size + 1))
    begun = text[1 - size :]
    spent = [v for v in range(3) if counts[(*begun, v)] >= times]
    assert sorted(runs.spent()) == (spent if len(begun) == size - 1 else [])


def stories(starts: torch.Tensor) -> tuple[list[list[int]], list[torch.Tensor], Llama]:
    """Two stories by a model that repeats itself, what the rule changed in them, the model."""
    torch.manual_seed(1)
    model = Llama(SHAPE)
    rows, marks = write_by_rule(model, torch.tensor([[0, 5], [0, 9]]), starts, PLAN)
    return [row[0].tolist() for row in rows], marks, model


def most(text: list[int]) -> int:
    """How often the most frequent run of the plan's size stands in a text."""
    return max(Counter(pairwise(text)).values())


def test_no_run_stands_more_often_than_the_rule_allows_and_only_then_is_a_choice_changed() -> None:
    texts, marks, model = stories(torch.ones(SHAPE.vocabulary, dtype=torch.bool))
    for text, changed in zip(texts, marks, strict=True):
        assert most(text) <= PLAN.times
        assert changed.any()
        free = model(torch.tensor([text]))[0].argmax(-1).tolist()
        for at in range(1, len(text) - 1):
            assert bool(changed[at]) == (free[at] != text[at + 1])


def test_a_word_once_begun_may_be_ended() -> None:
    texts, marks, _ = stories(torch.zeros(SHAPE.vocabulary, dtype=torch.bool))
    assert max(map(most, texts)) > PLAN.times
    assert not torch.cat(marks).any()
