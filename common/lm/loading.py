"""A model and its tokenizer from a directory or the hub, at a stated dtype, with its identity."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from common.errors import ConfigError, ModelError
from common.lm import checkpoint, custom_code, hub, tokenizers
from common.lm.context import context_limit
from common.lm.precision import resolve_dtype
from common.lm.wording import brief, quiet


@dataclass(frozen=True)
class LoadedModel:
    """Holds a stock transformers module, in eval mode and without gradients, and its identity.

    `vocab_size` is the effective vocabulary: logits may be wider, ids beyond it are never chosen.
    `checkpoint_dtype` is what the file stores; `dtype` is what runs.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    checkpoint_dtype: str
    device: torch.device
    vocab_size: int
    context_length: int
    context_note: str
    eos_token_ids: tuple[int, ...]
    model_fingerprint: str
    tokenizer_fingerprint: str

    @property
    def short_name(self) -> str:
        """What others are told: of a folder its last name only, a hub id whole."""
        folder = Path(self.name)
        return folder.absolute().name if folder.is_dir() else self.name

    @property
    def architecture(self) -> str:
        """Class name of the module, such as LlamaForCausalLM."""
        return type(self.model).__name__

    @property
    def parameters(self) -> int:
        """Numbers in the model, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def load(
    path_or_id: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LoadedModel:
    """Loads a decoder-only model from a directory, or from the hub by its id.

    Its own Python code runs only with `trust_remote_code`, and pickled weights are read, by
    torch's restricted unpickler, only with `allow_pickle` and without safetensors. Raises
    ModelError for anything missing or of another kind, ConfigError for an unknown dtype or device.
    """
    target_dtype, target_device = resolve_dtype(dtype), resolve_device(device)
    directory = hub.resolve(
        path_or_id, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle
    )
    config = load_config(directory, trust_remote_code=trust_remote_code)
    tensors = checkpoint.stored_tensors(directory, allow_pickle=allow_pickle)
    with quiet():
        tokenizer = tokenizers.load_tokenizer(directory, trust_remote_code=trust_remote_code)
        model = _load_module(directory, config, target_dtype, trust_remote_code)
    # Before the module runs: some change their configuration as they go.
    fingerprint = checkpoint.fingerprint_model(config.to_dict(), tensors)
    return describe(
        model.to(target_device),  # type: ignore[arg-type]
        tokenizer,
        name=path_or_id,
        checkpoint_dtype=checkpoint.describe_dtype(tensors),
        model_fingerprint=fingerprint,
    )


def load_config(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Reads a model's configuration and refuses by name what is no decoder-only language model."""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others
        if not trust_remote_code and custom_code.names_code(directory):
            raise custom_code.untrusted(directory) from error
        raise ModelError(
            f"{directory} has no configuration that transformers can read: {brief(error)}"
        ) from error
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{directory}: {kind} is an encoder-decoder; only decoders are served")
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"{directory}: {kind} with quantised weights; name the unquantised checkpoint"
        )
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return cast(PreTrainedConfig, config)
    if not trust_remote_code and custom_code.names_code(directory):
        raise custom_code.untrusted(directory)
    if "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        raise ModelError(f"{directory}: {kind} is not a decoder-only causal language model")
    return cast(PreTrainedConfig, config)


def resolve_device(name: str) -> torch.device:
    """Finds the device of `auto`, `cpu`, `cuda` or `cuda:N`; raises ConfigError otherwise."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if name == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or (index and not index.isdecimal()) or name.endswith(":"):
        raise ConfigError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N")
    number, present = int(index or 0), torch.cuda.device_count()
    if number >= present:
        raise ConfigError(f"device {name!r} asked for, but {present} CUDA devices are present")
    return torch.device("cuda", number)


def describe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    checkpoint_dtype: str,
    model_fingerprint: str,
) -> LoadedModel:
    """Freezes a module that is already in memory and states what is known about it."""
    module: Any = model.train(False)
    module.requires_grad_(False)
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        # Some versions of transformers let sdpa run here, which ignores the cap without a word.
        with quiet():
            model.set_attn_implementation("eager")
    vocab_size = tokenizers.vocabulary_size(tokenizer)
    width = module.get_output_embeddings().weight.shape[0]
    if vocab_size > width:
        raise ModelError(
            f"{name}: the tokenizer has {vocab_size} tokens but the model only {width} logits; "
            "use the tokenizer the model was trained with"
        )
    length, note = context_limit(model.config, name)
    return LoadedModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        dtype=model.dtype,
        checkpoint_dtype=checkpoint_dtype,
        device=model.device,
        vocab_size=vocab_size,
        context_length=length,
        context_note=note,
        eos_token_ids=_eos_token_ids(model, tokenizer),
        model_fingerprint=model_fingerprint,
        tokenizer_fingerprint=tokenizers.fingerprint_tokenizer(tokenizer),
    )


def twin(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """Makes a second module over the same parameters and buffers, with another attention.

    Only Python objects are copied: both modules read the same storage.
    """
    shared: list[Tensor] = [*model.parameters(), *model.buffers()]
    copied = copy.deepcopy(model, memo={id(tensor): tensor for tensor in shared})
    with quiet():
        copied.set_attn_implementation(attention)
    return copied


def _load_module(
    directory: Path, config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool
) -> PreTrainedModel:
    try:
        loader: Any = AutoModelForCausalLM
        model, info = loader.from_pretrained(
            directory,
            config=copy.deepcopy(config),
            dtype=dtype,
            use_safetensors=checkpoint.has_safetensors(directory),
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError and others
        raise ModelError(f"{directory} cannot be loaded: {brief(error)}") from error
    # transformers would fill what is absent with random numbers and say so in a warning.
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(key) for key in info.get(problem) or ()):
            raise ModelError(
                f"{directory}: {len(names)} weights {problem.removesuffix('_keys')}, "
                f"{names[0]} first; the checkpoint does not fit its config.json"
            )
    return cast(PreTrainedModel, model)


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    generation: GenerationConfig | None = model.generation_config
    for source in (generation, model.config.get_text_config(), tokenizer):
        given: Any = getattr(source, "eos_token_id", None)
        if given is not None:
            return (given,) if isinstance(given, int) else tuple(given)
    return ()
