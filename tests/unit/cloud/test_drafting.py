"""The draft model beside the target: it guesses as the edge does, whoever shares its forwards."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from cloud_server.drafting import Drafting, Guesses, Wanted
from cloud_server.jobs import Job, StepReport
from common.errors import DeadlineError, InternalError, OutriderError, OverloadedError
from common.lm.runner import LanguageModel
from common.types import SamplingParams
from edge_client.drafter import Drafter
from tests.models import language_model

BUDGET, CHUNK = 12, 4
GREEDY = SamplingParams()
MOST = 256
"""Tokens of the tiny models' context."""


@dataclass
class Bench:
    """Is a draft model with a clock that moves 1,000 ns a look; answers by name."""

    model: LanguageModel = field(default_factory=lambda: language_model(cache_tokens=2048))
    reports: list[StepReport] = field(default_factory=list)
    made: dict[str, Guesses] = field(default_factory=dict)
    failed: dict[str, OutriderError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ticks = itertools.count(1000, 1000)
        self.drafting = Drafting(
            self.model,
            token_budget=BUDGET,
            prefill_chunk=CHUNK,
            clock=lambda: next(ticks),
            on_forward=self.reports.append,
        )

    def want(
        self, name: str, session: int, history: Sequence[int], most: int = 4, **more: Any
    ) -> None:
        def then(guesses: Guesses) -> Job:
            self.made[name] = guesses
            return cast(Job, name)

        given = {
            "prompt_length": len(history),
            "sampling": GREEDY,
            "ends": (),
            "then": then,
            **more,
        }
        failed = lambda error: self.failed.update({name: error})  # noqa: E731
        self.drafting.take(Wanted(session, history, most, failed=failed, **given))

    def step(self) -> list[str]:
        """Returns the names of those that were answered."""
        return cast(list[str], self.drafting.step())

    def run(self) -> None:
        while self.drafting:
            self.drafting.step()


def random_tokens(rng: random.Random, most: int) -> list[int]:
    return [rng.randrange(1, 300) for _ in range(rng.randint(1, most))]


def test_guesses_are_those_of_the_edge_whoever_shares_the_forwards() -> None:
    """Histories of many lengths, each going on from, or back behind, what was guessed before."""
    rng, bench = random.Random(5), Bench()
    sessions = [bench.drafting.open(100) for _ in range(5)]
    edges = [Drafter(bench.model) for _ in sessions]
    histories = [random_tokens(rng, 20) for _ in sessions]
    for turn in range(6):
        expected = {}
        for session, edge, history in zip(sessions, edges, histories, strict=True):
            sampling = SamplingParams(temperature=rng.choice([0.0, 1.0]), seed=session)
            most, name = rng.randint(0, 5), f"{session} in turn {turn}"
            bench.want(name, session, history, most, sampling=sampling, prompt_length=1)
            drafted = edge.draft(history, most, sampling, prompt_length=1)
            expected[name] = drafted.token_ids
        bench.run()
        assert {name: bench.made[name].token_ids for name in expected} == expected
        for session, history in zip(sessions, histories, strict=True):
            guesses = bench.made[f"{session} in turn {turn}"].token_ids
            right = rng.randint(0, len(guesses))
            history += [*guesses[:right], rng.randrange(1, 300)]
            if rng.random() < 0.3:
                history[len(history) // 2 :] = random_tokens(rng, 20)
    assert max(report.sessions for report in bench.reports) > 2


def test_a_long_prompt_is_read_a_chunk_a_step_and_holds_nobody_up() -> None:
    bench = Bench()
    long, short = bench.drafting.open(100), bench.drafting.open(100)
    bench.want("long", long, range(1, 12), most=1)
    bench.want("short", short, (7, 8), most=1)
    assert bench.step() == ["short"]
    assert bench.step() == []
    assert len(bench.drafting) == 1
    assert bench.step() == ["long"]
    assert [report.tokens for report in bench.reports] == [CHUNK + 2, CHUNK, 3]
    assert not bench.drafting


def test_no_guess_follows_an_end_nor_leaves_the_context() -> None:
    bench = Bench()
    session = bench.drafting.open(1000)
    bench.want("free", session, (5, 6, 7), most=8)
    bench.run()
    free = bench.made["free"].token_ids
    bench.want("ended", session, (5, 6, 7), most=8, ends={free[2]})
    bench.want("none", bench.drafting.open(10), (5, 6, 7), most=0)
    bench.run()
    assert bench.made["ended"].token_ids == free[: free.index(free[2]) + 1]
    assert bench.made["none"] == Guesses((), 0, 0)
    full = bench.drafting.open(1000)
    bench.want("near the end", full, [9] * (MOST - 2), most=8)
    bench.want("at the end", full, [9] * MOST, most=8)
    bench.run()
    assert len(bench.made["near the end"].token_ids) == 2
    assert bench.made["at the end"].token_ids == ()


def test_a_forward_is_shared_out_by_tokens() -> None:
    bench = Bench()
    for name, history in (("one", (3,)), ("three", (4, 5, 6))):
        bench.want(name, bench.drafting.open(50), history, most=2)
    bench.run()
    # Two forwards of 1,000 ns: of 1 + 3 tokens, then of 1 + 1.
    assert [(report.sessions, report.tokens) for report in bench.reports] == [(2, 4), (2, 2)]
    assert [report.computed_ns for report in bench.reports] == [1000, 1000]
    assert (bench.made["one"].spent_ns, bench.made["one"].busy_ns) == (2000, 250 + 500)
    assert (bench.made["three"].spent_ns, bench.made["three"].busy_ns) == (2000, 750 + 500)


def test_what_is_too_late_is_not_drafted() -> None:
    bench = Bench()
    bench.want("late", bench.drafting.open(50), (3, 4), deadline_ns=1000)
    assert bench.step() == []
    assert isinstance(bench.failed["late"], DeadlineError)
    assert not bench.reports
    assert not bench.drafting


def test_a_model_that_fails_fails_those_of_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    session = bench.drafting.open(50)
    bench.want("unlucky", session, (3, 4))
    with monkeypatch.context() as patch:
        patch.setattr(bench.model, "forward", lambda segments: 1 / 0)
        assert bench.step() == []
    assert "the draft model failed: ZeroDivisionError" in str(bench.failed["unlucky"])
    bench.want("next", session, (3, 4))
    bench.run()
    assert len(bench.made["next"].token_ids) == 4


def test_a_fault_in_one_sessions_bookkeeping_ends_that_session() -> None:
    bench = Bench()
    bench.want("faulty", bench.drafting.open(50), (3, 4), then=lambda guesses: 1 / 0)
    bench.want("sound", bench.drafting.open(50), (3, 4))
    assert bench.step() == ["sound"]
    assert isinstance(bench.failed["faulty"], InternalError)


def test_a_closed_session_waits_for_nothing_and_holds_nothing() -> None:
    bench = Bench(language_model(cache_tokens=128))
    gone, other = bench.drafting.open(64), bench.drafting.open(64)
    with pytest.raises(OverloadedError, match="0 of 128 tokens free"):
        bench.drafting.open(1)
    bench.want("gone", gone, (3, 4))
    bench.want("other", other, (3, 4))
    bench.drafting.close(gone)
    bench.want("gone, too", gone, (3, 4))  # its last check was settled as it left
    assert bench.step() == ["other"]
    assert bench.drafting.cache_tokens_in_use == 64
    bench.drafting.close(other)
    assert bench.drafting.cache_tokens_in_use == 0
    assert not bench.failed
