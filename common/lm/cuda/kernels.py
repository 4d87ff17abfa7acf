"""Ragged attention over a paged pool in true float32, in Triton.

`attend` is flash attention: it goes once over the keys a tile may see, page by page, with an
online softmax (Dao et al. 2022, arXiv 2205.14135). The keys of a tile may be split among several
programs, whose answers are then weighed by what they saw (flash-decoding). Products are float32
multiply-adds, never TF32. Import fails where Triton is not installed.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOTHING = tl.constexpr(-1.0e30)
"""Stands for a score of minus infinity, without its NaNs."""


# One kernel serves every number of tokens, wherever their tables lie.
_TABLES = ["slots", "positions", "tiles", "pages"]


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=_TABLES[:1])
def write(
    key,  # [kv_heads, T, SIZE]
    value,  # [kv_heads, T, VALUE_SIZE]
    keys,  # [kv_heads, slots, SIZE]
    values,  # [kv_heads, slots, VALUE_SIZE]
    slots,  # [T]; negative: the row is not written
    tokens,
    key_head,  # strides, in numbers
    key_row,
    value_head,
    value_row,
    keys_head,
    values_head,
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,  # a power of two that holds either size
    ROWS: tl.constexpr,
):
    """Stores the new keys and values of `ROWS` rows and one head in their slots."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    head = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)[None, :]
    slot = tl.load(slots + row, mask=row < tokens, other=-1)
    kept = (slot >= 0) & (column < SIZE)
    given = tl.load(key + head * key_head + row * key_row + column, mask=kept)
    tl.store(keys + head * keys_head + slot * SIZE + column, given, mask=kept)
    kept = (slot >= 0) & (column < VALUE_SIZE)
    given = tl.load(value + head * value_head + row * value_row + column, mask=kept)
    tl.store(values + head * values_head + slot * VALUE_SIZE + column, given, mask=kept)


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=_TABLES[1:])
def attend(
    query,  # [heads, T, SIZE]
    keys,  # [kv_heads, slots, SIZE]
    values,  # [kv_heads, slots, VALUE_SIZE]
    output,  # [splits, T, heads, VALUE_SIZE]
    weight,  # [splits, T, heads]: the logarithm of what each split saw
    positions,  # [T]
    tiles,  # [3, T], see tables.py
    pages,
    tokens,
    scaling,
    softcap,
    query_head,  # strides, in numbers
    query_row,
    keys_head,
    values_head,
    WINDOW: tl.constexpr,  # 0: none
    CAPPED: tl.constexpr,
    GROUPS: tl.constexpr,  # query heads of a key head
    SIZE: tl.constexpr,
    VALUE_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,  # powers of two that hold a key, a value, and a tile's queries
    VALUE_COLUMNS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,  # read at once; divides PAGE
    PAGE: tl.constexpr,
):
    """Attends the queries of one tile and key head to one split of the keys they may see."""
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    split, splits = tl.program_id(2), tl.num_programs(2)
    first = tl.load(tiles + tile)
    count = tl.load(tiles + tokens + tile)
    begin = tl.load(tiles + 2 * tokens + tile)
    if count == 0:
        return

    one = tl.arange(0, QUERIES)
    row = first + one // GROUPS
    own = head * GROUPS + one % GROUPS
    real = one < count * GROUPS
    column = tl.arange(0, COLUMNS)[None, :]
    value_column = tl.arange(0, VALUE_COLUMNS)[None, :]
    asked = tl.load(
        query + own[:, None] * query_head + row[:, None] * query_row + column,
        mask=real[:, None] & (column < SIZE),
        other=0.0,
    )
    position = tl.load(positions + row, mask=real, other=-1)[:, None]

    start = tl.load(positions + first)
    end = tl.where(begin < 0, 0, start + count)
    start = tl.maximum(start + 1 - WINDOW, 0) if WINDOW else 0
    blocks = tl.cdiv(end, KEYS)
    low = start // KEYS
    each = tl.cdiv(blocks - low, splits)
    low += split * each

    best = tl.full([QUERIES], NOTHING, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    mixed = tl.zeros([QUERIES, VALUE_COLUMNS], tl.float32)
    for block in range(low, tl.minimum(low + each, blocks)):
        at = block * KEYS
        page = tl.load(pages + begin + at // PAGE)
        slot = (page * PAGE + at % PAGE + tl.arange(0, KEYS))[:, None]
        seen = at + tl.arange(0, KEYS)
        held = (seen < end)[:, None]
        read = tl.load(
            keys + head * keys_head + slot * SIZE + column,
            mask=held & (column < SIZE),
            other=0.0,
        )
        scores = tl.dot(asked, tl.trans(read), input_precision="ieee") * scaling
        if CAPPED:
            scores = _tanh(scores / softcap) * softcap
        visible = seen[None, :] <= position
        if WINDOW:
            visible &= position - seen[None, :] < WINDOW
        scores = tl.where(visible, scores, NOTHING)
        higher = tl.maximum(best, tl.max(scores, 1))
        shares = tl.where(visible, tl.exp(scores - higher[:, None]), 0.0)
        shrink = tl.exp(best - higher)
        total = total * shrink + tl.sum(shares, 1)
        read = tl.load(
            values + head * values_head + slot * VALUE_SIZE + value_column,
            mask=held & (value_column < VALUE_SIZE),
            other=0.0,
        )
        mixed = mixed * shrink[:, None] + tl.dot(shares, read, input_precision="ieee")
        best = higher

    place = (split.to(tl.int64) * tokens + row) * tl.num_programs(1) * GROUPS + own
    some = total > 0
    total = tl.where(some, total, 1.0)
    tl.store(weight + place, tl.where(some, best + tl.log(total), NOTHING), mask=real)
    tl.store(
        output + place[:, None] * VALUE_SIZE + value_column,
        mixed / total[:, None],
        mask=real[:, None] & (value_column < VALUE_SIZE),
    )


@triton.jit
def _tanh(x):
    """Is exact to float32's rounding near 0 too, where the quotient of exponentials is not."""
    square = x * x
    series = x * (1 - square * (1 / 3 - square * (2 / 15 - square * (17 / 315))))
    small = tl.exp(-2 * tl.abs(x))
    quotient = (1 - small) / (1 + small)
    return tl.where(square < 0.01, series, tl.where(x < 0, -quotient, quotient))
