"""What stock `generate` makes of the tiny pair's target: the tokens that every cloud arm owes."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from cloud_server.processors import stock_processors
from common.types import SamplingParams
from tests.models import VOCAB_SIZE, tiny, tiny_tokenizer


@cache
def stock_tokens(prompt: str, count: int, sampling: SamplingParams | None = None) -> list[int]:
    """Writes `count` tokens in this process, through ends of text."""
    prompt_ids = tiny_tokenizer()(prompt)["input_ids"]
    model: Any = tiny("llama")
    whole = model.generate(
        torch.tensor([prompt_ids]),
        max_new_tokens=count,
        do_sample=False,
        logits_processor=stock_processors(
            sampling or SamplingParams(),
            prompt_length=len(prompt_ids),
            vocab_size=VOCAB_SIZE,
            logits_width=VOCAB_SIZE,
        ),
        eos_token_id=None,
    )
    tokens: list[int] = whole[0, len(prompt_ids) :].tolist()
    return tokens
