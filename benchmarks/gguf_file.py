"""A model's weights as a GGUF file, which llama.cpp reads: float32, and no vocabulary but its size.

Needs the extra `bench`, but for what is pure: names, entries and the order of rows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from common.lm.loading import LoadedModel

_ROTATED_IN_PAIRS = {"llama": True, "qwen2": False}
"""The architectures written; whether llama.cpp turns neighbours, or d with d + half, as here."""

_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(loaded: LoadedModel, file: Path) -> None:
    """Writes a Llama or a Qwen2 in float32; raises ValueError for what the file could not say."""
    import gguf

    config, module = loaded.model.config, loaded.model
    kind, shape = config.model_type, entries(config)
    writer: Any = gguf.GGUFWriter(file, kind)
    writer.add_tokenizer_model("no_vocab")
    for name, value in shape.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{kind}.{name}", value)
    for name, parameter in module.named_parameters():  # a tied head is no parameter of its own
        weight = parameter.detach().numpy()
        if _ROTATED_IN_PAIRS[kind] and ".q_proj." in name:
            weight = in_pairs(weight, config.num_attention_heads)
        if _ROTATED_IN_PAIRS[kind] and ".k_proj." in name:
            weight = in_pairs(weight, config.num_key_value_heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def entries(config: PreTrainedConfig) -> dict[str, int | float]:
    """Returns what llama.cpp has to know of a model's shape, by its names less the architecture.

    Raises ValueError for an architecture or a rotation that is not written.
    """
    rotation: dict[str, Any] = config.rope_parameters
    if config.model_type not in _ROTATED_IN_PAIRS or rotation["rope_type"] != "default":
        raise ValueError(f"no GGUF is written of {config.model_type} with {rotation['rope_type']}")
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": size,
        "rope.freq_base": float(rotation["rope_theta"]),
    }


def gguf_name(name: str) -> str:
    """Returns llama.cpp's name of a parameter, given transformers'; raises ValueError if none."""
    found = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    if found is None or found[2] not in _PARTS:
        raise ValueError(f"llama.cpp has no name for {name}")
    layer, part, kind = found.groups()
    return f"{'' if layer is None else f'blk.{layer}.'}{_PARTS[part]}.{kind}"


def in_pairs(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Orders the rows `[heads × size, ...]` so that d and d + size / 2 of a head are neighbours.

    Scores do not change, as queries and keys are ordered alike.
    """
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)
