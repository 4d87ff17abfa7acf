"""Where the target runs ahead: drafts only while that is faster than leaving it alone."""

from __future__ import annotations

from edge_client.adaptive import AdaptivePace
from edge_client.policy import Drafted
from edge_client.steps import Step

TRIED_TOKENS = {True: 24, False: 8}
"""For how many tokens the slower way is tried, with drafts and without: these come evenly."""
KEPT_TOKENS, MOST_KEPT = 128, 2048
"""For how many the faster one is then kept: four times as many each time it wins again."""


class RunAheadPace:
    """Drafts as an adaptive pace says, or not at all.

    With drafts the target writes several tokens a step, if they come in time and are right;
    without them a machine that both ends share, and the edge's battery, are spared. So each
    way is timed, in tokens a second as they arrive, and the slower one tried again now and then.
    """

    def __init__(self, pace: AdaptivePace) -> None:
        """Begins with drafts."""
        self._pace = pace
        self._drafts = True
        self._rates: dict[bool, float] = {}  # tokens a nanosecond, with drafts and without
        self._tries = True
        self._wanted = TRIED_TOKENS[True]
        self._kept = KEPT_TOKENS
        self._tokens = self._spent_ns = 0
        self._last_ns: int | None = None  # the arrival before, where this way made what follows
        self._awaits_verdict = False  # on a first draft, since drafts are made again

    @property
    def ahead(self) -> int:
        """How many drafts may be sent ahead of the oldest verdict awaited."""
        return self._pace.ahead if self._drafts else 0

    def tokens_a_second(self, *, drafts: bool) -> float | None:
        """Returns how fast one way was when last timed; None before."""
        rate = self._rates.get(drafts)
        return None if rate is None else rate * 1e9

    def begin(self) -> None:
        """Keeps what earlier texts have taught."""
        self._pace.begin()
        self._last_ns = None

    def next(self, remaining: int) -> int:
        """Returns the draft length of the next round, at least 0."""
        return self._pace.next(remaining) if self._drafts else 0

    def drafted(self, drafted: Drafted, spent_ns: int) -> None:
        """Takes note of how long guesses took."""
        self._pace.drafted(drafted, spent_ns)

    def learn(self, step: Step) -> None:
        """Takes note of what came and when."""
        self._pace.learn(step)
        if step.received_ns is None:
            return
        if step.num_guessed_tokens and (self._awaits_verdict or not self._drafts):
            # Only now does the way that is timed begin: with its own first draft judged, or when
            # the other's last is.
            self._awaits_verdict = False
            self._tokens = self._spent_ns = 0
            self._last_ns = step.received_ns
            return
        if not step.token_ids:
            return
        before, self._last_ns = self._last_ns, step.received_ns
        if before is None or self._awaits_verdict or step.reconnects:
            return
        self._tokens += len(step.token_ids)
        self._spent_ns += step.received_ns - before
        if self._tokens >= self._wanted:
            self._rates[self._drafts] = self._tokens / max(1, self._spent_ns)
            self._tokens = self._spent_ns = 0
            self._decide()

    def _decide(self) -> None:
        other = self._rates.get(not self._drafts)
        if not self._tries or other is None:
            self._change(tries=True)
        elif self._rates[self._drafts] > other:
            self._wanted = KEPT_TOKENS
            self._kept = 4 * KEPT_TOKENS
            self._tries = False
        else:
            self._change(tries=False)
            self._kept = min(4 * self._kept, MOST_KEPT)

    def _change(self, *, tries: bool) -> None:
        self._drafts, self._tries = not self._drafts, tries
        self._wanted = TRIED_TOKENS[self._drafts] if tries else self._kept
        self._awaits_verdict = self._drafts
