"""Draft length and drafts ahead that follow the link, the models and the text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from edge_client.expectation import Situation, drafts_ahead, tokens_a_second
from edge_client.loop import Step

MOST_ADAPTIVE = 32
"""The longest draft that is considered."""
FIRST_DRAFT_S = 0.004
"""How long a draft may take to make while the link is not known: about what a target takes."""
MOST_AHEAD = 32
"""Half of what a server remembers to answer again."""
RECENT = 7
"""Rounds that times are the median of, so that a link's change shows after four."""
FORGETTING = 0.98
"""What a round counts for beside the one after it, in acceptance and the server's times."""
GUESSED_ACCEPTANCE, ITS_WEIGHT = 0.7, 2.0
"""Of guesses at large, before any was judged, and for how many judged ones that counts."""
POOLED_WEIGHT = 20.0
"""For how many guesses at a position those at all others count."""


class AdaptivePace:
    """Takes what promises the most confirmed tokens a second (see expectation.py)."""

    def __init__(
        self, lengths: Sequence[int], max_draft_tokens: int, ahead: int | None = None
    ) -> None:
        """Chooses among draft lengths; `ahead` None chooses that as well."""
        self._lengths = sorted({min(length, max_draft_tokens) for length in lengths})
        self._given_ahead = ahead
        self._acceptance = _Acceptance(self._lengths[-1] + 1)
        self._server = _Line()
        self._draft_s: deque[float] = deque(maxlen=RECENT)
        self._network_s: deque[float] = deque(maxlen=RECENT)
        self._rounds = 0
        # At first asks at once for what the target itself would say, and drafts on meanwhile.
        self._length = self._lengths[0]
        self._ahead = MOST_AHEAD if ahead is None else ahead

    @property
    def ahead(self) -> int:
        """How many drafts may be sent ahead of the oldest verdict awaited."""
        return self._ahead

    def next(self, remaining: int) -> int:
        """Returns the draft length of the next round, at least 0."""
        return max(0, min(self._length, remaining - 1))

    def drafted(self, tokens: int, spent_ns: int) -> None:
        """Takes note of how long guesses took."""
        if not tokens:
            return
        self._draft_s.append(spent_ns / tokens / 1e9)
        if not self._rounds:
            fitting = FIRST_DRAFT_S / median(self._draft_s) - 1  # 1: the assumed bonus token
            self._length = max(
                (length for length in self._lengths if length <= fitting), default=self._lengths[0]
            )

    def learn(self, step: Step) -> None:
        """Takes note of a round; what was overtaken or mended tells nothing."""
        tells = bool(step.token_ids or step.num_draft_tokens)  # of itself, or of what is known
        if not tells or step.timing is None or step.elapsed_ns is None:
            return
        drafted, accepted = step.num_draft_tokens or 0, step.num_accepted_tokens or 0
        self._acceptance.add(drafted, accepted)
        self._network_s.append((step.elapsed_ns - step.timing.total_ns) / 1e9)
        self._rounds += 1
        if self._rounds == 2:
            self._server = _Line()  # the first round waited for the prompt
        if step.token_ids:  # else nothing was run: what is held decided
            self._measure(step, drafted)
        if self._server.is_known:
            self._choose()

    def _measure(self, step: Step, drafted: int) -> None:
        assert step.timing is not None
        own_ns = step.timing.total_ns - (step.timing.queued_ns if step.ahead else 0)
        self._server.add(drafted + 1, own_ns / 1e9)

    def situation(self) -> Situation | None:
        """Returns what is known by now; None before the first round."""
        if not self._network_s or not self._server.is_known:
            return None
        fixed, each = self._server.fit()
        return Situation(
            # A server alone decides where nothing was drafted yet.
            draft_s=median(self._draft_s) if self._draft_s else 0.0,
            network_s=max(0.0, median(self._network_s)),
            target_s=fixed,
            target_token_s=each,
            acceptance=self._acceptance.by_position(),
        )

    def _choose(self) -> None:
        situation = self.situation()
        assert situation is not None  # a round was just added

        def aheads(length: int) -> tuple[int, ...]:
            if self._given_ahead is not None:
                return (self._given_ahead,)
            return drafts_ahead(situation, length, MOST_AHEAD)

        _, self._length, self._ahead = max(
            (tokens_a_second(situation, length, ahead), length, ahead)
            for length in self._lengths
            for ahead in aheads(length)
        )


class _Acceptance:
    """Estimates by position how likely a guess stands once those before it do."""

    def __init__(self, positions: int) -> None:
        self._judged = [0.0] * positions
        self._stood = [0.0] * positions

    def add(self, drafted: int, accepted: int) -> None:
        self._judged = [FORGETTING * count for count in self._judged]
        self._stood = [FORGETTING * count for count in self._stood]
        for position in range(min(drafted, accepted + 1, len(self._judged))):
            self._judged[position] += 1
            self._stood[position] += position < accepted

    def by_position(self) -> list[float]:
        pooled = (sum(self._stood) + GUESSED_ACCEPTANCE * ITS_WEIGHT) / (
            sum(self._judged) + ITS_WEIGHT
        )
        return [
            (stood + pooled * POOLED_WEIGHT) / (judged + POOLED_WEIGHT)
            for stood, judged in zip(self._stood, self._judged, strict=True)
        ]


class _Line:
    """Fits seconds over tokens by least squares, the latest rounds weighing most."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, x: float, y: float) -> None:
        keep = FORGETTING
        self._weight = keep * self._weight + 1
        self._x, self._y = keep * self._x + x, keep * self._y + y
        self._xx, self._xy = keep * self._xx + x * x, keep * self._xy + x * y

    @property
    def is_known(self) -> bool:
        return self._weight > 0

    def fit(self) -> tuple[float, float]:
        """Returns intercept and slope, neither below 0."""
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x**2
        slope = 0.0
        if spread > 0.25:  # lengths that hardly differ tell noise
            slope = (self._xy / self._weight - mean_x * mean_y) / spread
        slope = min(max(slope, 0.0), mean_y / mean_x)
        return mean_y - slope * mean_x, slope
