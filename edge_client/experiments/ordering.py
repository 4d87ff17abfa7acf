"""The order in which arms take their turns, so that drift of the machine hits all alike.

Orders come in blocks of rows of a Williams design (E. J. Williams, 1949,
Australian Journal of Scientific Research A 2: 149-168): within a block every arm
stands equally often in every place, and follows every other arm equally often.
Which arm is which, and the order of the rows, are drawn from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator


def balanced_orders(num_arms: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Yields orders of the arms 0..num_arms-1 without end, balanced block by block."""
    generator = random.Random(seed)
    while True:
        names = generator.sample(range(num_arms), num_arms)
        rows = _williams(num_arms)
        generator.shuffle(rows)
        for row in rows:
            yield tuple(names[place] for place in row)


def _williams(count: int) -> list[list[int]]:
    """Returns `count` rows for an even count, twice as many for an odd one."""
    first = [
        (place + 1) // 2 if place % 2 else (count - place // 2) % count for place in range(count)
    ]
    rows = [[(arm + shift) % count for arm in first] for shift in range(count)]
    if count % 2:
        rows += [row[::-1] for row in rows]
    return rows
