"""Draft length and drafts ahead that follow the link, the models and the text."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median

from common.types import StepTiming
from edge_client.expectation import Paces, Situation
from edge_client.policy import Drafted
from edge_client.steps import Step

ADAPTIVE_LENGTHS = (*range(7), 8, 10, 12, 16, 20, 24, 32)
"""Draft lengths that are considered: all short ones, and long ones by steps that matter."""
FIRST_DRAFT_S = 0.004
"""How long a draft may take to make while the link is not known: about what a target takes."""
MOST_READ = 8
"""Tokens of a text that the draft model reads in about the time of one."""
TRIED_AGAIN = 80.0
"""Where drafting does not pay: after how many draft tokens' time it is tried again, two tokens."""
MOST_AHEAD = 32
"""Half of what a server remembers to answer again."""
RECENT = 7
"""Rounds that times are the median of, so that a link's change shows after four."""
FORGETTING = 0.98
"""What a round counts for beside the one after it, in acceptance and the server's times."""
GUESSED_ACCEPTANCE, ITS_WEIGHT = 0.7, 2.0
"""Of guesses at large, before any was judged, and for how many judged ones that counts."""
NEAR_S, TRIED_ROUNDS = 0.003, 4
"""Below which network time both ends may share a machine, and rounds that then tell what it takes
the target while nobody drafts."""
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
        # Ends that share a machine slow each other down where drafting goes on while the target
        # works: so both are timed apart for either way.
        self._waiting, self._sending = _Speeds(), _Speeds()
        self._network_s: deque[float] = deque(maxlen=RECENT)
        self._edge_round_s: deque[float] = deque(maxlen=RECENT)
        self._received_ns: int | None = None  # when the verdict before came
        self._rounds = 0  # of this text
        self._is_provisional = True  # what is known of the server's times, if anything
        self._is_rough = False  # what is known of the draft's time
        self._undrafted = 0  # tokens since drafting was given up
        self._most_undrafted = 0.0  # and after how many it is tried again
        # At first asks at once for what the target itself would say, and drafts on meanwhile.
        self._length = self._lengths[0]
        self._ahead = MOST_AHEAD if ahead is None else ahead

    @property
    def ahead(self) -> int:
        """How many drafts may be sent ahead of the oldest verdict awaited."""
        return self._ahead

    def begin(self) -> None:
        """Keeps what earlier texts have taught: link and models are the same."""
        self._received_ns = None
        self._rounds = 0

    def next(self, remaining: int) -> int:
        """Returns the draft length of the next round, at least 0."""
        tries_again = self._undrafted and self._undrafted >= self._most_undrafted
        length = self._lengths[-1] and 1 if tries_again else self._length
        return max(0, min(length, remaining - 1))

    def drafted(self, drafted: Drafted, spent_ns: int) -> None:
        """Takes note of how long guesses took; where much was read first, only if nothing else is
        known."""
        was_read = drafted.num_read_tokens // (MOST_READ + 1)
        is_known = bool(self._waiting.draft_s or self._sending.draft_s) and not self._is_rough
        if not drafted.token_ids or (was_read and is_known):
            return
        draft_s = max(spent_ns, 1) / (len(drafted.token_ids) + was_read) / 1e9
        if self._undrafted or self._is_rough:
            self._waiting.draft_s.clear()  # what was thought then
            self._sending.draft_s.clear()
            self._undrafted = 0
        self._is_rough = was_read > 0
        self._speeds.draft_s.append(draft_s)
        if not self._network_s:
            fitting = FIRST_DRAFT_S / draft_s - 1  # 1: the assumed bonus token
            self._length = max(
                (length for length in self._lengths if length <= fitting), default=self._lengths[0]
            )

    def learn(self, step: Step) -> None:
        """Takes note of a round; what was overtaken or mended tells nothing."""
        # Between tokens that the target writes alone, the edge may only have listened.
        before, self._received_ns = self._received_ns, None if step.run_ahead else step.received_ns
        self._undrafted += self._undrafted and len(step.token_ids)
        tells = bool(step.token_ids or step.num_draft_tokens)  # of itself, or of what is known
        if not tells or step.timing is None or step.elapsed_ns is None:
            return
        drafted, accepted = step.num_draft_tokens or 0, step.num_accepted_tokens or 0
        self._acceptance.add(drafted, accepted)
        self._network_s.append(max(0, step.elapsed_ns - step.timing.total_ns) / 1e9)
        self._rounds += 1
        takes_prompt = self._rounds == 1
        if self._is_provisional and not takes_prompt:
            self._waiting.server, self._sending.server = _Line(), _Line()
            self._is_provisional = False
        is_plain = bool(step.token_ids) and not step.reconnects  # else nothing was run, or more
        if is_plain and (self._is_provisional or not takes_prompt):
            self._speeds.server.add(drafted + 1, _server_ns(step.timing, step) / 1e9)
        if before is not None and not step.ahead:
            self._edge_round_s.append(_elsewhere_ns(step, before) / 1e9)
        if self._waiting.server.is_known or self._sending.server.is_known:
            self._choose()

    def _network(self) -> float:
        return median(self._network_s) if self._network_s else 0.0

    def situation(self, *, ahead: bool) -> Situation | None:
        """Returns what is known by now of one way; None before the first round."""
        known = self._waiting.server.is_known or self._sending.server.is_known
        return self._situation(ahead=ahead) if known else None

    def _situation(self, *, ahead: bool) -> Situation:
        own, other = (self._sending, self._waiting) if ahead else (self._waiting, self._sending)
        draft_s = own.draft_s or other.draft_s
        fixed, each = (own if own.server.is_known else other).server.fit()
        return Situation(
            # The server alone decides where nothing was drafted yet.
            draft_s=median(draft_s) if draft_s else 0.0,
            network_s=self._network(),
            target_s=fixed,
            target_token_s=each,
            acceptance=self._acceptance.by_position(),
            edge_round_s=max(0.0, median(self._edge_round_s)) if self._edge_round_s else 0.0,
        )

    @property
    def _speeds(self) -> _Speeds:
        return self._sending if self._ahead else self._waiting

    def _choose(self) -> None:
        longest = self._lengths[-1]
        if not (self._waiting.draft_s or self._sending.draft_s):
            self._length = min(1, longest)  # which tells
            return
        known = [self._situation(ahead=ahead) for ahead in (False, True)]
        waiting, sending = (Paces(situation, longest) for situation in known)
        if self._given_ahead is not None:
            paces = sending if self._given_ahead else waiting
            settings = [(paces, length, self._given_ahead) for length in self._lengths]
        else:
            settings = [(waiting, length, 0) for length in self._lengths]
            near = self._network() < NEAR_S
            if not near or self._waiting.server.rounds >= TRIED_ROUNDS:
                settings += [
                    (sending, length, ahead)
                    for length in self._lengths
                    for ahead in sending.drafts_ahead(length, MOST_AHEAD)
                    if ahead
                ]
        rate, self._length, self._ahead = max(
            (paces.tokens_a_second(length, ahead), length, ahead)
            for paces, length, ahead in settings
        )
        if self._length or self._ahead:
            return
        self._undrafted = max(1, self._undrafted)
        self._most_undrafted = (
            TRIED_AGAIN * rate * median(self._waiting.draft_s or self._sending.draft_s)
        )


