"""The choice of a token as stock generate makes it: Hugging Face's own processors, then ours.

common/lm/sampling.py makes the same choice for the sessions of verified generation; that two
programs do so is what makes their agreement worth something.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from common.lm.noise import Stream, gumbel_argmax
from common.types import SamplingParams


def stock_processors(
    params: SamplingParams, *, prompt_length: int, vocab_size: int, logits_width: int
) -> LogitsProcessorList:
    """Returns what makes `generate(do_sample=False)` follow the parameters.

    `logits_width` may exceed `vocab_size`; the tokens beyond are never made.
    """
    chain = LogitsProcessorList()
    if logits_width > vocab_size:
        chain.append(_WithinVocabulary(vocab_size))
    if params.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.presence_penalty or params.frequency_penalty:
        chain.append(_WrittenTokensPenalty(params, prompt_length))
    if params.is_greedy:
        return chain
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    chain.append(_PositionKeyedNoise(params.seed))
    return chain


class _WithinVocabulary(LogitsProcessor):
    """Leaves the columns of real tokens: with more, even at -inf, ties would sort otherwise."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores[:, : self._vocab_size]


class _WrittenTokensPenalty(LogitsProcessor):
    """Applies presence and frequency penalties, which transformers does not have."""

    def __init__(self, params: SamplingParams, prompt_length: int) -> None:
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, tokens in enumerate(input_ids):
            counts = tokens[self._prompt_length :].bincount(minlength=scores.shape[1])
            scores[row] -= self._frequency * counts + self._presence * (counts > 0)
        return scores


class _PositionKeyedNoise(LogitsProcessor):
    """Leaves one token, drawn from what the processors before have left: all others become -inf."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows, position = input_ids.shape
        drawn = gumbel_argmax(scores, [self._seed] * rows, [position] * rows, Stream.CHOICE)
        left = torch.full_like(scores, -math.inf)
        left[torch.arange(rows), drawn] = 0.0
        return left
