"""Models of the form of Llama, a whole step of few tokens by one call (kernels/decoder.h).

The form is known by the classes of transformers that have it; what the layers do beyond it, their
windows and scales, is taken from the calls they were seen to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.lm.attention import LayerCall, Span, places
from common.lm.kv_cache import KVCache

_FORMS = frozenset(
    f"transformers.models.{name.lower()}.modeling_{name.lower()}.{name}ForCausalLM"
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3")
)
_STEADY_ROTATIONS = frozenset({"default", "linear", "llama3", "yarn"})
"""Those whose frequencies do not depend on how long a sequence is."""


class Decoder:
    """Runs steps of up to `most_tokens`, over the weights the module has."""

    def __init__(self, module: PreTrainedModel, calls: Sequence[LayerCall]) -> None:
        """Takes a module that `has_form`, and how each of its layers attends."""
        self.most_tokens: int = torch.ops.outrider.most_tokens()
        config, model = module.config, module.model
        weights = [model.embed_tokens.weight, model.norm.weight, *_linear(module.lm_head)]
        for layer in model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            weights += [layer.input_layernorm.weight, layer.post_attention_layernorm.weight]
            for norm in ("q_norm", "k_norm"):
                weights.append(getattr(getattr(attention, norm, None), "weight", None))
            for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
                weights += _linear(part)
            for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
                weights += _linear(part)
        rotation = model.rotary_emb
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._run: Any = torch.classes.outrider.Decoder(
            [None if weight is None else weight.detach() for weight in weights],
            [heads, kv_heads, model.layers[0].self_attn.head_dim],
            [config.rms_norm_eps, float(rotation.attention_scaling)],
            [call.window or 0 for call in calls],
            [call.scaling for call in calls],
            rotation.inv_freq.tolist(),
        ).run

    def __call__(
        self, cache: KVCache, spans: Sequence[Span], tokens: list[int], rows: list[int]
    ) -> Tensor:
        """Returns logits `[len(rows), width]` of some rows of a step."""
        logits: Tensor = self._run(tokens, places(cache, spans), cache.keys, cache.values, rows)
        return logits


def has_form(module: PreTrainedModel, calls: Sequence[LayerCall]) -> bool:
    """Whether a module is one that `Decoder` can run."""
    kind = type(module)
    return (
        f"{kind.__module__}.{kind.__name__}" in _FORMS
        and module.config.hidden_act == "silu"
        and module.model.rotary_emb.rope_type in _STEADY_ROTATIONS
        and 2 * len(module.model.rotary_emb.inv_freq) == module.model.layers[0].self_attn.head_dim
        and not any(call.softcap for call in calls)
    )


def _linear(part: nn.Linear) -> list[Tensor | None]:
    return [part.weight, part.bias]
