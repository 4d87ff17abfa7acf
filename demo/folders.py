"""Model folders as `transformers` knows them: written whole, and read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from corpora import END_OF_TEXT_ID, END_OF_TURN_ID, MissingError
from llama import Llama, Shape
from safetensors.torch import load_file, save_file


def config_json(shape: Shape) -> dict[str, Any]:
    """What `config.json` says of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END_OF_TEXT_ID,
        "dtype": "float32",
        "eos_token_id": [END_OF_TEXT_ID, END_OF_TURN_ID],
        "head_dim": shape.head,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": END_OF_TEXT_ID,
        "rms_norm_eps": shape.epsilon,
        "rope_parameters": {"rope_theta": shape.theta, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }


def generation_json() -> dict[str, Any]:
    """What `generation_config.json` says: greedy, ended by either end token."""
    return {
        "bos_token_id": END_OF_TEXT_ID,
        "do_sample": False,
        "eos_token_id": [END_OF_TEXT_ID, END_OF_TURN_ID],
        "pad_token_id": END_OF_TEXT_ID,
    }


def shape_of(folder: Path) -> Shape:
    """The shape that a model folder's `config.json` tells."""
    file = folder / "config.json"
    if not file.is_file():
        raise MissingError(f"no model in {folder}: {file.name} is missing; train it first")
    config = json.loads(file.read_text(encoding="utf-8"))
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
    )


def load(folder: Path) -> Llama:
    """A model saved by `save` or by `transformers`, on the processor."""
    model = Llama(shape_of(folder))
    weights = load_file(folder / "model.safetensors")
    weights.pop("lm_head.weight", None)
    model.load_state_dict(weights)
    return model.eval()


def save(model: Llama, folder: Path, tokenizer: Path, extra: dict[str, str]) -> None:
    """Write a model folder whole: built beside its place, then swapped in by a rename.

    `tokenizer` is the folder that holds the tokenizer's files; `extra` maps further file names
    (model card, loss curve) to their text.
    """
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    weights = {
        name: value.detach().to("cpu", torch.float32).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, fresh / "model.safetensors", metadata={"format": "pt"})
    (fresh / "model.safetensors").chmod(0o644)
    for name, content in (
        ("config.json", config_json(model.shape)),
        ("generation_config.json", generation_json()),
    ):
        (fresh / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for path in sorted(tokenizer.iterdir()):
        shutil.copyfile(path, fresh / path.name)
    for name, text in extra.items():
        (fresh / name).write_text(text, encoding="utf-8")
    stale = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(stale, ignore_errors=True)
    if folder.exists():
        os.rename(folder, stale)
    os.rename(fresh, folder)
    shutil.rmtree(stale, ignore_errors=True)
