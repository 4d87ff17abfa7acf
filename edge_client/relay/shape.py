"""When bytes that enter a link leave it at the other end: a pure function of time, no sockets.

A link has, in each direction, a bounded buffer, then a bottleneck of some rate, then a delay that
varies without reordering. That is an access link as a sender sees it: while the bottleneck is
busy the buffer fills, and a full buffer makes the sender wait, as TCP does.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

PACKET = 1500
"""Bytes of one delivery opportunity of a trace, and of one piece at a bottleneck."""


@dataclass(frozen=True, slots=True)
class Delays:
    """States the one-way delay in seconds by its quantiles, each held for a while.

    `quantiles` are equally spaced, from 0 to 1; one value is a constant delay. A new delay is drawn
    every `hold_s` seconds on average.
    """

    quantiles: tuple[float, ...] = (0.0,)
    hold_s: float = 0.2

    def at(self, share: float) -> float:
        """Returns the delay that this share of the time is not exceeded, linear in between."""
        place = share * (len(self.quantiles) - 1)
        below = math.floor(place)
        above = min(below + 1, len(self.quantiles) - 1)
        step = self.quantiles[above] - self.quantiles[below]
        return self.quantiles[below] + (place - below) * step


@dataclass(frozen=True, slots=True)
class Stalls:
    """States how often a direction stands still, and for how long, in seconds.

    What a burst of losses does to one TCP connection: nothing gets through for a while, and nothing
    is lost.
    """

    every_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Shape:
    """Is one direction of a link.

    `rate` is in bytes a second, None for no bottleneck; `trace` has the delivery opportunities of
    one period, in ms from its start, and stands for a rate that varies. `buffer` is in bytes.
    """

    delays: Delays = Delays()
    rate: float | None = None
    trace: tuple[int, ...] = ()
    buffer: int = 256 * 1024
    stalls: Stalls | None = None


@dataclass
class Direction:
    """Keeps what is under way in one direction; all times are seconds of one clock."""

    shape: Shape
    seed: int
    _departed: float = 0.0  # when the bottleneck will have sent all it was given
    _used: int = -1  # the last opportunity of the trace that was taken
    _arrived: float = 0.0  # when the last byte will be out
    _next_draw: float = 0.0
    _delay: float = 0.0
    _stall: tuple[float, float] = (math.inf, math.inf)
    _random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def room_at(self, now: float) -> float:
        """Returns when the buffer has room for the next piece."""
        if self.shape.rate is None and not self.shape.trace:
            return now
        held = self.shape.buffer / self._mean_rate()
        return max(now, self._departed - held)

    def enter(self, now: float, size: int) -> float:
        """Takes a piece of so many bytes in; returns when it comes out, never before an earlier."""
        self._departed = self._past_stalls(self._depart(now, size))
        self._arrived = max(self._arrived, self._departed + self._delay_at(self._departed))
        return self._arrived

    def _depart(self, now: float, size: int) -> float:
        trace = self.shape.trace
        if trace:
            first = max(first_after(trace, now), self._used + 1)
            self._used = first + -(-size // PACKET) - 1
            return time_of(trace, self._used)
        start = max(now, self._departed)
        return start if self.shape.rate is None else start + size / self.shape.rate

    def _mean_rate(self) -> float:
        if self.shape.trace:
            return 1000 * len(self.shape.trace) * PACKET / self.shape.trace[-1]
        assert self.shape.rate is not None
        return self.shape.rate

    def _delay_at(self, time: float) -> float:
        if time >= self._next_draw:
            self._delay = self.shape.delays.at(self._random.random())
            self._next_draw = time + self._random.expovariate(1 / self.shape.delays.hold_s)
        return self._delay

    def _past_stalls(self, time: float) -> float:
        stalls = self.shape.stalls
        if stalls is None:
            return time
        while self._stall[1] <= time or math.isinf(self._stall[0]):
            last = time if math.isinf(self._stall[0]) else self._stall[1]
            start = last + self._random.expovariate(1 / stalls.every_s)
            self._stall = (start, start + stalls.for_s)
        return self._stall[1] if self._stall[0] <= time else time


def first_after(trace: Sequence[int], time: float) -> int:
    """Returns which opportunity, counted from 0 at time 0, is the first later than `time`, in s.

    The trace repeats with the period of its last entry, as mahimahi has it.
    """
    turn, within = divmod(round(time * 1e6), trace[-1] * 1000)  # whole microseconds
    return turn * len(trace) + bisect.bisect_right(trace, within / 1000)


def time_of(trace: Sequence[int], opportunity: int) -> float:
    """Returns when that opportunity is, in seconds."""
    turn, place = divmod(opportunity, len(trace))
    return (turn * trace[-1] + trace[place]) / 1000
