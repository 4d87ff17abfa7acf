"""What each arm is expected to give over a grid of round trips, draft lengths and acceptance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_client.adaptive import MOST_AHEAD
from edge_client.expectation import (
    Paces,
    Situation,
    alone,
    capacity,
    last_crossing,
    target_s_a_token,
    tokens_a_round,
    tokens_a_second,
)

LONGEST_RTT_S = 10.0
"""Where the search for a break-even ends."""
_SEARCHED_S = (0.0, *(LONGEST_RTT_S / 1.4**step for step in range(30, -1, -1)))


@dataclass(frozen=True, slots=True)
class Offer:
    """Is what one arm gives; what does not apply to it is None.

    `clients` is how many of its kind keep one target busy, a request a forward.
    """

    arm: str
    tokens_per_s: float
    length: int | None = None
    ahead: int | None = None
    forwards_per_token: float | None = None
    target_s_per_token: float | None = None
    clients: float | None = None


@dataclass(frozen=True, slots=True)
class Lengthwise:
    """Is what one draft length gives: waited for, and sent ahead as far as is best."""

    length: int
    waiting: Offer
    ahead: Offer

    @property
    def best(self) -> Offer:
        """The faster of the two."""
        return max(self.waiting, self.ahead, key=_speed)


@dataclass(frozen=True, slots=True)
class Outlook:
    """Is what to expect at one round trip."""

    rtt_s: float
    edge: Offer
    cloud: Offer
    lengths: tuple[Lengthwise, ...]

    @property
    def waiting(self) -> Offer:
        """The best that waits for every verdict."""
        return max((one.waiting for one in self.lengths), key=_speed)

    @property
    def ahead(self) -> Offer:
        """The best that sends drafts ahead."""
        return max((one.ahead for one in self.lengths), key=_speed)

    @property
    def best(self) -> Offer:
        """The best of both."""
        return max(self.waiting, self.ahead, key=_speed)

    def ratio(self, offer: Offer) -> float:
        """Returns an offer's speed over that of `cloud_optimized`."""
        return offer.tokens_per_s / self.cloud.tokens_per_s

    @property
    def pays(self) -> bool:
        """Whether splitting is at least as fast as the cloud alone."""
        return self.best.tokens_per_s >= self.cloud.tokens_per_s


@dataclass(frozen=True, slots=True)
class Forecast:
    """Is the whole grid for one acceptance.

    `break_even_s` is the longest round trip at which splitting is as fast as `cloud_optimized`:
    None where it never is, infinity where it still is at the end of the search.
    """

    situation: Situation
    outlooks: tuple[Outlook, ...]
    break_even_s: float | None

    @property
    def sentence(self) -> str:
        """Whether splitting pays, and how far away."""
        if self.break_even_s is None:
            nearest = self.outlooks[0]
            return (
                f"Splitting does not pay at any round trip: at {_ms(nearest.rtt_s)} ms "
                f"speculative would write at best {nearest.best.tokens_per_s:.1f} tokens/s, "
                f"cloud_optimized {nearest.cloud.tokens_per_s:.1f}."
            )
        if math.isinf(self.break_even_s):
            return f"Splitting pays at every round trip up to {LONGEST_RTT_S:g} s."
        losing = [_ms(one.rtt_s) for one in self.outlooks if not one.pays]
        said = f"Splitting pays up to a round trip of {_ms(self.break_even_s)} ms"
        if not losing:
            return f"{said}, beyond all that were asked about."
        return (
            f"{said}; it does not pay at {', '.join(losing)} ms, where cloud_optimized is faster."
        )


def forecast(
    situation: Situation, rtts_s: Sequence[float], lengths: Sequence[int], text: int | None
) -> Forecast:
    """Works out the grid; `text` is how many tokens a text has, None for one without an end."""

    def gain(rtt_s: float) -> float:
        there = replace(situation, network_s=rtt_s)
        fastest = max(
            tokens_a_second(there, length, ahead, text)
            for length in lengths
            for ahead in Paces(there, length).drafts_ahead(length, MOST_AHEAD)
        )
        return fastest - alone(there, text)

    return Forecast(
        situation,
        tuple(outlook(replace(situation, network_s=rtt), lengths, text) for rtt in sorted(rtts_s)),
        last_crossing(gain, _SEARCHED_S),
    )


def outlook(situation: Situation, lengths: Sequence[int], text: int | None) -> Outlook:
    """Works out what each arm gives at one round trip."""
    return Outlook(
        situation.network_s,
        Offer("edge", 1 / situation.draft_s),
        _costed(
            Offer("cloud_optimized", alone(situation, text), forwards_per_token=1.0),
            situation.target_busy_s(1),
        ),
        tuple(_lengthwise(situation, length, text) for length in lengths),
    )


def _lengthwise(situation: Situation, length: int, text: int | None) -> Lengthwise:
    def offer(ahead: int) -> Offer:
        return _costed(
            Offer(
                "speculative",
                tokens_a_second(situation, length, ahead, text),
                length,
                ahead,
                1 / tokens_a_round(situation, length),
            ),
            target_s_a_token(situation, length),
        )

    _, *some = Paces(situation, length).drafts_ahead(length, MOST_AHEAD)
    return Lengthwise(length, offer(0), max(map(offer, some), key=_speed))


def _costed(offer: Offer, target_s: float) -> Offer:
    clients = capacity(target_s, offer.tokens_per_s)
    return replace(offer, target_s_per_token=target_s, clients=clients)


def _speed(offer: Offer) -> float:
    return offer.tokens_per_s


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"
