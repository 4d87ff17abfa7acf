"""Where the rows of a step lie, as tables the kernels read: one row of integers, one copy a step.

A step is padded to a size whose tables always lie in the same places, so that a graph can be
replayed over them. Rows of padding are written nowhere and attend to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from common.lm.attention import Span
from common.lm.kv_cache import KVCache
from common.lm.pages import PAGE


@dataclass(frozen=True, slots=True)
class Size:
    """Says how many tokens a step has, and of how many of its rows logits are wanted."""

    tokens: int
    rows: int

    def holds(self, other: Size) -> bool:
        """Whether a step of another size can be padded to this one."""
        return other.tokens <= self.tokens and other.rows <= self.rows

    def numbers(self, pages: int) -> int:
        """Counts the integers of its tables, with so many pages."""
        return 6 * self.tokens + self.rows + pages


@dataclass(frozen=True, slots=True)
class Tables:
    """Views the tables of a step of T tokens and R wanted rows."""

    ids: Tensor  # [1, T]
    positions: Tensor  # [1, T]
    slots: Tensor  # [T]: where keys and values are written in the pool; -1: nowhere
    tiles: Tensor  # [3, T]: first row, number of rows, where its pages begin (-1: it has none)
    rows: Tensor  # [R]: those of which logits are wanted
    pages: Tensor  # [at least as many as there are]: the pages of each span in turn

    @classmethod
    def of(cls, row: Tensor, size: Size) -> Tables:
        """Finds the tables in a row that `describe` has filled."""
        t = size.tokens
        return cls(
            ids=row[None, :t],
            positions=row[None, t : 2 * t],
            slots=row[2 * t : 3 * t],
            tiles=row[3 * t : 6 * t].view(3, t),
            rows=row[6 * t : 6 * t + size.rows],
            pages=row[6 * t + size.rows :],
        )


def describe(
    cache: KVCache,
    spans: Sequence[Span],
    tokens: Sequence[int],
    wanted: Sequence[int],
    size: Size,
    tile_rows: int,
) -> list[int]:
    """Lists the integers of a step's tables, padded to `size`.

    A tile is what one program of the kernel attends: up to `tile_rows` rows of one span.
    """
    positions: list[int] = []
    slots: list[int] = []
    pages: list[int] = []
    tiles: list[tuple[int, int, int]] = []
    for span in spans:
        end = span.position + span.stop - span.start
        held = cache.pages(span.session)[: -(-end // PAGE)]
        places = range(span.position, end)
        positions += places
        slots += [held[place // PAGE] * PAGE + place % PAGE for place in places]
        tiles += _tiles(span.start, span.stop, tile_rows, len(pages))
        pages += held
    padding = size.tokens - len(tokens)
    tiles += _tiles(len(tokens), size.tokens, tile_rows, -1)
    tiles += [(0, 0, -1)] * (size.tokens - len(tiles))
    return [
        *tokens,
        *[0] * padding,
        *positions,
        *[0] * padding,
        *slots,
        *[-1] * padding,
        *(number for column in zip(*tiles, strict=True) for number in column),
        *wanted,
        *[0] * (size.rows - len(wanted)),
        *pages,
    ]


def _tiles(start: int, stop: int, tile_rows: int, begin: int) -> Iterator[tuple[int, int, int]]:
    for first in range(start, stop, tile_rows):
        yield first, min(tile_rows, stop - first), begin
