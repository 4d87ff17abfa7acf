"""A cache whose pages lie in no order, for what reads the pool itself."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from common.lm.kv_cache import KVCache
from common.lm.pages import LayerShape


class ScatteredCache(KVCache):
    """Holds numbers only where they were written."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        capacity_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(layers, capacity_tokens, dtype, device)
        random.Random(0).shuffle(self._pages._free)
        for pool in (*self.keys, *self.values):
            pool.fill_(torch.nan)
