"""A step run whole comes out as the module's, whatever the layers of the form may have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.lm.decoder import Decoder
from common.lm.runner import LanguageModel, Segment
from tests.models import ARCHITECTURES, WINDOW, build, language_model, loaded, tiny_config
from tests.unit.lm.test_runner import check_every_kind_of_step

FORMS = {"llama", "mistral", "qwen2", "qwen3"}

ROTATIONS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32},
}


def whole(architecture: str = "llama", **overrides: Any) -> LanguageModel:
    model = build(tiny_config(architecture, **overrides))
    return LanguageModel(loaded(model, architecture), 1024, "auto")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_of_the_form_run_whole_and_no_others(architecture: str) -> None:
    lm = language_model(architecture, compile_mode="auto")
    assert (lm.execution._decoder is not None) == (architecture in FORMS)


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("llama", {"hidden_size": 36, "intermediate_size": 71, "head_dim": 20}),
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 52}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 0.1}),
        *(("llama", {"rope_parameters": {"rope_theta": 1e4, **r}}) for r in ROTATIONS.values()),
        ("qwen2", {"sliding_window": WINDOW + 1, "layer_types": ["sliding_attention"] * 2}),
        ("qwen3", {"attention_bias": True, "head_dim": 24}),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_kind_of_layer_equals_the_stock_model(
    architecture: str, overrides: dict[str, Any], threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lm = whole(architecture, **overrides)
        assert lm.execution._decoder is not None
        check_every_kind_of_step(lm)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "overrides",
    [
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ],
)
def test_layers_beyond_the_form_are_left_to_the_module(overrides: dict[str, Any]) -> None:
    lm = whole(**overrides)
    assert (lm.execution.path, lm.execution._decoder) == ("kernels", None)
    check_every_kind_of_step(lm)


def test_a_decoder_that_is_wrong_is_not_taken_into_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = Decoder.__call__

    def slightly_off(self: Decoder, *step: Any) -> torch.Tensor:
        return right(self, *step) + 0.1

    monkeypatch.setattr(Decoder, "__call__", slightly_off)
    caplog.set_level("INFO")
    lm = language_model(compile_mode="auto")
    assert lm.execution._decoder is None
    assert "runs as kernels: no step is run whole: " in caplog.text
    assert "0.1 off" in caplog.text
    check_every_kind_of_step(lm)


def test_logits_do_not_depend_on_the_company_or_on_threads() -> None:
    lm = language_model(compile_mode="auto")
    before = torch.get_num_threads()
    with lm.cache.session() as a, lm.cache.session() as b:
        first, second = Segment(a, [5, 6, 7, 8, 9], 0, 5), Segment(b, [3, 4], 0, 2)
        together = lm.forward([second, first])
        try:
            torch.set_num_threads(3 - min(before, 2))
            alone = [lm.forward([segment]) for segment in (second, first)]
            one_by_one = [lm.forward([Segment(a, [5 + i], i, 1)]) for i in range(5)]
        finally:
            torch.set_num_threads(before)
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(torch.cat(one_by_one), together[2:])


def test_beyond_few_tokens_the_module_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    right = Decoder.__call__

    def noting(self: Decoder, cache: Any, spans: Any, tokens: Any, rows: Any) -> torch.Tensor:
        sizes.append(len(tokens))
        return right(self, cache, spans, tokens, rows)

    lm = language_model(compile_mode="auto")
    assert lm.execution._decoder is not None
    most = lm.execution._decoder.most_tokens
    monkeypatch.setattr(Decoder, "__call__", noting)
    with lm.cache.session() as session:
        for count in (most, most + 1):
            lm.forward([Segment(session, [5] * count, 0, 1)])
    assert sizes == [most]


def test_weights_are_those_of_the_module() -> None:
    """What is done to them afterwards shows: there is no second copy."""
    lm = whole()
    with lm.cache.session() as session:
        before = lm.forward([Segment(session, [5, 6], 0, 1)])
        stock: Any = lm.stock
        stock.lm_head.weight.mul_(2)
        after = lm.forward([Segment(session, [5, 6], 0, 1)])
    assert torch.equal(after, 2 * before)
