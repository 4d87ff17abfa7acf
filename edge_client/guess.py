"""One guess of the draft model: how it is chosen, and how sure the model is of it."""

from __future__ import annotations

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
    """Draws a guess from the `candidates` likeliest by logits `[1, vocab]`, and says from what.

    Probabilities are rounded to whole weights first and the guess is drawn from those, so that
    what the server is told is exactly what was done.
    """
    probabilities = distribution(logits, [context], [sampling])[0]
    likeliest = probabilities.topk(min(candidates, len(probabilities)))
    alive = likeliest.values > 0
    token_ids, shares = likeliest.indices[alive], likeliest.values[alive]
    weights = (shares / shares[0] * MAX_WEIGHT).round().clamp(min=1)
    scores = torch.full_like(probabilities, float("-inf"), dtype=torch.float32)
    scores[token_ids] = weights.log().float()
    drawn = gumbel_argmax(scores[None], [sampling.seed], [context.length], Stream.GUESS)
    whole = tuple(int(weight) for weight in weights.tolist())
    return int(drawn[0]), DraftDistribution(tuple(token_ids.tolist()), whole)


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
