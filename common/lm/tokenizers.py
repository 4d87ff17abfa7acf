"""The tokenizer beside a model: loading it, its effective vocabulary, its fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.errors import ModelError
from common.lm import custom_code
from common.lm.wording import brief

_NOT_IDENTITY = ("version", "truncation", "padding", "post_processor", "decoder")
"""Parts of a tokenizer.json that do not decide which id a piece of text gets."""


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model directory; raises ModelError when there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # transformers raises whatever the tokenizer class meets
        if not trust_remote_code and custom_code.names_code(directory, "tokenizer_config.json"):
            raise custom_code.untrusted(directory) from error
        raise ModelError(_no_tokenizer(directory, brief(error))) from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or vocabulary_size(tokenizer) < 2:
        raise ModelError(_no_tokenizer(directory, "it has no vocabulary"))
    return tokenizer


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Counts the effective vocabulary: one more than the highest id the tokenizer knows."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hashes what maps text to ids: vocabulary, merges, normaliser, pre-tokeniser, added tokens.

    Padding, truncation, the chat template and which tokens are put before or after a prompt are
    left out: one process tokenizes, so two ends that differ in these still agree on every id.
    """
    parts: dict[str, Any] = {"vocabulary": tokenizer.get_vocab()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        parts |= {key: value for key, value in state.items() if key not in _NOT_IDENTITY}
    else:
        parts["class"] = type(tokenizer).__name__
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _no_tokenizer(directory: Path, reason: str) -> str:
    return (
        f"{directory} has no usable tokenizer ({reason}): "
        "put tokenizer.json and tokenizer_config.json beside the weights"
    )
