"""Which guesses stand: the rule that makes the output the target's own."""

from __future__ import annotations

from collections.abc import Sequence


def count_accepted(draft: Sequence[int], choices: Sequence[int]) -> int:
    """Counts the guesses that equal the target's own choice, up to the first that does not.

    `choices` holds one token more than `draft`: choices[i] is what the target
    writes after the i-th guess's predecessor, so choices[accepted] is the bonus
    token when all stood and the recovered token otherwise.
    """
    for index, guess in enumerate(draft):
        if guess != choices[index]:
            return index
    return len(draft)
