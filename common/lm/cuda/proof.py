"""Proof, before anything is served, that graphs come out as the module does."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.lm.attention import RaggedStep, Span, current_step
from common.lm.cuda.capture import Capture
from common.lm.cuda.graphs import Forward, Graphs
from common.lm.kv_cache import KVCache
from common.lm.loading import LoadedModel

_TRIED = ((0, 5), (5, 1), (0, 4))
"""Position and tokens of steps that are tried besides those that fill a graph."""


def proven_graphs(
    forward: Forward,
    loaded: LoadedModel,
    cache: KVCache,
    capture: Capture,
    compare: Callable[[Tensor, Tensor], None],
) -> Graphs:
    """Captures the graphs of a model over a cache still empty, and tries each.

    `compare` gets logits and what they should be. Raises as it does, and as `Graphs`.
    """
    graphs = Graphs(forward, loaded, cache, capture)
    most = graphs.counts[-1]
    steps = [*((0, count) for count in graphs.counts), *_TRIED]
    with cache.session(most) as session:
        cache.extend(session, most)
        for position, count in steps:
            if position + count > most:
                continue
            tokens = [token % loaded.vocab_size for token in range(1, 1 + count)]
            spans = [Span(0, count, session, position)]
            want = _by_module(forward, cache, spans[0], tokens)
            for first in {0, count - 1}:
                rows = list(range(first, count))
                compare(graphs(cache, spans, tokens, rows), want[first:])
    return graphs


def _by_module(forward: Forward, cache: KVCache, span: Span, tokens: list[int]) -> Tensor:
    device = cache.device
    rows = torch.arange(span.stop, device=device)
    with current_step(RaggedStep(cache, [span])):
        return forward(torch.tensor([tokens], device=device), rows[None] + span.position, rows)
