"""Steps of few tokens as graphs, one for each size; longer ones by the same kernels, launched.

A graph covers a step from the embedding to the logits of the rows wanted. It reads the weights
where they are, and the step from tables that stay where they are: a step is one copy from pinned
memory and one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.lm.attention import Span, current_step
from common.lm.cuda.attention import TILE_QUERIES, PagedStep
from common.lm.cuda.capture import Capture
from common.lm.cuda.tables import Size, Tables, describe
from common.lm.kv_cache import KVCache
from common.lm.loading import LoadedModel
from common.lm.pages import PAGE
from common.lm.staging import pinned, staged

MOST_TOKENS = 256
"""Tokens of the largest graph; beyond, launching is a small part of a step."""
_FEW_ROWS = 16
"""A larger step has a graph for no more wanted rows than this, as in the middle of a prompt."""

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Token ids `[1, T]`, their positions `[1, T]` and the rows wanted in, logits out."""


class Graphs:
    """Runs steps over one cache by graphs captured for it, and over others by their kernels."""

    def __init__(
        self, forward: Forward, loaded: LoadedModel, cache: KVCache, capture: Capture
    ) -> None:
        """Captures all graphs, over tables of a step that does nothing.

        Raises whatever the capture does, such as RuntimeError where the model waits for the
        device.
        """
        self._forward = forward
        self._cache = cache
        self._device = loaded.device
        heads = loaded.model.config.get_text_config().num_attention_heads
        groups = heads // min(keys.shape[0] for keys in cache.keys)
        self._tile_rows = max(1, TILE_QUERIES // groups)
        most = min(MOST_TOKENS, loaded.context_length, cache.keys[0].shape[1])
        self.counts = [1 << power for power in range(most.bit_length())]
        """Tokens of the steps there are graphs for."""
        pages = self.counts[-1] * -(-loaded.context_length // PAGE)
        longest = Size(self.counts[-1], self.counts[-1]).numbers(pages)
        self._row = torch.zeros(longest, dtype=torch.long, device=self._device)
        # The largest first: the others then live in the memory it has needed.
        sizes = [
            Size(tokens, rows)
            for tokens in reversed(self.counts)
            for rows in sorted({tokens, min(tokens, _FEW_ROWS)}, reverse=True)
        ]
        self._graphs = {size: capture(self._idle(size)) for size in sizes}

    def __call__(
        self, cache: KVCache, spans: Sequence[Span], tokens: Sequence[int], wanted: Sequence[int]
    ) -> Tensor:
        """Returns logits `[len(wanted), width]` of some rows of a step."""
        exact = Size(len(tokens), len(wanted))
        size = self._fitting(exact) if cache is self._cache else None
        numbers = describe(cache, spans, tokens, wanted, size or exact, self._tile_rows)
        if size is None:
            return self._run(cache, Tables.of(staged(numbers, self._device), exact))
        self._fill(numbers)
        # A graph's output is the next one's to overwrite.
        return self._graphs[size]()[: len(wanted)].clone()

    def _fitting(self, step: Size) -> Size | None:
        fitting = [size for size in self._graphs if size.holds(step)]
        return min(fitting, default=None, key=lambda size: (size.tokens, size.rows))

    def _idle(self, size: Size) -> Callable[[], Tensor]:
        """Fills the tables with a step that does nothing, and returns what runs them."""
        tables = Tables.of(self._row, size)
        self._fill(describe(self._cache, [], [], [], size, self._tile_rows))
        return lambda: self._run(self._cache, tables)

    def _fill(self, numbers: Sequence[int]) -> None:
        self._row[: len(numbers)].copy_(pinned(numbers, self._device), non_blocking=True)

    def _run(self, cache: KVCache, tables: Tables) -> Tensor:
        with current_step(PagedStep(cache, tables, self._tile_rows)):
            return self._forward(tables.ids, tables.positions, tables.rows)
