"""The attention calls of one forward, answered by the Triton kernels over a paged pool."""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor

from common.lm.attention import LayerCall
from common.lm.cuda import kernels
from common.lm.cuda.tables import Tables
from common.lm.kv_cache import KVCache
from common.lm.pages import PAGE

TILE_QUERIES = 16
"""Queries of one key head that a program attends at once, as near as whole rows come to it."""

_KEYS = 32
_LEAST = 16
"""The smallest side of a product that every version of Triton takes."""
_OPTIONS = {"enable_fp_fusion": True}
"""A product and its sum are one operation with one rounding; newer versions want to be told."""
_FEW_TOKENS, _SPLITS = 16, 8
"""Up to so many tokens, each tile's keys are split, or most of a GPU would have nothing to do."""


class PagedStep:
    """Attends rows to the sessions that their tables place them in."""

    def __init__(self, cache: KVCache, tables: Tables, tile_rows: int) -> None:
        """Takes tables of tiles of up to `tile_rows` rows."""
        self._cache = cache
        self._tables = tables
        self._tile_rows = tile_rows

    def attend(self, call: LayerCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Writes the new keys and values in their slots, then attends all tiles."""
        pools = self._cache.keys[call.layer], self._cache.values[call.layer]
        query, key, value = (_dense(given) for given in (query, key, value))
        device: Any = torch.cuda.device_of  # without types
        with device(query):
            self._write(key, value, *pools)
            return self._attend(call, query, *pools)

    def _write(self, key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
        heads, tokens, size = key.shape
        value_size = value.shape[2]
        rows = min(_LEAST, _power(tokens))
        write: Any = kernels.write[ceil(tokens / rows), heads]
        write(
            *(key, value, keys, values, self._tables.slots, tokens),
            *(*key.stride()[:2], *value.stride()[:2], keys.stride(0), values.stride(0)),
            SIZE=size,
            VALUE_SIZE=value_size,
            COLUMNS=_power(max(size, value_size)),
            ROWS=rows,
            **_OPTIONS,
        )

    def _attend(self, call: LayerCall, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        heads, tokens, size = query.shape
        kv_heads, _, value_size = values.shape
        groups = heads // kv_heads
        splits = _SPLITS if tokens <= _FEW_TOKENS else 1
        output = query.new_empty(splits, tokens, heads, value_size)
        weight = query.new_empty(splits, tokens, heads)
        tables = self._tables
        attend: Any = kernels.attend[tokens, kv_heads, splits]
        attend(
            *(query, keys, values, output, weight),
            *(tables.positions, tables.tiles, tables.pages, tokens),
            *(call.scaling, call.softcap or 0.0),
            *(*query.stride()[:2], keys.stride(0), values.stride(0)),
            WINDOW=call.window or 0,
            CAPPED=call.softcap is not None,
            GROUPS=groups,
            SIZE=size,
            VALUE_SIZE=value_size,
            COLUMNS=max(_LEAST, _power(size)),
            VALUE_COLUMNS=max(_LEAST, _power(value_size)),
            QUERIES=max(_LEAST, _power(self._tile_rows * groups)),
            KEYS=_KEYS,
            PAGE=PAGE,
            **_OPTIONS,
        )
        if splits == 1:
            return output[0]
        return (weight.softmax(0)[..., None] * output).sum(0)


def _dense(given: Tensor) -> Tensor:
    return given if given.stride(2) == 1 else given.contiguous()


def _power(number: int) -> int:
    """Returns the least power of two that is no smaller."""
    return 1 << (number - 1).bit_length()
