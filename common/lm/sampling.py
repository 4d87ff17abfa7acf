"""From logits to tokens, as a pure function of (logits, parameters, context, seed, position).

Penalties, temperature and truncation come in Hugging Face's order and meaning. At temperature 0
the token is the argmax; otherwise the argmax of log-probability plus Gumbel noise: a sample of
exactly that distribution (the Gumbel-max trick). The noise depends only on seed, position and
token id, so whoever computes the same logits makes the same choice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import InternalError
from common.lm.noise import Stream, gumbel_argmax, gumbel_argmax_there
from common.lm.staging import staged
from common.types import SamplingParams

_DOUBT = 2e-6
"""Share by which a float32 sum over a vocabulary may stray on a CPU, four times over."""


@dataclass(frozen=True, slots=True)
class Context:
    """Is what stands before a choice: the first `length` of `tokens`, a prompt's first.

    The chosen token will stand at position `length`.
    """

    tokens: Sequence[int]
    length: int
    prompt_length: int


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
    tokens: list[int]
    if logits.is_cuda:
        tokens = choose_there(logits, contexts, params).tolist()
        if min(tokens, default=0) < 0:
            raise no_maximum()
        return tokens
    scores = penalise(logits, contexts, params)
    tokens = _likeliest(scores)
    drawn = [row for row, given in enumerate(params) if not given.is_greedy]
    if drawn:
        choices = gumbel_argmax(
            _finite(truncate(scores[drawn], [params[row] for row in drawn])),
            [params[row].seed for row in drawn],
            [contexts[row].length for row in drawn],
            Stream.CHOICE,
        )
        for row, token in zip(drawn, choices, strict=True):
            tokens[row] = token
    return tokens


def choose_there(
    logits: Tensor,  # [n, vocab]
    contexts: Sequence[Context],
    params: Sequence[SamplingParams],
) -> Tensor:
    """Chooses as `choose` does, on the logits' device and without waiting for it: `[n]`.

    A row that holds no number to choose from gets -1.
    """
    scores = penalise(logits, contexts, params)
    tokens, best = scores.argmax(-1), scores.amax(-1)
    drawn = [row for row, given in enumerate(params) if not given.is_greedy]
    if drawn:
        rows = staged(drawn, logits.device)
        kept = truncate(scores[rows], [params[row] for row in drawn])
        best = best.index_copy(0, rows, best[rows] + kept.amax(-1))
        choices = gumbel_argmax_there(
            kept,
            [params[row].seed for row in drawn],
            [contexts[row].length for row in drawn],
            Stream.CHOICE,
        )
        tokens = tokens.index_copy(0, rows, choices)
    return torch.where(best.isfinite(), tokens, -1)


def distribution(
    logits: Tensor,  # [n, vocab]
    contexts: Sequence[Context],
    params: Sequence[SamplingParams],
) -> Tensor:
    """Returns the float64 probabilities `[n, vocab]` that `choose` samples from; one-hot if greedy.

    Raises InternalError as `choose` does.
    """
    scores = _finite(penalise(logits, contexts, params))
    drawn = [row for row, given in enumerate(params) if not given.is_greedy]
    probabilities = torch.zeros_like(scores, dtype=torch.float64)
    probabilities.scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
    if drawn:
        kept = _finite(truncate(scores[drawn], [params[row] for row in drawn]))
        probabilities[drawn] = kept.double().softmax(-1)
    return probabilities


def penalise(
    logits: Tensor, contexts: Sequence[Context], params: Sequence[SamplingParams]
) -> Tensor:
    """Applies the penalties to `[n, vocab]` logits, in float32.

    The repetition penalty regards the prompt as well, as Hugging Face's does; presence and
    frequency regard what was generated, as OpenAI's API defines them.
    """
    scores = logits.float()
    changed = [row for row, given in enumerate(params) if _penalises(given)]
    if changed:
        scores = scores.clone()
    for row in changed:
        context, given = contexts[row], params[row]
        tokens = staged(context.tokens[: context.length], scores.device)
        if given.repetition_penalty != 1.0:
            seen = scores[row, tokens]
            penalty = given.repetition_penalty
            scores[row, tokens] = torch.where(seen < 0, seen * penalty, seen / penalty)
        generated = tokens[context.prompt_length :]
        counts = tokens.new_zeros(scores.shape[1])
        counts.scatter_add_(0, generated, torch.ones_like(generated))  # bincount would wait
        scores[row] -= given.frequency_penalty * counts + given.presence_penalty * (counts > 0)
    return scores


def truncate(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Applies temperature, top-k, top-p and min-p to `[n, vocab]`; what is cut becomes -inf."""
    scores = scores.clone()
    groups: dict[tuple[float, int, float, float], list[int]] = defaultdict(list)
    for row, given in enumerate(params):
        groups[given.temperature, given.top_k, given.top_p, given.min_p].append(row)
    for how, members in groups.items():
        rows = staged(members, scores.device)
        scores[rows] = warp(scores[rows], *how)
    return scores


