"""Acceptance on a device: the same answers as on the host, and one of them waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.acceptance import Check, coupled, coupled_there
from common.errors import InternalError
from common.lm import sampling
from common.types import EXACT, SamplingParams
from tests.unit.cloud.test_acceptance import VOCAB, checks, logits_of
from tests.waiting import waits

COUPLED = checks(st.just(EXACT))
RICH = SamplingParams(0.8, seed=3, top_k=4, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
PENALISED = SamplingParams(0.0, presence_penalty=0.5, frequency_penalty=0.25)


@given(asked=st.lists(COUPLED, min_size=1, max_size=5), seed=st.integers(0, 99))
def test_it_is_judged_as_on_the_host(asked: list[Check], seed: int) -> None:
    logits = logits_of(*asked, seed=seed)
    assert coupled_there(logits, asked) == coupled(logits, asked)


@given(check=COUPLED, seed=st.integers(0, 99), right=st.integers(0, 4))
def test_guesses_that_are_right_stand_up_to_the_first_that_is_not(
    check: Check, seed: int, right: int
) -> None:
    logits = logits_of(check, seed=seed)
    for at in range(min(right, len(check.guesses))):
        (judged,) = coupled(logits[: at + 1], [replace(check, guesses=check.guesses[:at])])
        guesses = (*check.guesses[:at], judged.next_token_id, *check.guesses[at + 1 :])
        check = replace(check, guesses=guesses)
    (judged,) = coupled_there(logits, [check])
    assert judged.accepted >= min(right, len(check.guesses))
    assert [judged] == coupled(logits, [check])


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_row_without_a_number_is_an_error(row: int, temperature: float) -> None:
    check = Check((0,), (1, 2), 0, 1, SamplingParams(temperature))
    other = Check((0,), (), 0, 1, SamplingParams(temperature))
    logits = logits_of(check, other)
    logits[row] = float("nan")
    with pytest.raises(InternalError, match="NaN"):
        coupled_there(logits, [check, other])


def two_sessions(*given: SamplingParams) -> list[Check]:
    return [
        Check((0, 1, 2), guesses, 0, 1, params)
        for params, guesses in zip(given, ((3, 4), ()), strict=True)
    ]


MIXTURES = [
    (SamplingParams(0.0), SamplingParams(0.0)),
    (SamplingParams(1.0, seed=1), SamplingParams(0.5, seed=2)),
    (RICH, PENALISED),
]


@pytest.mark.parametrize("params", MIXTURES)
def test_a_step_waits_for_one_answer(
    params: tuple[SamplingParams, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "_keep_head", sampling._keep_head_as_stock)  # as on a GPU
    asked = two_sessions(*params)
    logits = logits_of(*asked)
    assert waits(lambda: coupled_there(logits, asked)) == {"tolist": 1}


def test_what_waits_is_noticed() -> None:
    """The host's form waits for several answers; were none noticed, the test above is blind."""
    asked = two_sessions(RICH, PENALISED)
    logits = logits_of(*asked)
    found = waits(lambda: coupled(logits, asked))
    assert {"__bool__", "tolist", "index from the host", "aten.nonzero"} <= set(found)
    assert waits(lambda: logits[logits > 0]) == {"aten.index": 1}
    assert waits(lambda: logits[torch.tensor([1])]) == {"index from the host": 1}
    assert waits(lambda: torch.tensor([1], device="cpu")) == {"tensor on a device": 1}
    assert waits(lambda: torch.tensor([1]).to(logits.device)) == {"copy": 1}
    assert waits(lambda: logits.to("cpu")) == {"copy": 1}
    assert waits(lambda: logits[0, 0].item() + float(logits[0, 0]))["item"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("params", MIXTURES)
def test_on_a_gpu_nothing_else_waits(params: tuple[SamplingParams, ...]) -> None:
    asked = two_sessions(*params)
    logits = logits_of(*asked)
    there = logits.cuda()
    coupled_there(there, asked)
    assert there.shape[1] == VOCAB
    with pytest.MonkeyPatch.context() as patch:
        read = torch.Tensor.tolist

        def once(tensor: torch.Tensor) -> object:
            torch.cuda.set_sync_debug_mode("default")
            return read(tensor)

        patch.setattr(torch.Tensor, "tolist", once)
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = coupled_there(there, asked)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert got == coupled(logits, asked)
