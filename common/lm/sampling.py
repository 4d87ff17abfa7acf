"""From logits to tokens, as a pure function of (logits, parameters, seed, position).

Temperature 0 is argmax. Otherwise logits are divided by the temperature and truncated by top-k,
then top-p, in Hugging Face's order and meaning, and the token is the argmax of log-probability
plus Gumbel noise: a sample of exactly that distribution (the Gumbel-max trick). The noise depends
only on seed, position and token id, so whoever computes the same logits makes the same choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from common.errors import InternalError
from common.lm.philox import gumbel_noise
from common.types import SamplingParams

COLDEST = 1e-20
"""Temperatures below this are greedy: so they are in effect, and logits over them overflow."""


def choose(
    logits: Tensor,  # [n, vocab]
    positions: Sequence[int],
    params: Sequence[SamplingParams],
) -> list[int]:
    """Chooses one token a row; `positions` says where each chosen token will stand.

    Rows are independent: the choice is the same whatever else is in the batch. Raises
    InternalError when a row holds no number to choose from.
    """
    if not len(logits) == len(positions) == len(params):
        raise InternalError(
            f"{len(logits)} rows of logits, {len(positions)} positions, {len(params)} parameters"
        )
    scores = logits
    groups: dict[tuple[float, int, float], list[int]] = defaultdict(list)
    for row, given in enumerate(params):
        if given.temperature >= COLDEST:
            groups[given.temperature, given.top_k, given.top_p].append(row)
    if groups:
        scores = logits.float().clone()
        for (temperature, top_k, top_p), rows in groups.items():
            noise = gumbel_noise(
                [params[row].seed for row in rows],
                [positions[row] for row in rows],
                logits.shape[1],
                logits.device,
            )
            warped = warp(scores[rows], temperature, top_k, top_p)
            scores[rows] = warped.log_softmax(-1) + noise
    best, tokens = scores.max(-1)
    if not bool(best.isfinite().all()):
        raise InternalError("the logits hold no finite maximum: the model produced NaN or infinity")
    chosen: list[int] = tokens.tolist()
    return chosen


def warp(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Applies temperature, top-k and top-p to `[n, vocab]` logits; what is cut becomes -inf."""
    scores = logits / temperature
    if top_k > 0:
        least = scores.topk(min(top_k, scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if top_p < 1.0:
        ascending, order = scores.sort()
        cut = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        cut[:, -1] = False  # the likeliest token always stays
        scores = scores.masked_fill(cut.scatter(1, order, cut), float("-inf"))
    return scores


class PositionKeyedSampling(LogitsProcessor):
    """Makes stock `generate(do_sample=False)` choose as `choose` does.

    All scores become -inf but that of the chosen token, so tokens beyond `vocab_size` are never
    produced either.
    """

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        """Takes the parameters of the one generation this processor serves."""
        self._params = params
        self._vocab_size = vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Maps `[n, vocab]` scores after `[n, position]` tokens to 0 for the choice, else -inf."""
        rows, position = input_ids.shape
        tokens = choose(scores[:, : self._vocab_size], [position] * rows, [self._params] * rows)
        chosen = torch.full_like(scores, float("-inf"))
        chosen[torch.arange(rows), tokens] = 0.0
        return chosen
