from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from common.types import FinishReason
from edge_client.experiments.bootstrap import Bootstrap
from edge_client.experiments.comparison import exact_match, paired_ratios, ratios
from edge_client.experiments.records import Record, error_record, record_from_steps
from tests.unit.experiments.fakes import MS, piece, unit


def took(
    arm: str,
    prompt_id: str,
    milliseconds: float,
    *,
    tokens: Sequence[int] = (1, 2),
    prompt: tuple[int, ...] = (1,),
    **where: object,
) -> Record:
    steps = [piece(*tokens, end=FinishReason.EOS)]
    arrivals = [round(milliseconds * MS)]
    return record_from_steps(unit(arm, prompt_id, **where), prompt, steps, arrivals)


def test_ratios_are_taken_prompt_by_prompt() -> None:
    records = {
        "a": [took("a", "1", 10), took("a", "2", 10), took("a", "3", 10)],
        "b": [took("b", "1", 20), took("b", "2", 10), took("b", "3", 40)],
    }
    table = ratios(records, Bootstrap(1))
    assert table["a"]["b"]["prompts"] == 3
    assert table["a"]["b"]["tokens_per_s"]["median"]["value"] == pytest.approx(2)
    assert table["a"]["b"]["tokens_per_s"]["geometric_mean"]["value"] == pytest.approx(2)
    assert table["b"]["a"]["tokens_per_s"]["geometric_mean"]["value"] == pytest.approx(0.5)
    assert table["a"]["b"]["e2e_s"]["median"]["value"] == pytest.approx(0.5)
    assert paired_ratios(records["a"], records["b"]) == pytest.approx({"1": 2, "2": 1, "3": 4})


def test_only_what_both_arms_have_whole_is_compared() -> None:
    records = {
        "a": [took("a", "1", 10), took("a", "2", 10), took("a", "2", 90, repeat=1)],
        "b": [took("b", "2", 20), error_record(unit("b", "1"), None, "gone")],
    }
    assert ratios(records, Bootstrap(1))["a"]["b"]["prompts"] == 1
    assert paired_ratios(records["a"], records["b"]) == pytest.approx({"2": 2})


def test_turns_and_repeats_of_a_prompt_are_pooled() -> None:
    records = {
        "a": [took("a", "1", 10), took("a", "1", 30, turn=1), took("a", "1", 20, repeat=1)],
        "b": [took("b", "1", 30), took("b", "1", 30, turn=1), took("b", "1", 60, repeat=1)],
    }
    assert paired_ratios(records["a"], records["b"]) == pytest.approx({"1": 2})


def test_nothing_in_common_is_null() -> None:
    table = ratios({"a": [took("a", "1", 10)], "b": []}, Bootstrap(1))
    assert table["a"]["b"]["prompts"] == 0
    assert table["a"]["b"]["tokens_per_s"] is None


def test_one_arm_under_two_names_comes_out_even() -> None:
    generator = random.Random(4)
    records = {
        name: [took(name, str(i), 20 * generator.lognormvariate(0, 0.3)) for i in range(48)]
        for name in ("one", "same")
    }
    found = ratios(records, Bootstrap(1))["one"]["same"]["tokens_per_s"]
    for middle in ("median", "geometric_mean"):
        low, high = found[middle]["ci95"]
        assert low < 1 < high


def asked(calls: list[tuple[object, ...]], gap: float | None = 0.25) -> object:
    def logit_gap(prompt: Sequence[int], shared: Sequence[int], a: int, b: int) -> float | None:
        calls.append((tuple(prompt), tuple(shared), a, b))
        return gap

    return logit_gap


def test_equal_tokens_are_counted_by_prompt() -> None:
    records = {
        "cloud": [took("cloud", "1", 1), took("cloud", "1", 1, repeat=1), took("cloud", "2", 1)],
        "speculative": [
            took("speculative", "1", 1),
            took("speculative", "1", 1, repeat=1, tokens=(1, 3)),
            took("speculative", "2", 1),
        ],
    }
    (row,) = exact_match(records)
    assert row["arms"] == ["cloud", "speculative"]
    assert (row["prompts_equal"], row["prompts_compared"]) == (1, 2)
    assert row["mismatches"] == [
        {
            "prompt_id": "1",
            "turn": 0,
            "repeat": 1,
            "same_prompt": True,
            "first_divergence": 1,
            "token_ids": [2, 3],
            "logit_gap": None,
        }
    ]


def test_the_gap_is_asked_for_after_the_shared_output() -> None:
    calls: list[tuple[object, ...]] = []
    records = {
        "cloud": [took("cloud", "1", 1, tokens=(7, 8, 9), prompt=(5, 6))],
        "speculative": [took("speculative", "1", 1, tokens=(7, 8, 4), prompt=(5, 6))],
    }
    (row,) = exact_match(records, asked(calls))  # type: ignore[arg-type]
    assert calls == [((5, 6), (7, 8), 9, 4)]
    assert row["mismatches"][0]["logit_gap"] == 0.25


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"tokens": (1, 2, 3)}, {"tokens": (1, 2)}),  # one ends: there is no second token
        ({"tokens": (1,), "prompt": (1,)}, {"tokens": (2,), "prompt": (2,)}),  # two questions
        ({"tokens": (1,)}, {"tokens": (2,), "target_dtype": None}),  # the draft model's own text
    ],
)
def test_there_is_no_gap_where_it_means_nothing(
    ours: dict[str, object], theirs: dict[str, object]
) -> None:
    calls: list[tuple[object, ...]] = []
    records = {
        "a": [took("a", "1", 1, **ours)],  # type: ignore[arg-type]
        "b": [took("b", "1", 1, **theirs)],  # type: ignore[arg-type]
    }
    (row,) = exact_match(records, asked(calls))  # type: ignore[arg-type]
    assert not calls
    assert row["mismatches"][0]["logit_gap"] is None


def test_a_shorter_output_diverges_where_it_ends() -> None:
    records = {
        "a": [took("a", "1", 1, tokens=(1, 2, 3))],
        "b": [took("b", "1", 1, tokens=(1, 2))],
    }
    (mismatch,) = exact_match(records)[0]["mismatches"]
    assert mismatch["first_divergence"] == 2
    assert mismatch["token_ids"] == [3, None]


def test_failures_are_not_compared() -> None:
    records = {"a": [took("a", "1", 1)], "b": [error_record(unit("b", "1"), None, "gone")]}
    (row,) = exact_match(records)
    assert (row["prompts_equal"], row["prompts_compared"]) == (0, 0)
