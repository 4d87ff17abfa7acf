"""What cannot be served exactly is refused by name, with the reason; never served wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from common.errors import ModelError
from common.lm import compatibility
from common.lm.attention import NAME
from common.lm.loading import twin
from common.lm.runner import LanguageModel
from tests.models import VOCAB_SIZE, WINDOW, build, loaded, tiny_config, tiny_llama

OWN_ATTENTION = "0 of its 2 layers attend through transformers' AttentionInterface"


def _falcon() -> Any:
    return AutoConfig.for_model(
        "falcon", vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
    )


REFUSED: list[tuple[str, Any, str]] = [
    ("FalconForCausalLM", _falcon, OWN_ATTENTION),
    ("BloomForCausalLM", lambda: tiny_config("bloom"), OWN_ATTENTION),
    ("MptForCausalLM", lambda: tiny_config("mpt"), OWN_ATTENTION),
    ("GPTJForCausalLM", lambda: tiny_config("gptj", rotary_dim=4), OWN_ATTENTION),
    ("MambaForCausalLM", lambda: tiny_config("mamba"), "another state|0 of its 2 layers"),
    (
        "RecurrentGemmaForCausalLM",
        lambda: tiny_config("recurrent_gemma", lru_width=32, attention_window_size=WINDOW),
        "another state|0 of its 2 layers",
    ),
    (
        "JambaForCausalLM",
        lambda: tiny_config("jamba", num_hidden_layers=4, use_mamba_kernels=False),
        "another state",
    ),
    ("FalconH1ForCausalLM", lambda: tiny_config("falcon_h1"), "another state"),
    (
        "Lfm2ForCausalLM",
        lambda: tiny_config("lfm2", layer_types=["conv", "full_attention"]),
        "layers of type conv",
    ),
    ("Llama4ForCausalLM", lambda: tiny_config("llama4_text"), "chunked_attention"),
    (
        "GptOssForCausalLM",
        lambda: tiny_config(
            "gpt_oss", num_local_experts=4, num_experts_per_tok=2, rope_parameters={
                "rope_type": "default", "rope_theta": 1e4
            }
        ),
        "GptOssAttention passes `s_aux`",
    ),
    ("BertLMHeadModel", lambda: tiny_config("bert", is_decoder=False), "`is_causal=False`"),
    (
        "Gemma2ForCausalLM",
        lambda: tiny_config("gemma2", use_bidirectional_attention=True),
        "`is_causal=False`",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "reason"), REFUSED, ids=[case[0] for case in REFUSED])
def test_refused_by_name_and_reason(
    name: str, config: Any, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = build(config())
    capfd.readouterr()  # configurations built here may be remarked upon
    with pytest.raises(ModelError, match=reason) as caught:
        LanguageModel(loaded(model), 128)
    assert name in str(caught.value)
    assert "cannot be served exactly" in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_window_that_differs_from_the_configured_one_is_refused() -> None:
    model: Any = build(tiny_config("mistral"))
    module: Any = twin(model, NAME)
    model.config.sliding_window = WINDOW + 2
    with pytest.raises(ModelError, match="layer 0 is configured with window 8 but attends with 6"):
        compatibility.observe_layers(loaded(model), module)


class _Remembering(torch.nn.Module):
    """Adds a little of the previous call's state: exact alone, wrong in a batch."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        shifted = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
        out: Tensor = self.inner(x + 0.1 * shifted)
        return out


def test_hidden_state_along_the_row_is_caught_by_the_probe() -> None:
    model: Any = tiny_llama()
    model.model.layers[0].mlp = _Remembering(model.model.layers[0].mlp)
    with pytest.raises(ModelError, match="logits over the ragged cache differ from its own by"):
        LanguageModel(loaded(model), 128)


def test_a_module_that_fails_is_refused_not_crashed_into() -> None:
    model: Any = tiny_llama()

    def fail(*args: object) -> Tensor:
        raise IndexError("planted")

    model.model.layers[0].mlp.forward = fail
    with pytest.raises(ModelError, match=r"fails on a packed row .*planted"):
        LanguageModel(loaded(model), 128)


def test_a_window_no_sequence_outgrows_is_none() -> None:
    config = tiny_config("qwen2", sliding_window=256, layer_types=["full_attention"] * 2)
    LanguageModel(loaded(build(config)), 128)


def test_a_very_short_context_is_probed_too() -> None:
    LanguageModel(loaded(tiny_llama(max_position_embeddings=3)), 128)
