"""One guess of the draft model: how it is chosen, and how sure the model is of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.lm.noise import Stream, gumbel_argmax
from common.lm.sampling import Context, choose, distribution
from common.types import MAX_WEIGHT, DraftDistribution, SamplingParams
from edge_client.policy import Doubt, Gate


def coupled_guess(logits: Tensor, context: Context, sampling: SamplingParams) -> int:
    """Guesses what the target would choose if it had these logits `[1, vocab]`."""
    return choose(logits, [context], [sampling])[0]


def drawn_guess(
    logits: Tensor, context: Context, sampling: SamplingParams, candidates: int
) -> tuple[int, DraftDistribution]:
    """Draws a guess from the `candidates` likeliest by logits `[1, vocab]`, and says from what."""
    return drawn_guesses(logits, [context], [sampling], candidates)[0]


def drawn_guesses(
    logits: Tensor,  # [n, vocab]
    contexts: Sequence[Context],
    params: Sequence[SamplingParams],
    candidates: int,
) -> list[tuple[int, DraftDistribution]]:
    """Draws one guess a row as `drawn_guess` does.

    Probabilities are rounded to whole weights first and the guess is drawn from those, so that
    what the server is told is exactly what was done.
    """
    probabilities = distribution(logits, contexts, params)
    likeliest = probabilities.topk(min(candidates, probabilities.shape[1]))
    shares = likeliest.values
    weights = (shares / shares[:, :1] * MAX_WEIGHT).round().clamp(min=1)
    weights = weights.masked_fill(shares == 0, 0)  # what truncation cut is no candidate
    scores = torch.full_like(probabilities, float("-inf"), dtype=torch.float32)
    scores.scatter_(1, likeliest.indices, weights.log().float())
    seeds, positions = [given.seed for given in params], [context.length for context in contexts]
    drawn = gumbel_argmax(scores, seeds, positions, Stream.GUESS)
    origins = [
        DraftDistribution(tuple(ids[:alive]), tuple(whole[:alive]))
        for ids, whole, alive in zip(
            likeliest.indices.tolist(),
            weights.long().tolist(),
            (shares > 0).sum(-1).tolist(),
            strict=True,
        )
    ]
    return list(zip(drawn, origins, strict=True))


def confidence(logits: Tensor, guess: int) -> float:
    """Returns the probability that the model with logits `[1, vocab]` gives its guess."""
    return float(logits[0].double().softmax(-1)[guess])


def is_sure(gate: Gate, logits: Tensor, guess: int) -> bool:
    """Whether the model with logits `[1, vocab]` is sure enough of its guess for the gate."""
    logprobs = logits[0].double().log_softmax(-1)
    if gate.doubt is Doubt.ENTROPY:
        return float(torch.special.entr(logprobs.exp()).sum()) <= gate.threshold
    if gate.doubt is Doubt.MARGIN:
        first, second = logprobs.topk(2).values.exp().tolist()
        return bool(first - second >= gate.threshold)
    return float(logprobs[guess]) >= gate.threshold
