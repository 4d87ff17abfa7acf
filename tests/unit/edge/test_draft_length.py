"""The draft length and what bounds it."""

from __future__ import annotations

import pytest

from edge_client.draft_length import FixedPace


@pytest.mark.parametrize(
    ("length", "max_draft_tokens", "remaining", "expected"),
    [
        (4, 32, 100, 4),
        (4, 2, 100, 2),  # what the server takes
        (4, 32, 3, 2),  # the third is the target's own
        (4, 32, 1, 0),
        (4, 32, 0, 0),
        (0, 32, 100, 0),
    ],
)
def test_it_is_the_smallest_of_its_bounds(
    length: int, max_draft_tokens: int, remaining: int, expected: int
) -> None:
    assert FixedPace(length, max_draft_tokens).next(remaining) == expected
