"""How many tokens a second each way of making text can be expected to give: a closed form.

One round of draft length γ is confirmed up to its first wrong guess, and the target adds a token
of its own, so with `a_i` the probability that guess i stands once those before it do,

    S_i = a_1 … a_i,    E(γ) = S_0 + S_1 + … + S_γ    tokens a round

(Leviathan et al. 2023, arXiv 2211.17192, equation 1, with acceptance by position). With d the
draft model's time for a token, R the network's for a round, T(n) the target's for n tokens, and
e and c what edge and server take for a round beside these, a round that is waited for takes

    L = γ d + e + R + c + T(γ + 1),    and so gives    E(γ) / L.

Sent ahead, drafts form a chain that lasts while every guess and every assumed bonus token is
right: a link of it with probability s = S_{γ+1}. Within a chain a verdict comes every

    I = max((γ + 1) d + e, T(γ + 1) + c, (L + d) / (1 + ahead)),

the slowest of drafting, verifying and what may be under way; the first of each chain takes L, and
w more where the verdict that ends it interrupts the draft model, which finishes the token in
hand: half of d on average, all that is left of it where the verdict comes before the first is made,
nothing where all that may be sent ahead is made by then. Over a whole chain of 1 / (1 - s) links,

    E(γ) / m    with    m = (1 - s) (L + w) + s I    a round.

Near its end a text asks for shorter drafts, as the last token is never drafted. With r tokens to
come the draft has γ_r = min(γ, r - 1), and rounds and drafted tokens to the end are

    M(r) = 1 + Σ_j P(j) M(r - j),    D(r) = γ_r + Σ_j P(j) D(r - j),    M(r) = D(r) = 0 for r ≤ 0,

with P(j) the probability that the round brings j tokens, S_{j-1} - S_j, and S_{γ_r} for the last
j = γ_r + 1. Beyond some length both grow by 1 / E(γ) and γ / E(γ) a token. A text of N tokens takes
b more at first, where the prompt is taken in; it begins with a new chain, whatever the average
round does, and ends without waiting for the draft model. With L for drafts of D / M tokens,

    N / (b + M L)    and sent ahead    N / (b + M m + s (L - I) - (1 - s) w).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from operator import mul


@dataclass(frozen=True, slots=True)
class Situation:
    """Is what decides it; times in seconds.

    `acceptance[i]` is the probability that a guess stands once the `i` before it in its
    draft do, the last one holding for all beyond. The target takes
    `target_s + target_token_s * n` for a request of n tokens. A round takes the edge
    `edge_round_s` beside the tokens it drafts and the server `server_round_s` beside the target; a
    text begins `opening_s` late. `alone_s` is a token of `cloud_optimized` where it was measured.
    """

    draft_s: float
    network_s: float
    target_s: float
    target_token_s: float
    acceptance: Sequence[float]
    edge_round_s: float = 0.0
    server_round_s: float = 0.0
    opening_s: float = 0.0
    alone_s: float | None = None

    def target_busy_s(self, tokens: int) -> float:
        """Returns the target's time for a request of so many tokens, its own included."""
        return self.target_s + self.target_token_s * tokens

    def server_s(self, tokens: int) -> float:
        """Returns the server's whole time for it."""
        return self.target_busy_s(tokens) + self.server_round_s

    def survival(self, length: int) -> list[float]:
        """Returns S_0 … S_length."""
        last = len(self.acceptance) - 1
        chances = (self.acceptance[min(i, last)] for i in range(length))
        return list(accumulate(chances, mul, initial=1.0))


@dataclass(frozen=True, slots=True)
class Chain:
    """Is what drafts of one length take, sent at most so far ahead; see the module's words.

    Waited for, `unbroken`, `interval` and `lost` are 0.
    """

    latency: float
    unbroken: float = 0.0
    interval: float = 0.0
    lost: float = 0.0

    @property
    def mean(self) -> float:
        """Returns m, the time of an average round."""
        broken = 1 - self.unbroken
        return broken * (self.latency + self.lost) + self.unbroken * self.interval


