"""How many tokens a second each way of making text can be expected to give: a closed form.

One round of draft length γ is confirmed up to its first wrong guess, and the target adds a token
of its own, so with `a_i` the probability that guess i stands once those before it do,

    S_i = a_1 … a_i,    E(γ) = S_0 + S_1 + … + S_γ    tokens a round

(Leviathan et al. 2023, arXiv 2211.17192, equation 1, with acceptance by position). With d the
draft model's time for a token, c the client's for all else that a draft needs, R the network's for
a round and T(n) the server's for n tokens, a round that is waited for takes

    L = γ d + c + R + T(γ + 1),    and so gives    E(γ) / L.

Sent ahead, drafts form a chain that lasts while every guess and every assumed bonus token is
right: a link of it with probability s = S_{γ+1}. Within a chain a verdict comes every

    I = max((γ + 1) d + c, T(γ + 1), (L + d) / (1 + ahead)),

the slowest of drafting, verifying and what may be under way; the first of each chain takes L, and
w more where the verdict that ends it interrupts the draft model, which finishes the token in
hand: half of d on average, all that is left of it where the verdict comes before the first is made,
nothing where all that may be sent ahead is made by then. Over a whole chain of 1 / (1 - s) links,

    E(γ) / ((1 - s) (L + w) + s I).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul


@dataclass(frozen=True, slots=True)
class Situation:
    """Is what decides it; times in seconds.

    `acceptance[i]` is the probability that a guess stands once the `i` before it in its
    draft do, the last one holding for all beyond. The server takes
    `target_s + target_token_s * n` for a request of n tokens; `client_s` is c.
    """

    draft_s: float
    network_s: float
    target_s: float
    target_token_s: float
    acceptance: Sequence[float]
    client_s: float = 0.0

    def server_s(self, tokens: int) -> float:
        """Returns the server's time for a request of so many tokens, the target's own included."""
        return self.target_s + self.target_token_s * tokens

    def survival(self, length: int) -> list[float]:
        """Returns S_0 … S_length."""
        last = len(self.acceptance) - 1
        chances = (self.acceptance[min(i, last)] for i in range(length))
        return list(accumulate(chances, mul, initial=1.0))


class Outlook:
    """Is what one situation promises of each pace up to a draft length; a few microseconds each."""

    def __init__(self, situation: Situation, longest: int) -> None:
        self._situation = situation
        self._survival = situation.survival(longest + 1)
        self._expected = list(accumulate(self._survival))

    def tokens_a_round(self, length: int) -> float:
        """Returns E(γ), the target's own token included."""
        return self._expected[length]

    def tokens_a_second(self, length: int, ahead: int) -> float:
        """Returns the rate of drafts of `length`, up to `ahead` of them sent before a verdict."""
        away, making = self._times(length)
        latency = making - self._situation.draft_s + away
        expected = self._expected[length]
        if ahead == 0:
            return expected / latency
        unbroken = self._survival[length + 1]
        draft_s = self._situation.draft_s
        interval = max(
            making, self._situation.server_s(length + 1), (latency + draft_s) / (1 + ahead)
        )
        busy = ahead * making > away
        lost = max(draft_s - away, draft_s / 2) if busy else 0.0
        return expected / ((1 - unbroken) * (latency + lost) + unbroken * interval)

    def drafts_ahead(self, length: int, most: int) -> tuple[int, ...]:
        """Returns what is worth trying: stop and wait, and what keeps the draft model just busy."""
        away, making = self._times(length)
        if making * most <= away:
            return 0, most
        return 0, max(1, math.floor(away / making)), math.ceil(away / making)

    def _times(self, length: int) -> tuple[float, float]:
        """Returns how long a draft is away, and how long a draft and a bonus token take to make."""
        situation = self._situation
        away = situation.network_s + situation.server_s(length + 1)
        return away, (length + 1) * situation.draft_s + situation.client_s


def tokens_a_second(situation: Situation, length: int, ahead: int) -> float:
    """Returns the expected rate of one pace: see Outlook."""
    return Outlook(situation, length).tokens_a_second(length, ahead)


def alone(situation: Situation) -> float:
    """Returns the rate of `cloud_optimized`, which waits for no network between tokens."""
    return 1 / situation.server_s(1)
