"""The real loop over a link, a draft model and a target that take simulated time."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from common.stopping import Stopper
from common.types import (
    AheadTokens,
    Draft,
    OpenSession,
    SamplingParams,
    StepTiming,
    StopParams,
    Verdict,
)
from edge_client.draft_length import Pace
from edge_client.link import Ahead, Answer
from edge_client.loop import speculate
from edge_client.policy import PLAIN, Drafted, DraftPolicy, never
from edge_client.session import ClientSession
from edge_client.steps import Step
from tests.unit.edge.pair import GREEDY, PEER, PairedStream, judged

MS = 1_000_000
PROMPT = (300, 301, 302)
NEVER = 10**18
LONGEST = 5_000
"""Tokens that prompt, text and guesses come to at most."""


def target(tokens: Sequence[int]) -> int:
    return 1 + (3 * sum(tokens[-2:]) + len(tokens)) % 200


@dataclass
class World:
    """Is what everything takes, in milliseconds; a function of the time where it changes."""

    draft_ms: float
    rtt_ms: Callable[[float], float]
    acceptance: float
    target_ms: float = 8.0
    target_token_ms: float = 0.2
    overhead_ms: float = 0.1
    draft_read_ms: float = 0.0  # the draft model's time for a token that is read, not made
    contention: float = 1.0  # by how much the target is slower while somebody drafts
    most_alone: int = LONGEST  # tokens that the server lets the target write alone; 0: it is full
    now: int = 0
    num_guessed: int = 0

    def __call__(self) -> int:
        return self.now

    def spend(self, ms: float) -> None:
        self.now += round(ms * MS)

    def reaches(self, then: int, within_s: float) -> bool:
        """Whether it is then, or will be within that time, which passes if it must."""
        is_soon = then <= self.now + round(within_s * 1e9)
        self.now = max(self.now, then) if is_soon else self.now + round(within_s * 1e9)
        return is_soon

    def half_trip(self) -> int:
        return round(self.rtt_ms(self.now / MS) * MS / 2)


@dataclass
class SimulatedStream(PairedStream):
    """Answers each draft in its turn, and lets the verdict arrive when it would."""

    world: World = field(default_factory=lambda: World(1, lambda _: 1, 1))
    _due: deque[tuple[int, int, StepTiming, int]] = field(default_factory=deque)
    _free_at: int = 0  # when the target has done what it was asked
    _last_at: int = 0

    def send(self, draft: Draft) -> None:
        self.world.spend(self.world.overhead_ms)
        sent, runs_before = self.world.now, self.forwards
        super().send(draft)
        arrives = sent + self.world.half_trip()
        begins = max(arrives, self._free_at)
        cost = self.world.target_ms + self.world.target_token_ms * (len(draft.token_ids) + 1)
        computed = round(cost * MS) if self.forwards > runs_before else 0
        self._free_at = begins + computed
        timing = StepTiming(
            queued_ns=begins - arrives, computed_ns=computed, total_ns=self._free_at - arrives
        )
        # A link keeps the order, whatever it does to delays.
        self._last_at = max(self._last_at, self._free_at + self.world.half_trip())
        self._due.append((sent, self._last_at, timing, self.world.num_guessed))

    def arrived(self, within_s: float = 0.0) -> bool:
        return self.world.reaches(self._due[0][1] if self._due else NEVER, within_s)

    def receive(self) -> Answer:
        sent, at, timing, num_guessed = self._due.popleft()
        if self.world.num_guessed > num_guessed:  # somebody drafted beside the target
            slower = round(timing.computed_ns * (self.world.contention - 1))
            at += slower
            timing = replace(
                timing,
                computed_ns=timing.computed_ns + slower,
                total_ns=timing.total_ns + slower,
            )
        self.world.now = max(self.world.now, at)
        verdict = replace(super().receive().verdict, timing=timing)
        return Answer(verdict, elapsed_ns=at - sent, bytes_up=7, bytes_down=5, received_ns=at)


@dataclass
class RunAheadStream(SimulatedStream):
    """Is a server whose target writes on alone whenever no request has arrived by then."""

    _requests: deque[tuple[int, int, Draft]] = field(default_factory=deque)
    _arriving: deque[tuple[int, Ahead | Answer]] = field(default_factory=deque)
    _num_guessed: int = 0  # when the target last began a token alone

    def __post_init__(self) -> None:
        super().__post_init__()
        self._left = self._granted
        self._free_at = self.world.now + self.world.half_trip()  # when the opening arrives

    @property
    def _granted(self) -> int:
        return min(self.world.most_alone, self.opening.run_ahead)

    def send(self, draft: Draft) -> None:
        self.world.spend(self.world.overhead_ms)
        self._advance()
        self._requests.append((self.world.now + self.world.half_trip(), self.world.now, draft))

    def arrived(self, within_s: float = 0.0) -> bool:
        self._advance()
        while within_s and not self._arriving and self._begins() < NEVER:
            self._act()
        return self.world.reaches(self._arriving[0][0] if self._arriving else NEVER, within_s)

    def receive(self) -> Answer | Ahead:  # type: ignore[override]  # more than without it
        self._advance()
        while not self._arriving:
            self._act()
        at, told = self._arriving.popleft()
        self.world.now = max(self.world.now, at)
        return told

    def _advance(self) -> None:
        """Lets the server do all that no message still to be sent can change."""
        while self._begins() < self.world.now + self.world.half_trip():
            self._act()

    def _begins(self) -> int:
        """Returns when the server begins what it does next."""
        if self._left and not self.session.finished:
            return self._free_at
        return max(self._free_at, self._requests[0][0]) if self._requests else NEVER

    def _act(self) -> None:
        begins = self._begins()
        assert begins < NEVER, "both ends wait for each other"
        if self._requests and self._requests[0][0] <= begins:
            arrives, sent, draft = self._requests.popleft()
            self._left = self._granted
            admitted = self.session.admit(draft)
            computed = 0
            if not isinstance(admitted, Verdict):
                computed = self._cost(len(admitted.guesses) + 1)
                admitted = self.session.settle(draft, admitted, judged(admitted))
            self._free_at = begins + computed
            timing = StepTiming(
                queued_ns=begins - arrives, computed_ns=computed, total_ns=self._free_at - arrives
            )
            verdict = replace(admitted, timing=timing)
            at = self._due_at()
            self._arriving.append((at, Answer(verdict, at - sent, 7, 5, received_ns=at)))
            return
        self._left -= 1
        position = self.session.position
        draft = Draft(0, position, self.session.epoch)
        check = self.session.admit(draft)
        assert not isinstance(check, Verdict)
        verdict = self.session.settle(draft, check, judged(check))
        cost = self._cost(1)
        if self.world.num_guessed > self._num_guessed:
            cost = round(cost * self.world.contention)
        self._num_guessed = self.world.num_guessed
        self._free_at = begins + cost
        token_ids = tuple(self.session.history[position:])
        timing = StepTiming(computed_ns=cost, total_ns=cost)
        tokens = AheadTokens(position, token_ids, verdict.finish_reason, timing)
        at = self._due_at()
        self._arriving.append((at, Ahead(tokens, 0, 5, received_ns=at)))

    def _cost(self, tokens: int) -> int:
        return round((self.world.target_ms + self.world.target_token_ms * tokens) * MS)

    def _due_at(self) -> int:
        self._last_at = max(self._last_at, self._free_at + self.world.half_trip())
        return self._last_at


@dataclass
class SimulatedDrafter:
    """Is right with the probability of the world, at the same places however it is asked."""

    world: World
    seed: int

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        self._read = 0
        self._luck = [chance.random() for _ in range(LONGEST)]

    def draft(
        self,
        history: Sequence[int],
        count: int,
        sampling: SamplingParams,
        *,
        prompt_length: int,
        ends: Collection[int] = (),
        policy: DraftPolicy = PLAIN,
        interrupted: Callable[[], bool] = never,
        behind: bool = False,
    ) -> Drafted:
        tokens = list(history)
        unread = max(1, len(history) - self._read)
        if count:
            self.world.spend(self.world.draft_read_ms * (unread - 1))
            self._read = len(history) + count
        for made in range(count):
            if made and interrupted():
                return Drafted(
                    tuple(tokens[len(history) :]), interrupted=True, num_read_tokens=unread
                )
            self.world.spend(self.world.draft_ms)
            self.world.num_guessed += 1
            right = self._luck[len(tokens)] < self.world.acceptance
            tokens.append(target(tokens) if right else 299)
        return Drafted(tuple(tokens[len(history) :]), num_read_tokens=unread)


def simulate(
    world: World,
    pace: Pace,
    tokens: int,
    seed: int = 0,
    prompt: tuple[int, ...] = PROMPT,
    run_ahead: int = 0,
) -> list[tuple[int, Step]]:
    """Writes a text; returns its steps and when each came, in nanoseconds."""
    stop = StopParams(tokens, ())
    kind = RunAheadStream if run_ahead else SimulatedStream
    stream = kind(OpenSession(PEER, prompt, GREEDY, stop, run_ahead=run_ahead), world=world)
    steps = speculate(
        ClientSession(prompt, run_ahead=run_ahead),
        SimulatedDrafter(world, seed),
        stream,
        Stopper(stop, model_eos=(), room=LONGEST),
        pace,
        PLAIN,
        GREEDY,
        world,
    )
    return [(world.now, step) for step in steps]


def rate(
    world: World,
    pace: Pace,
    tokens: int,
    seed: int = 0,
    prompt: tuple[int, ...] = PROMPT,
    run_ahead: int = 0,
) -> float:
    """Returns tokens a second."""
    began = world.now
    steps = simulate(world, pace, tokens, seed, prompt, run_ahead)
    return sum(len(step.token_ids) for _, step in steps) / (steps[-1][0] - began) * 1e9