class Paces:
    """Is what one situation promises of each pace up to a draft length; microseconds each."""

    def __init__(self, situation: Situation, longest: int) -> None:
        self._situation = situation
        self._survival = situation.survival(longest + 1)
        self._expected = list(accumulate(self._survival))

    def tokens_a_round(self, length: int) -> float:
        """Returns E(γ), the target's own token included."""
        return self._expected[length]

    def tokens_a_second(self, length: int, ahead: int) -> float:
        """Returns the rate of drafts of `length`, up to `ahead` of them sent before a verdict."""
        return self._expected[length] / self.chain(length, ahead).mean

    def chain(self, length: int, ahead: int) -> Chain:
        """Returns what such drafts take."""
        away, making = self._times(length)
        draft_s = self._situation.draft_s
        latency = making - draft_s + away
        if not ahead:
            return Chain(latency)
        return Chain(
            latency,
            unbroken=self._survival[length + 1],
            interval=max(
                making, self._situation.server_s(length + 1), (latency + draft_s) / (1 + ahead)
            ),
            lost=max(draft_s - away, draft_s / 2) if ahead * making > away else 0.0,
        )

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
        return away, (length + 1) * situation.draft_s + situation.edge_round_s


def tokens_a_round(situation: Situation, length: int) -> float:
    """Returns E(γ), the target's own token included."""
    return Paces(situation, length).tokens_a_round(length)


def tokens_a_second(
    situation: Situation, length: int, ahead: int, text: int | None = None
) -> float:
    """Returns the expected rate of drafts of `length`, `ahead` of them sent before a verdict.

    Over a text of so many tokens, from the request to its end; None is one without an end.
    """
    paces = Paces(situation, length)
    if text is None:
        return paces.tokens_a_second(length, ahead)
    rounds, drafted = _to_the_end(tuple(situation.acceptance), length, text)
    whole = paces.chain(length, ahead)
    shorter = (length - drafted / rounds) * (situation.draft_s + situation.target_token_s)
    chain = replace(whole, latency=whole.latency - shorter)
    ends = chain.unbroken * (chain.latency - chain.interval) - (1 - chain.unbroken) * chain.lost
    return text / (situation.opening_s + rounds * chain.mean + ends)


_FAR = 512  # tokens before the end, where the end no longer shows


@cache
def _to_the_end(acceptance: tuple[float, ...], length: int, text: int) -> tuple[float, float]:
    """Returns M and D."""
    survival = Situation(0, 0, 0, 0, acceptance).survival(length)
    rounds, drafted = [0.0], [0.0]
    for left in range(1, min(text, _FAR) + 1):
        cut = min(length, left - 1)
        chances = [ours - next_ for ours, next_ in pairwise([*survival[: cut + 1], 0.0])]
        rounds.append(1 + sum(p * rounds[left - j] for j, p in enumerate(chances, 1)))
        drafted.append(cut + sum(p * drafted[left - j] for j, p in enumerate(chances, 1)))
    beyond = max(0, text - _FAR) / sum(survival)
    return rounds[-1] + beyond, drafted[-1] + length * beyond


def alone(situation: Situation, text: int | None = None) -> float:
    """Returns the rate of `cloud_optimized`, which waits for the network once a text."""
    each = situation.server_s(1) if situation.alone_s is None else situation.alone_s
    if text is None:
        return 1 / each
    return text / (situation.opening_s + situation.network_s + text * each)


def target_s_a_token(situation: Situation, length: int) -> float:
    """Returns what a token costs the target, whether drafts are waited for or sent ahead.

    A draft that a rejection overtook is never run, so every forward brings E(γ) tokens.
    """
    return situation.target_busy_s(length + 1) / tokens_a_round(situation, length)


def capacity(target_s: float, rate: float) -> float:
    """Returns how many clients of this rate keep one target busy, a request a forward."""
    return 1 / (target_s * rate)


def last_crossing(gain: Callable[[float], float], points: Sequence[float]) -> float | None:
    """Returns the largest x at which `gain` is not below 0, by bisection.

    `points` ascend; between the last that gains and the one after it a crossing is sought.
    None where all lose, infinity where the last one gains.
    """
    gaining = [i for i, x in enumerate(points) if gain(x) >= 0]
    if not gaining:
        return None
    if gaining[-1] == len(points) - 1:
        return math.inf
    low, high = points[gaining[-1]], points[gaining[-1] + 1]
    while high - low > 1e-6 * max(high, 1e-3):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) >= 0 else (low, middle)
    return low
