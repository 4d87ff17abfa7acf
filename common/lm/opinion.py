"""What a model thinks of a text that is there: how probable each token is, and its rank."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from common.lm.runner import LanguageModel, Segment
from common.types import Opinion

SCORED_CHUNK = 64
"""Tokens of a text that one forward takes: the logits of each are wanted at once."""


def opinion_steps(
    model: LanguageModel,
    session: int,
    context: Sequence[int],
    text: Sequence[int],
    prefill_chunk: int,
) -> Generator[None, None, tuple[Tensor, Opinion]]:
    """Yields after each forward of an empty session; `context` has at least one token.

    Returns the logits `[1, vocab]` after the context, and the opinion of each token of `text`.
    """
    for start in range(0, len(context), prefill_chunk):
        chunk = context[start : start + prefill_chunk]
        logits = model.forward([Segment(session, chunk, start, 1)])
        yield
    logprobs: list[float] = []
    ranks: list[int] = []
    after = logits  # of each token of the text, what stood before it said
    for start in range(0, len(text), SCORED_CHUNK):
        chunk = text[start : start + SCORED_CHUNK]
        rows = model.forward([Segment(session, chunk, len(context) + start, len(chunk))])
        given = torch.cat([after, rows[:-1]]).double().log_softmax(-1)  # [len(chunk), vocab]
        own = given.gather(1, torch.tensor(chunk, device=given.device)[:, None])
        logprobs += own[:, 0].tolist()
        ranks += (1 + (given > own).sum(1)).tolist()
        after = rows[-1:]
        yield
    return logits, Opinion(tuple(logprobs), tuple(ranks))
