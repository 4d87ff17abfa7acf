"""Whatever is lost on the way, the text is the undisturbed one, and the books say what it cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.acceptance import Check
from common.config import NetworkSection
from common.errors import (
    DeadlineError,
    EvictedError,
    HandshakeError,
    InternalError,
    InvalidRequestError,
    OutriderError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from common.types import (
    AheadTokens,
    Draft,
    FinishReason,
    GeneratedTokens,
    GenerateMode,
    OpenSession,
    Opinion,
    ServerInfo,
    StopParams,
)
from edge_client.arms import (
    Arm,
    Drafting,
    GenerationRequest,
    Speculative,
    Step,
    build_arms,
)
from edge_client.draft_length import FixedPace
from edge_client.link import Ahead, Answer, Opened, Piece
from edge_client.resume import ResilientCloud
from tests.models import tiny_tokenizer
from tests.unit.edge.pair import (
    GREEDY,
    PEER,
    TIMING,
    PairedStream,
    ScriptedDrafter,
    judged,
    server_info,
    undisturbed,
)

PROMPT = (5, 6, 7)
STOP = StopParams(24, eos_token_ids=())
TRUTH = undisturbed(PROMPT, STOP)
SECOND = 1_000_000_000
Value = TypeVar("Value")


class Time:
    """Stands still but for sleeps."""

    def __init__(self) -> None:
        self.now = 0
        self.slept: list[float] = []

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += round(seconds * SECOND)


@dataclass
class World:
    """Holds the servers: what happens at each asking, and what each was asked."""

    fates: deque[OutriderError | None] = field(default_factory=deque)
    info: ServerInfo = field(default_factory=server_info)
    openings: list[tuple[str, OpenSession, float | None]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def fate(self) -> None:
        """Fails as the next fate says; when none is left, nothing fails any more."""
        error = self.fates.popleft() if self.fates else None
        if error is not None:
            raise error


class FailingStream(PairedStream):
    """Is lost when the world says so, before or after the server has taken the draft in."""

    world: World
    lost = False

    def opened(self) -> Opened:
        return self._unless_lost(super().opened)

    def receive(self) -> Answer:
        return self._unless_lost(super().receive)

    def _unless_lost(self, ask: Callable[[], Value]) -> Value:
        assert not self.lost, "a lost stream was asked again"
        self.lost = True
        self.world.fate()
        self.lost = False
        return ask()


@dataclass
class FailingServer:
    """Is a connection to a server of the world."""

    address: str
    world: World

    def info(self) -> ServerInfo:
        self.world.fate()
        return self.world.info

    def echo(self, payload: bytes) -> tuple[int, int]:
        self.world.fate()
        return 4, 2

    def score(self, context: Sequence[int], token_ids: Sequence[int]) -> tuple[float, ...]:
        raise NotImplementedError

    def opinion(self, context: Sequence[int], text: Sequence[int]) -> Opinion:
        raise NotImplementedError

    @contextmanager
    def open(self, opening: OpenSession, timeout_s: float | None) -> Iterator[FailingStream]:
        self.world.openings.append((self.address, opening, timeout_s))
        stream = FailingStream(opening)
        stream.world = self.world
        # The server has what the client says it had generated.
        stream.session = stream._open(opening.generated_token_ids)
        yield stream

    def generate(
        self, mode: GenerateMode, opening: OpenSession, timeout_s: float | None
    ) -> Generator[Piece, None, None]:
        self.world.openings.append((self.address, opening, timeout_s))
        for index in range(len(opening.generated_token_ids), len(TRUTH)):
            self.world.fate()
            reason = FinishReason.MAX_NEW_TOKENS if index == len(TRUTH) - 1 else None
            yield Piece(GeneratedTokens((TRUTH[index],), reason, TIMING), 9, 7, 5)
        self.world.fate()  # even after the last piece

    def close(self) -> None:
        self.world.closed.append(self.address)


def resilient(
    world: World, time: Time, *addresses: str, dice: float = 0.5, **network: float
) -> ResilientCloud:
    return ResilientCloud(
        addresses or ("one",),
        lambda address: FailingServer(address, world),
        NetworkSection(**network),  # type: ignore[arg-type]
        clock=time,
        sleep=time.sleep,
        dice=lambda: dice,
    )


def arm(
    name: str, cloud: ResilientCloud, time: Time, drafter: ScriptedDrafter | None = None
) -> Arm:
    return build_arms(
        [name],
        tokenizer=tiny_tokenizer(),
        peer=PEER,
        drafter=drafter or ScriptedDrafter(wrong=3),
        cloud=cloud,
        server=server_info(),
        drafting=Drafting(FixedPace(4, 8)),
        clock=time,
    )[name]


def run(arm: Arm) -> list[Step]:
    return list(arm.run(GenerationRequest(PROMPT, GREEDY, STOP)))


def tokens(steps: Sequence[Step]) -> tuple[int, ...]:
    return tuple(token for step in steps for token in step.token_ids)


LOSSES = st.lists(
    st.sampled_from(
        [
            None,
            None,
            UnavailableError("gone"),
            DeadlineError("silent"),
            EvictedError("idle"),
            OverloadedError("full", 0.2),
        ]
    ),
    max_size=40,
)


@given(LOSSES, st.sampled_from(["speculative", "cloud", "cloud_optimized"]), st.integers(1, 3))
def test_whatever_is_lost_the_text_is_the_undisturbed_one(
    fates: list[OutriderError | None], name: str, servers: int
) -> None:
    world, time = World(deque(fates)), Time()
    cloud = resilient(world, time, *"abc"[:servers], reconnect_s=1e6)
    steps = run(arm(name, cloud, time))
    assert tokens(steps) == TRUTH
    losses = sum(fate is not None for fate in fates[: len(fates) - len(world.fates)])
    # A loss after the last piece is none to the text.
    assert losses - sum(step.reconnects or 0 for step in steps) in (0, int(name != "speculative"))
    assert sum(step.lost_ns or 0 for step in steps) == round(sum(time.slept) * SECOND)
    assert len(time.slept) == sum(step.reconnects or 0 for step in steps)


@pytest.mark.parametrize("name", ["cloud", "cloud_optimized"])
def test_a_loss_after_the_last_piece_costs_nothing(name: str) -> None:
    fates: list[OutriderError | None] = [None] * len(TRUTH)
    world, time = World(deque([*fates, UnavailableError("gone")])), Time()
    assert tokens(run(arm(name, resilient(world, time), time))) == TRUTH
    assert (time.slept, len(world.openings), len(world.fates)) == ([], 1, 0)


class AheadStream(FailingStream):
    """Lets the target write on alone before each draft comes, and while nobody asks."""

    def __init__(self, opening: OpenSession, world: World, alone: Iterator[int]) -> None:
        super().__init__(opening)
        self.world, self.alone = world, alone
        self.session = self._open(opening.generated_token_ids)
        self.told: deque[Answer | Ahead] = deque()

    def send(self, draft: Draft) -> None:
        for _ in range(next(self.alone)):
            self._write()
        super().send(draft)
        self.told.append(Answer(self._answers.popleft(), 9, 7, 5))

    def receive(self) -> Answer | Ahead:  # type: ignore[override]  # more than without it
        if not self.told:
            self._write()
        return self._unless_lost(self.told.popleft)

    def _write(self) -> None:
        if self.session.finished:
            return
        position = self.session.position
        draft = Draft(0, position, self.session.epoch)
        check = self.session.admit(draft)
        assert isinstance(check, Check)
        reason = self.session.settle(draft, check, judged(check)).finish_reason
        token_ids = tuple(self.session.history[position:])
        self.told.append(Ahead(AheadTokens(position, token_ids, reason, TIMING), 0, 5))


@given(LOSSES, st.lists(st.integers(0, 4), min_size=1, max_size=9), st.integers(0, 3))
def test_whatever_is_lost_while_the_target_runs_ahead_the_text_is_the_same(
    fates: list[OutriderError | None], alone: list[int], in_advance: int
) -> None:
    world, time, counts = World(deque(fates)), Time(), cycle(alone)

    class Server(FailingServer):
        @contextmanager
        def open(self, opening: OpenSession, timeout_s: float | None) -> Iterator[FailingStream]:
            assert opening.run_ahead == 8
            self.world.openings.append((self.address, opening, timeout_s))
            yield AheadStream(opening, self.world, counts)

    cloud = ResilientCloud(
        ("one",),
        lambda address: Server(address, world),
        NetworkSection(reconnect_s=1e6),
        clock=time,
        sleep=time.sleep,
        dice=lambda: 0.5,
    )
    made = arm("speculative", cloud, time)
    assert isinstance(made, Speculative)
    drafting = Drafting(FixedPace(4, 8, in_advance), run_ahead=8)
    assert tokens(run(replace(made, drafting=drafting))) == TRUTH
    told = [opening.generated_token_ids for _, opening, _ in world.openings]
    assert told == sorted(told, key=len)  # what came ahead is never asked for again


@given(st.lists(st.booleans(), max_size=20), st.sets(st.integers(0, 60)))
def test_unasked_blocks_and_losses_together(lost: list[bool], sure: set[int]) -> None:
    world, time = World(deque(UnavailableError("gone") if x else None for x in lost)), Time()
    drafter = ScriptedDrafter(sure=lambda guesses: sum(guesses) % 60 in sure)
    cloud = resilient(world, time, reconnect_s=1e6)
    assert tokens(run(arm("speculative", cloud, time, drafter))) == TRUTH


def test_a_session_is_opened_again_with_what_is_confirmed_and_its_draft_is_sent_again() -> None:
    world, time = World(deque([None, UnavailableError("gone")])), Time()
    with resilient(world, time, "one", "two").open(OpenSession(PEER, PROMPT, GREEDY, STOP)) as s:
        s.send(Draft(1, 3, 0, (TRUTH[1], 299), confirmed_token_ids=TRUTH[:1]))
        before = s.receive()
        s.send(Draft(2, 6, 1, TRUTH[3:5]))
        answer = s.receive()
    assert isinstance(before, Answer)
    assert isinstance(answer, Answer)
    assert before.verdict.position == 6
    assert (answer.verdict.step_id, answer.verdict.accepted) == (2, 2)
    assert (answer.reconnects, answer.lost_ns) == (1, round(time.slept[0] * SECOND))
    (_, first, _), (address, again, _) = world.openings
    assert address == "two"
    assert world.closed == ["one"]
    assert first.generated_token_ids == ()
    assert again == replace(first, generated_token_ids=TRUTH[:3])


@pytest.mark.parametrize("losses", [0, 1, 3])
def test_losses_while_nothing_is_in_flight_are_told_with_the_opening(losses: int) -> None:
    world, time = World(deque([UnavailableError("gone")] * losses)), Time()
    with resilient(world, time).open(OpenSession(PEER, PROMPT, GREEDY, STOP)) as stream:
        time.now += SECOND  # of drafting: nobody waits for the server yet
        opened = stream.opened()
        assert opened == Opened(3, 2, losses, round(sum(time.slept) * SECOND))
        time.now += SECOND
        stream.send(Draft(1, 3, 0, TRUTH[:2]))
        answer = stream.receive()
    assert (answer.reconnects, answer.lost_ns) == (0, 0)  # told once


def test_losses_while_a_draft_is_in_flight_are_told_with_its_verdict_alone() -> None:
    world, time = World(deque([UnavailableError("gone")])), Time()
    with resilient(world, time).open(OpenSession(PEER, PROMPT, GREEDY, STOP)) as stream:
        stream.send(Draft(1, 3, 0, TRUTH[:2]))
        assert stream.opened() == Opened(3, 2)
        answer = stream.receive()
    assert (answer.reconnects, answer.lost_ns) == (1, round(time.slept[0] * SECOND))


def test_no_second_of_an_outage_is_told_twice_with_two_drafts_in_flight() -> None:
    gone = UnavailableError("gone")
    world, time = World(deque([gone, None, gone])), Time()
    with resilient(world, time, reconnect_s=1e6).open(
        OpenSession(PEER, PROMPT, GREEDY, STOP)
    ) as stream:
        stream.send(Draft(1, 3, 0, TRUTH[:2]))
        time.now += SECOND
        stream.send(Draft(2, 5, 0, TRUTH[2:6], assumed_bonus_token_id=TRUTH[2]))
        first = stream.receive()
        time.now += SECOND
        second = stream.receive()
    waits = [round(slept * SECOND) for slept in time.slept]
    assert (first.reconnects, first.lost_ns) == (1, SECOND + waits[0])  # asking since it was sent
    assert (second.reconnects, second.lost_ns) == (1, SECOND + waits[1])  # since the first verdict


def test_the_wait_grows_is_jittered_and_each_server_has_its_turn() -> None:
    for dice, factor in ((0.0, 0.5), (1.0, 1.0)):
        world, time = World(deque([UnavailableError("gone")] * 18)), Time()
        cloud = resilient(world, time, "a", "b", dice=dice, reconnect_s=1e6)
        assert cloud.echo(b"") == (4, 2)
        longest = [0.05 * 2**n for n in range(7)] + [5.0, 5.0]
        assert time.slept == pytest.approx([w * factor for w in longest for _ in "ab"])
        assert world.closed == ["a", "b"] * 9


def test_a_redirect_is_followed_to_a_server_the_user_named_and_to_no_other() -> None:
    for redirect, then in (("d", "d"), ("stranger", "b"), (None, "b")):
        world, time = World(deque([UnavailableError("draining", redirect)])), Time()
        cloud = resilient(world, time, *"abcd")
        cloud.echo(b"")
        assert cloud.address == then


def test_a_servers_hint_is_honoured() -> None:
    world, time = World(deque([OverloadedError("full", 3.0)])), Time()
    resilient(world, time, dice=0.4).echo(b"")
    assert time.slept == [pytest.approx(3.3)]


def test_an_outage_is_given_up_in_time_and_the_next_ask_tries_once() -> None:
    world, time = World(deque([UnavailableError("gone")] * 1000)), Time()
    cloud = resilient(world, time, reconnect_s=2.0)
    with pytest.raises(UnavailableError, match=r"gone; given up after \d+ attempts in 1\.\d s"):
        cloud.echo(b"")
    assert 1.0 < sum(time.slept) <= 2.0
    before = len(time.slept), len(world.fates)
    with pytest.raises(UnavailableError):
        run(arm("speculative", cloud, time))
    assert (len(time.slept), len(world.fates)) == (before[0], before[1] - 1)
    world.fates.clear()
    cloud.echo(b"")
    world.fates.append(UnavailableError("gone"))
    cloud.echo(b"")  # another outage has patience of its own
    assert len(time.slept) == before[0] + 1


def test_without_patience_the_first_loss_is_told_as_it_is() -> None:
    world, time = World(deque([UnavailableError("gone")])), Time()
    with pytest.raises(UnavailableError, match=r"^gone$"):
        run(arm("cloud", resilient(world, time, reconnect_s=0.0), time))
    assert time.slept == []


@pytest.mark.parametrize("name", ["speculative", "cloud_optimized"])
def test_a_deadline_ends_it_whatever_the_patience(name: str) -> None:
    world, time = World(deque([None] * 3 + [UnavailableError("gone")] * 1000)), Time()
    cloud = resilient(world, time, reconnect_s=1e6, deadline_s=7.0)
    steps: list[Step] = []
    request = GenerationRequest(PROMPT, GREEDY, STOP)
    with pytest.raises(DeadlineError, match=r"network\.deadline_s = 7 s"):
        steps.extend(arm(name, cloud, time).run(request))
    assert time.now == 7 * SECOND
    assert tokens(steps) == TRUTH[: len(tokens(steps))] != ()
    allowed = [timeout for _, _, timeout in world.openings]
    assert allowed[0] == 7.0
    assert allowed == sorted(allowed, reverse=True)  # type: ignore[type-var]


@pytest.mark.parametrize("error", [RefusedError("no"), InvalidRequestError("bad")])
def test_what_cannot_pass_is_not_asked_again(error: OutriderError) -> None:
    world, time = World(deque([None, error])), Time()
    with pytest.raises(type(error)):
        run(arm("speculative", resilient(world, time, "a", "b"), time))
    assert time.slept == []


@pytest.mark.parametrize("name", ["speculative", "cloud", "cloud_optimized"])
def test_a_step_that_failed_in_one_server_is_asked_once_of_each_other(name: str) -> None:
    world, time = World(deque([None, InternalError("a"), InternalError("b")])), Time()
    assert tokens(run(arm(name, resilient(world, time, *"abc"), time))) == TRUTH
    assert [address for address, _, _ in world.openings] == ["a", "b", "c"]


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("name", ["speculative", "cloud"])
def test_a_step_that_fails_in_every_server_is_raised_when_each_has_said_so(
    name: str, servers: int
) -> None:
    world, time = World(deque([None] + [InternalError(each) for each in "abcd"])), Time()
    with pytest.raises(InternalError, match=f"^{'abc'[servers - 1]}$"):
        run(arm(name, resilient(world, time, *"abc"[:servers]), time))
    assert len(time.slept) == servers - 1


@given(
    st.lists(
        st.sampled_from([None, InternalError("bug"), InternalError("bug"), UnavailableError("x")]),
        max_size=40,
    ),
    st.integers(1, 3),
)
def test_as_many_failed_steps_as_servers_with_no_answer_between_end_a_text_and_no_fewer(
    fates: list[OutriderError | None], servers: int
) -> None:
    world, time = World(deque(fates)), Time()
    cloud = resilient(world, time, *"abc"[:servers], reconnect_s=1e6)
    failed = False
    try:
        assert tokens(run(arm("speculative", cloud, time))) == TRUTH
    except InternalError:
        failed = True
    runs = [0]
    for fate in fates[: len(fates) - len(world.fates)]:
        runs.append(0 if fate is None else runs[-1] + isinstance(fate, InternalError))
    assert failed == (max(runs) == servers)
    assert max(runs) <= servers


def test_a_failed_step_of_the_server_is_asked_elsewhere_outside_of_texts_too() -> None:
    world, time = World(deque([InternalError("a"), None, InternalError("b")])), Time()
    cloud = resilient(world, time, *"abc")
    assert cloud.info() == server_info()
    assert cloud.address == "b"
    assert cloud.echo(b"") == (4, 2)
    assert cloud.echo(b"") == (4, 2)
    assert cloud.address == "c"


def test_a_server_that_does_not_fit_is_passed_over_when_there_are_others() -> None:
    fates = [None, UnavailableError("gone"), HandshakeError("another model"), RefusedError("no")]
    world, time = World(deque(fates)), Time()
    assert tokens(run(arm("cloud", resilient(world, time, *"abc"), time))) == TRUTH
    world, time = World(deque(fates)), Time()
    with pytest.raises(HandshakeError):
        run(arm("cloud", resilient(world, time), time))


def test_the_text_names_the_model_it_began_with() -> None:
    world, time = World(), Time()
    cloud = resilient(world, time)
    assert cloud.info() == server_info()
    run(arm("cloud", cloud, time))
    run(arm("speculative", cloud, time))
    assert [o.peer.model_fingerprint for _, o, _ in world.openings] == ["0" * 64] * 2


def test_the_first_server_that_answers_is_taken_and_none_is_the_first_ones_error() -> None:
    world, time = World(deque([UnavailableError("a gone"), DeadlineError("b gone")])), Time()
    cloud = resilient(world, time, *"abc")
    cloud.info()
    assert cloud.address == "c"
    world.fates.extend([UnavailableError("x"), DeadlineError("y"), DeadlineError("z")])
    with pytest.raises(UnavailableError, match="x"):
        cloud.info()
    assert time.slept == []


def test_every_server_is_tried_before_an_outage_is_given_up() -> None:
    world, time = World(), Time()
    cloud = resilient(world, time, *"abc", reconnect_s=30.0)

    def hang() -> None:
        time.now += 60 * SECOND  # a whole round's timeout
        raise DeadlineError("silent")

    world.fates.extend([UnavailableError("a gone")])
    world.fate = lambda: hang() if cloud.address == "b" else World.fate(world)  # type: ignore[method-assign]
    assert cloud.echo(b"") == (4, 2)
    assert cloud.address == "c"


def test_a_refusal_ends_an_outage_and_the_next_one_has_patience_of_its_own() -> None:
    world, time = World(deque([UnavailableError("gone"), InternalError("bug")])), Time()
    cloud = resilient(world, time, reconnect_s=5.0)
    with pytest.raises(InternalError):
        run(arm("cloud", cloud, time))
    time.now += 100 * SECOND
    world.fates.append(UnavailableError("gone"))
    assert tokens(run(arm("cloud", cloud, time))) == TRUTH


def test_a_stricter_server_is_passed_over_in_an_outage() -> None:
    world, time = (
        World(deque([UnavailableError("a gone"), InvalidRequestError("too many")])),
        Time(),
    )
    assert tokens(run(arm("speculative", resilient(world, time, *"abc"), time))) == TRUTH
    assert [address for address, _, _ in world.openings] == ["a", "b", "c"]


def test_losses_of_a_text_that_nobody_was_asked_about_are_in_its_last_step() -> None:
    world, time = World(deque([UnavailableError("gone")] * 2)), Time()
    drafter = ScriptedDrafter(sure=lambda guesses: True)
    steps = run(arm("speculative", resilient(world, time), time, drafter))
    assert tokens(steps) == TRUTH
    assert [step.reconnects for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].reconnects == 2
    assert steps[-1].lost_ns == round(sum(time.slept) * SECOND)
