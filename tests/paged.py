"""A cache of pages that lie in no order, for what reads the pool itself."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from common.lm.kv_cache import PAGE, LayerShape


class PagedPool:
    """Is what `KVCache` is to attention and runner; rooms grow by whole pages, never back."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        capacity_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layers, self.dtype, self.device = tuple(layers), dtype, torch.device(device)
        count = -(-capacity_tokens // PAGE)
        self.capacity_tokens = count * PAGE
        # Whatever is read and was never written shows.
        self.keys = [self._pool(layer.heads, layer.key_size) for layer in layers]
        self.values = [self._pool(layer.heads, layer.value_size) for layer in layers]
        self._free = random.Random(0).sample(range(count), count)
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}

    def allocate(self, tokens: int = 1) -> int:
        handle = max(self._pages, default=-1) + 1
        self._pages[handle], self._lengths[handle] = [], 0
        self.reserve({handle: tokens})
        return handle

    @contextmanager
    def session(self, tokens: int = 1) -> Iterator[int]:
        handle = self.allocate(tokens)
        yield handle
        self._free += self._pages.pop(handle)

    def reserve(self, lengths: Mapping[int, int]) -> None:
        for session, length in lengths.items():
            while PAGE * len(self._pages[session]) < length:
                self._pages[session].append(self._free.pop())

    def length(self, session: int) -> int:
        return self._lengths[session]

    def pages(self, session: int) -> list[int]:
        return list(self._pages[session])

    def extend(self, session: int, tokens: int) -> None:
        self._lengths[session] += tokens
        self.reserve({session: self._lengths[session]})

    def place(self, spans: Mapping[int, tuple[int, int]]) -> None:
        for session, (_, end) in spans.items():
            self._lengths[session] = end
            self.reserve({session: end})

    def truncate(self, session: int, length: int) -> None:
        self._lengths[session] = length

    def write(self, session: int, layer: int, start: int, key: Tensor, value: Tensor) -> None:
        slots = self._slots(session, start, start + key.shape[1])
        self.keys[layer][:, slots] = key
        self.values[layer][:, slots] = value

    def read(self, session: int, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        slots = self._slots(session, start, stop)
        return self.keys[layer][:, slots], self.values[layer][:, slots]

    def check_integrity(self) -> None:
        held = [page for pages in self._pages.values() for page in pages]
        assert sorted([*held, *self._free]) == list(range(self.capacity_tokens // PAGE))

    def _slots(self, session: int, start: int, stop: int) -> list[int]:
        pages = self._pages[session]
        return [pages[at // PAGE] * PAGE + at % PAGE for at in range(start, stop)]

    def _pool(self, heads: int, size: int) -> Tensor:
        shape = (heads, self.capacity_tokens, size)
        return torch.full(shape, torch.nan, dtype=self.dtype, device=self.device)
