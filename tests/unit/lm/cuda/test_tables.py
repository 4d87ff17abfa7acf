"""The tables of a step: where each row lies, what is padding, what a program takes."""

from __future__ import annotations

import torch

from common.lm.attention import Span
from common.lm.cuda.tables import Size, Tables, describe
from common.lm.kv_cache import KVCache
from common.lm.pages import PAGE


class Cache(KVCache):
    def __init__(self) -> None:
        super().__init__([], 10 * PAGE)

    def pages(self, session: int) -> list[int]:
        return {0: [9, 2, 5], 1: [4]}[session]


def test_rows_are_placed_by_page_and_padding_nowhere() -> None:
    spans = [Span(0, 3, 0, PAGE - 1), Span(3, 4, 1, 7)]
    size = Size(6, 3)
    row = torch.tensor(describe(Cache(), spans, [11, 12, 13, 14], [2, 3], size, tile_rows=2))
    tables = Tables.of(row, size)
    assert tables.ids.tolist() == [[11, 12, 13, 14, 0, 0]]
    assert tables.positions.tolist() == [[PAGE - 1, PAGE, PAGE + 1, 7, 0, 0]]
    assert tables.slots.tolist() == [
        9 * PAGE + PAGE - 1,
        2 * PAGE,
        2 * PAGE + 1,
        4 * PAGE + 7,
        -1,
        -1,
    ]
    assert tables.tiles.T.tolist() == [
        [0, 2, 0],
        [2, 1, 0],
        [3, 1, 2],  # its pages come after the two that the first span reaches
        [4, 2, -1],
        [0, 0, -1],
        [0, 0, -1],
    ]
    assert tables.rows.tolist() == [2, 3, 0]
    assert tables.pages.tolist() == [9, 2, 4]
    assert len(row) == size.numbers(pages=3)


def test_a_size_holds_what_is_no_larger_either_way() -> None:
    assert Size(8, 4).holds(Size(8, 4))
    assert not Size(8, 4).holds(Size(1, 5))
    assert not Size(8, 4).holds(Size(9, 1))
