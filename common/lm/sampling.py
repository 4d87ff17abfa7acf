"""From logits to tokens, as a pure function of (logits, parameters, context, seed, position).

Penalties, temperature and truncation come in Hugging Face's order and meaning. At temperature 0
the token is the argmax; otherwise the argmax of log-probability plus Gumbel noise: a sample of
exactly that distribution (the Gumbel-max trick). The noise depends only on seed, position and
token id, so whoever computes the same logits makes the same choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import LogitsProcessor

from common.errors import InternalError
from common.lm.noise import Stream, gumbel_argmax
from common.types import SamplingParams

COLDEST = 1e-20
"""Temperatures below this are greedy: so they are in effect, and logits over them overflow."""


@dataclass(frozen=True, slots=True)
class Context:
    """Is what stands before a choice: the first `length` of `tokens`, a prompt's first.

    The chosen token will stand at position `length`.
    """

    tokens: Sequence[int]
    length: int
    prompt_length: int


def is_greedy(params: SamplingParams) -> bool:
    """Whether the choice is the likeliest token, without noise."""
    return params.temperature < COLDEST


def choose(
    logits: Tensor,  # [n, vocab]
    contexts: Sequence[Context],
    params: Sequence[SamplingParams],
) -> list[int]:
    """Chooses one token a row.

    Rows are independent: the choice is the same whatever else is in the batch. Raises
    InternalError when a row holds no number to choose from.
    """
    if not len(logits) == len(contexts) == len(params):
        raise InternalError(
            f"{len(logits)} rows of logits, {len(contexts)} contexts, {len(params)} parameters"
        )
    scores = penalise(logits, contexts, params)
    drawn = [row for row, given in enumerate(params) if not is_greedy(given)]
    tokens = scores.argmax(-1)
    if drawn:
        tokens[drawn] = gumbel_argmax(
            truncate(scores[drawn], [params[row] for row in drawn]),
            [params[row].seed for row in drawn],
            [contexts[row].length for row in drawn],
            Stream.CHOICE,
        )
    if not bool(scores.gather(1, tokens[:, None]).isfinite().all()):
        raise InternalError("the logits hold no finite maximum: the model produced NaN or infinity")
    chosen: list[int] = tokens.tolist()
    return chosen


def distribution(
    logits: Tensor,  # [n, vocab]
    contexts: Sequence[Context],
    params: Sequence[SamplingParams],
) -> Tensor:
    """Returns the float64 probabilities `[n, vocab]` that `choose` samples from; one-hot if greedy.

    Raises InternalError as `choose` does.
    """
    scores = penalise(logits, contexts, params)
    drawn = [row for row, given in enumerate(params) if not is_greedy(given)]
    probabilities = torch.zeros_like(scores, dtype=torch.float64)
    probabilities.scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
    if drawn:
        kept = truncate(scores[drawn], [params[row] for row in drawn])
        probabilities[drawn] = kept.double().softmax(-1)
    if not bool(probabilities.isfinite().all()):
        raise InternalError("the logits hold no finite maximum: the model produced NaN or infinity")
    return probabilities


def penalise(
    logits: Tensor, contexts: Sequence[Context], params: Sequence[SamplingParams]
) -> Tensor:
    """Applies the penalties to `[n, vocab]` logits, in float32; rows without any are left alone."""
    scores = logits.float()
    for row, (context, given) in enumerate(zip(contexts, params, strict=True)):
        if given.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(context.tokens[: context.length])))
            picked = scores[row, seen]
            scores = scores.clone()
            scores[row, seen] = torch.where(
                picked < 0, picked * given.repetition_penalty, picked / given.repetition_penalty
            )
        if given.presence_penalty or given.frequency_penalty:
            written = torch.tensor(context.tokens[context.prompt_length : context.length]).long()
            counts = torch.bincount(written, minlength=scores.shape[1])
            scores = scores.clone()
            scores[row] -= given.frequency_penalty * counts + given.presence_penalty * (counts > 0)
    return scores


def truncate(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Applies temperature, top-k, top-p and min-p to `[n, vocab]`; what is cut becomes -inf."""
    scores = scores.clone()
    groups: dict[SamplingParams, list[int]] = defaultdict(list)
    for row, given in enumerate(params):
        groups[replace(given, seed=0)].append(row)
    for given, rows in groups.items():
        scores[rows] = warp(scores[rows], given.temperature, given.top_k, given.top_p, given.min_p)
    return scores


def warp(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Applies temperature, top-k, top-p and min-p to `[n, vocab]`; what is cut becomes -inf."""
    scores = logits / temperature
    if top_k > 0:
        least = scores.topk(min(top_k, scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if top_p < 1.0:
        ascending, order = scores.sort()
        cut = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        cut[:, -1] = False  # the likeliest token always stays
        scores = scores.masked_fill(cut.scatter(1, order, cut), float("-inf"))
    if min_p > 0.0:
        probabilities = scores.softmax(-1)
        cut = probabilities < min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(cut, float("-inf"))
    return scores


class PositionKeyedSampling(LogitsProcessor):
    """Makes stock `generate(do_sample=False)` choose as `choose` does.

    All scores become -inf but that of the chosen token, so tokens beyond `vocab_size` are never
    produced either.
    """

    def __init__(self, params: SamplingParams, vocab_size: int, prompt_length: int) -> None:
        """Takes the parameters of the one generation this processor serves."""
        self._params = params
        self._vocab_size = vocab_size
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Maps `[n, vocab]` scores after `[n, position]` tokens to 0 for the choice, else -inf."""
        rows, position = input_ids.shape
        contexts = [Context(row, position, self._prompt_length) for row in input_ids.tolist()]
        tokens = choose(scores[:, : self._vocab_size], contexts, [self._params] * rows)
        chosen = torch.full_like(scores, float("-inf"))
        chosen[torch.arange(rows), tokens] = 0.0
        return chosen
