"""The pool of pages that keys and values lie in: one tensor of each a layer, made once.

Memory is spent as pages are first written and can never be more than was promised. A page is free
or held, by one sequence or by several that begin alike.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import ConfigError, InternalError

logger = logging.getLogger(__name__)

PAGE = 64
"""Tokens of a page."""

SHARE = 0.9
"""Of a GPU's free memory, what the pool takes at most: activations need some as well."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """States what one layer stores for one token: `heads * (key_size + value_size)` numbers."""

    heads: int
    key_size: int
    value_size: int


class Pages:
    """Is the pool. Page p of a layer is `[:, p * PAGE : (p + 1) * PAGE]` of its two tensors."""

    def __init__(
        self, layers: Sequence[LayerShape], tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Makes whole pages for `tokens`; raises ConfigError where there is no memory for them.

        On a GPU with less memory free they are as many as fit.
        """
        self.bytes_per_token = dtype.itemsize * sum(
            layer.heads * (layer.key_size + layer.value_size) for layer in layers
        )
        self.number = -(-self._affordable(tokens, device) // PAGE)
        self.keys = [self._pool(layer.heads, layer.key_size, dtype, device) for layer in layers]
        self.values = [self._pool(layer.heads, layer.value_size, dtype, device) for layer in layers]
        self._free = list(range(self.number))  # a heap: low pages first, so sequences lie together
        self._holders: Counter[int] = Counter()

    @property
    def num_free(self) -> int:
        """How many are held by nobody."""
        return len(self._free)

    def is_shared(self, page: int) -> bool:
        """Whether more than one holds a page."""
        return self._holders[page] > 1

    def take(self) -> int:
        """Returns a free page, held once from now on."""
        page = heapq.heappop(self._free)
        self._holders[page] = 1
        return page

    def hold(self, page: int) -> None:
        """Holds a page once more."""
        self._holders[page] += 1

    def let_go(self, page: int) -> bool:
        """Holds a page once less; returns whether it is free now."""
        self._holders[page] -= 1
        if self._holders[page]:
            return False
        del self._holders[page]
        heapq.heappush(self._free, page)
        return True

    def copy(self, page: int, to: int, tokens: int) -> None:
        """Copies what the first `tokens` of a page have in every layer."""
        for pool in (*self.keys, *self.values):
            pool[:, to * PAGE :][:, :tokens] = pool[:, page * PAGE :][:, :tokens]

    def check_integrity(self, held: Counter[int]) -> None:
        """Raises InternalError unless pages are held so often, and all others free."""
        if held != self._holders:
            raise InternalError(f"cache books: {self._holders} hold pages, and sessions {held}")
        if sorted([*held, *self._free]) != list(range(self.number)):
            raise InternalError(
                f"cache books: of {self.number} pages {len(held)} are held and "
                f"{len(self._free)} free"
            )

    def _affordable(self, tokens: int, device: torch.device) -> int:
        """Returns for how many tokens, at most so many, a GPU has memory that is not in use.

        Elsewhere memory is spent when it is first written, and nothing is known before.
        """
        if device.type != "cuda":
            return tokens
        free, _ = torch.cuda.mem_get_info(device)
        fitting = int(SHARE * free) // self.bytes_per_token
        if fitting < tokens:
            logger.warning(
                "%s has room for keys and values of %d tokens, of %d asked",
                device, fitting, tokens,
            )  # fmt: skip
        return max(1, min(tokens, fitting))

    def _pool(self, heads: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        tokens = self.number * PAGE
        try:
            return torch.empty((heads, tokens, size), dtype=dtype, device=device)
        except RuntimeError as error:  # of which running out of memory is a kind, or not
            raise ConfigError(
                f"{device} has no memory for keys and values of {tokens} "
                f"tokens, {tokens * self.bytes_per_token / 2**30:.1f} GiB: lower cache_tokens"
            ) from error