class _Speeds:
    """Is how fast both ends are while one way of sending is used."""

    def __init__(self) -> None:
        self.draft_s: deque[float] = deque(maxlen=RECENT)
        self.server = _Line()


def _server_ns(timing: StepTiming, step: Step) -> int:
    """Returns the server's time for a round, without its wait for the one before it."""
    total = min(timing.total_ns, step.elapsed_ns or 0)
    return max(1, total - (min(timing.queued_ns, total) if step.ahead else 0))


def _elsewhere_ns(step: Step, before_ns: int) -> int:
    """Returns what a round took from the verdict before it on, beyond drafting and its trip."""
    spans = step.drafting or ()
    drafting = sum(end - max(begin, before_ns) for begin, end in spans if end > before_ns)
    return (step.received_ns or 0) - before_ns - drafting - (step.elapsed_ns or 0)


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
        self.rounds = 0

    @property
    def is_known(self) -> bool:
        """Whether there is anything to fit."""
        return self.rounds > 0

    def add(self, x: float, y: float) -> None:
        keep = FORGETTING
        self.rounds += 1
        self._weight = keep * self._weight + 1
        self._x, self._y = keep * self._x + x, keep * self._y + y
        self._xx, self._xy = keep * self._xx + x * x, keep * self._xy + x * y

    def fit(self) -> tuple[float, float]:
        """Returns intercept and slope, neither below 0."""
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - mean_x**2
        slope = 0.0
        if spread > 0.25:  # lengths that hardly differ tell noise
            slope = (self._xy / self._weight - mean_x * mean_y) / spread
        slope = min(max(slope, 0.0), mean_y / mean_x)
        return mean_y - slope * mean_x, slope