def warp(
    logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """Applies temperature, top-k, top-p and min-p to `[n, vocab]`; what is cut becomes -inf."""
    scores = logits / temperature
    if top_k > 0:
        least = scores.topk(min(top_k, scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -math.inf)
    if top_p < 1.0:
        scores = _keep_head(scores, top_p)
    if min_p > 0.0:
        probabilities = scores.softmax(-1)
        cut = probabilities < min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(cut, -math.inf)
    return scores


def no_maximum() -> InternalError:
    """Says that logits hold nothing to choose from."""
    return InternalError("the logits hold no finite maximum: the model produced NaN or infinity")


def _keep_head(scores: Tensor, top_p: float) -> Tensor:
    """Cuts all but the likeliest tokens that together reach `top_p`.

    Sorts the scores alone, in a fifth of the time that sorting with their places takes.
    """
    if scores.is_cuda:
        return _keep_head_as_stock(scores, top_p)
    ascending = torch.from_numpy(np.sort(scores.numpy(), axis=-1))
    below = ascending.double().softmax(-1).cumsum(-1)  # of each token and all less likely ones
    cut = below <= 1 - top_p
    cut[:, -1] = False  # the likeliest token always stays
    num_cut = cut.sum(-1, keepdim=True)
    kept = scores.masked_fill(scores < ascending.gather(1, num_cut), -math.inf)
    unclear = ((below - (1 - top_p)).abs() < _DOUBT * (1 - top_p)).any(-1)
    unclear |= kept.isfinite().sum(-1) + num_cut[:, 0] != scores.shape[1]  # a tie at the edge
    if bool(unclear.any()):
        kept[unclear] = _keep_head_as_stock(scores[unclear], top_p)
    return kept


def _keep_head_as_stock(scores: Tensor, top_p: float) -> Tensor:
    """Does so in Hugging Face's very operations, which decide where rounding or ties would."""
    ascending, order = scores.sort()
    cut = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    cut[:, -1] = False
    return scores.masked_fill(cut.scatter(1, order, cut), -math.inf)


def _penalises(given: SamplingParams) -> bool:
    return (given.repetition_penalty, given.presence_penalty, given.frequency_penalty) != (1, 0, 0)


def _likeliest(scores: Tensor) -> list[int]:
    """Returns the first of each row's largest `[n, vocab]`; raises as `choose`.

    By numpy, which compares many numbers at once where torch goes one by one; its maximum is the
    first that is not a number, where there is any.
    """
    tokens = []
    for row in scores.numpy(force=True):
        token = int(row.argmax())
        if not math.isfinite(row[token]):
            raise no_maximum()
        tokens.append(token)
    return tokens


def _finite(scores: Tensor) -> Tensor:
    if not bool(scores.amax(-1).isfinite().all()):
        raise no_maximum()
    return scores
