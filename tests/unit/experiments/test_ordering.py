from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import pytest

from edge_client.experiments.ordering import balanced_orders


@pytest.mark.parametrize("arms", range(1, 7))
def test_each_block_is_balanced_in_place_and_in_succession(arms: int) -> None:
    rows = arms if arms % 2 == 0 else 2 * arms
    block = list(islice(balanced_orders(arms, seed=3), rows))
    for order in block:
        assert sorted(order) == list(range(arms))
    places = Counter((place, arm) for order in block for place, arm in enumerate(order))
    assert set(places.values()) == {rows // arms}
    follows = Counter(pair for order in block for pair in pairwise(order))
    if arms > 1:
        assert len(follows) == arms * (arms - 1)
        assert len(set(follows.values())) == 1


def test_the_seed_decides() -> None:
    def first(seed: int) -> list[tuple[int, ...]]:
        return list(islice(balanced_orders(4, seed), 12))

    assert first(1) == first(1)
    assert first(1) != first(2)
