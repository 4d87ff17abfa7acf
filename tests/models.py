"""Tiny random models and a tokenizer, made in code: nothing is downloaded.

Weights are large on purpose: the two best logits are then far apart, so that rounding never
decides a token and token-for-token comparisons are meaningful.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from common.lm.execution import CompileMode
from common.lm.loading import LoadedModel, describe
from common.lm.runner import LanguageModel
from common.lm.wording import quiet

VOCAB_SIZE = 320
EOS = "<|endoftext|>"
WINDOW = 6
"""Sliding window of the architectures that have one; shorter than the tests' contexts."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

_CORPUS = [
    "Once upon a time there was a little bird who liked to sing in the old tree.",
    "The cat and the dog said that they would go to the park with the other children.",
    "One day, she found a small box. Inside the box there was a shiny red ball.",
    "user: What is the name of the river? assistant: The name of the river is Lune.",
]

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}

_GPT2_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "eos_token_id": 0,
    "bos_token_id": None,
}

_SLIDING_SECOND = {"sliding_window": WINDOW, "layer_types": ["full_attention", "sliding_attention"]}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, **_SLIDING_SECOND},
    "qwen3": {},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, **_SLIDING_SECOND},
    "gemma3_text": {"query_pre_attn_scalar": 8, **_SLIDING_SECOND},
    "gpt2": _GPT2_SIZES,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "phi3": {"sliding_window": WINDOW},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "stablelm": {"use_qkv_bias": True},
    "olmo2": {},
    "starcoder2": {"sliding_window": WINDOW},
    "cohere": {"logit_scale": 1.0},
    "gpt_neox": {},
    "granite": {},
    "cohere2": {"logit_scale": 1.0, **_SLIDING_SECOND},
    "phi": {},
    "mixtral": {"num_local_experts": 4},
    "gemma": {},
    "olmo3": _SLIDING_SECOND,
    "exaone4": _SLIDING_SECOND,
    "smollm3": {},
    "glm4": {},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
    },
}
"""Architectures the engine serves, with what their configuration adds to the common sizes."""


def tiny_config(architecture: str, **overrides: Any) -> PreTrainedConfig:
    """Builds a small configuration of any model type transformers knows."""
    given = ARCHITECTURES.get(architecture, {})
    sizes = {} if architecture == "gpt2" else _SIZES
    return AutoConfig.for_model(architecture, **{**sizes, **given, **overrides})


def build(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Builds a random float32 model whose logits vary strongly from token to token."""
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        factory: Any = AutoModelForCausalLM
        model = cast(PreTrainedModel, factory.from_config(config))
        model.train(False).requires_grad_(False)
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                table = any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
                torch.nn.init.normal_(parameter, std=0.6 if table else 0.25)
    return model


@cache
def tiny(architecture: str, seed: int = 0) -> PreTrainedModel:
    """Returns a cached random model of one of `ARCHITECTURES`; do not change it."""
    return build(tiny_config(architecture), seed)


def tiny_llama(seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Builds a random Llama with the given configuration entries."""
    return build(tiny_config("llama", **overrides), seed)


@cache
def tiny_tokenizer(vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE of at most `vocab_size` entries; id 0 is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return wrap(tokenizer)


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Gives a bare tokenizer the end-of-text token and the chat template."""
    factory: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = factory(tokenizer_object=tokenizer, eos_token=EOS)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def loaded(model: PreTrainedModel, name: str = "tiny") -> LoadedModel:
    """Describes a model in memory as `load` would, without a file."""
    return describe(
        model,
        tiny_tokenizer(),
        name=name,
        checkpoint_dtype="float32",
        model_fingerprint="0" * 64,
    )


def language_model(
    architecture: str = "llama",
    cache_tokens: int = 1024,
    seed: int = 0,
    compile_mode: CompileMode = "off",
) -> LanguageModel:
    """Builds a runner over a cached tiny model."""
    model = loaded(tiny(architecture, seed), architecture)
    return LanguageModel(model, cache_tokens, compile_mode)


def noised_copy(model: PreTrainedModel, noise: float, seed: int = 1) -> PreTrainedModel:
    """Copies a model and disturbs each weight by `noise` of its tensor's spread."""
    copied = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in copied.parameters():
            if parameter.ndim >= 2:
                parameter.add_(noise * parameter.std() * torch.randn_like(parameter))
    return copied


def save(model: PreTrainedModel, directory: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes a model, stored in `dtype`, and the tiny tokenizer to a directory."""
    with quiet():
        copy.deepcopy(model).to(dtype).save_pretrained(directory)  # type: ignore[arg-type]
        tiny_tokenizer().save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Pair:
    """Names the directories of a target and a draft that share a tokenizer."""

    target: Path
    draft: Path


def save_pair(
    directory: Path,
    noise: float = 0.05,
    target: Callable[[], PreTrainedModel] = lambda: tiny_llama(),
) -> Pair:
    """Writes a target and a noised copy of it as draft, which guesses some tokens right."""
    model = target()
    return Pair(
        save(model, directory / "target"),
        save(noised_copy(model, noise), directory / "draft"),
    )
