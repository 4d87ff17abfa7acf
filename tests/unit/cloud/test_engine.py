"""The engine without its thread: `step` by `step`, against the stock model's own choices."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_server.acceptance import Check, Judged
from cloud_server.engine import Engine
from cloud_server.jobs import Job, StepReport
from cloud_server.scoring import Scores, Scoring
from common.errors import (
    DeadlineError,
    InternalError,
    OutriderError,
    OverloadedError,
    UnavailableError,
)
from common.lm.compatibility import stock_logits
from common.lm.opinion import SCORED_CHUNK
from common.lm.runner import LanguageModel
from common.types import Opinion, SamplingParams, StepTiming
from tests.models import language_model

BUDGET, CHUNK = 12, 4
TOKENS = st.integers(1, 300)


class Bench:
    """Is an engine whose thread never starts, with a clock that moves 1,000 ns a look."""

    def __init__(self, model: LanguageModel | None = None) -> None:
        self.model = model or language_model(cache_tokens=2048)
        self.reports: list[StepReport] = []
        self.answers: dict[str, tuple[Judged | None, StepTiming]] = {}
        self.failures: dict[str, OutriderError] = {}
        ticks = itertools.count(1000, 1000)  # so that shares of one tick are not all 0
        self.engine = Engine(
            self.model,
            token_budget=BUDGET,
            prefill_chunk=CHUNK,
            clock=lambda: next(ticks),
            on_step=self.reports.append,
        )

    def open(self, tokens: int = 200) -> int:
        return self.model.cache.allocate(tokens)

    def job(
        self,
        name: str,
        session: int,
        tokens: list[int],
        num_logits: int,
        valid: int | None = None,
        then: Callable[[Judged | None, StepTiming], Job | None] | None = None,
        deadline_ns: int | None = None,
    ) -> Job:
        def answered(judged: Judged | None, timing: StepTiming) -> Job | None:
            assert name not in self.answers
            self.answers[name] = judged, timing
            return then(judged, timing) if then else None

        return Job(
            session=session,
            tokens=tokens,
            valid=len(tokens) if valid is None else valid,
            check=self.check(tokens, num_logits),
            arrived_ns=0,
            then=answered,
            failed=lambda error: self.failures.update({name: error}),
            deadline_ns=deadline_ns,
        )

    def check(self, tokens: list[int], num_logits: int) -> Check | None:
        """Asks about the last `num_logits` - 1 tokens, and what follows them."""
        known = len(tokens) - num_logits + 1
        if not num_logits:
            return None
        return Check(
            context=tuple(tokens[:known]),
            guesses=tuple(tokens[known:]),
            valid=0,
            prompt_length=1,
            sampling=SamplingParams(),
        )

    def submit(self, *jobs: Job) -> None:
        for job in jobs:
            self.engine.submit(job)
        self.engine._take_inbox()

    def run(self) -> None:
        while self.engine._jobs:
            self.engine.step()

    def score(self) -> None:
        self.engine._take_inbox()
        while self.engine._scorings:
            self.engine._score_on()

    def choice(self, tokens: list[int]) -> int:
        return int(stock_logits(self.model.loaded, tokens)[-1].argmax())

    def truth(self, tokens: list[int], num_logits: int) -> Judged | None:
        if not num_logits:
            return None
        known = len(tokens) - num_logits + 1
        end = known
        while end < len(tokens) and self.choice(tokens[:end]) == tokens[end]:
            end += 1
        return Judged(end - known, self.choice(tokens[:end]))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.lists(TOKENS, min_size=1, max_size=20), st.integers(0, 5),
                          st.lists(TOKENS, max_size=2), st.booleans()),
                min_size=1, max_size=6))  # fmt: skip
def test_any_mix_of_jobs_is_judged_by_the_stock_choices(
    cases: list[tuple[list[int], int, list[int], bool]],
) -> None:
    """Prompts, and drafts whose first guesses are right and whose last ones hardly ever."""
    bench = Bench()
    jobs = []
    for tokens, right, wrong, is_prompt in cases:
        sequence = list(tokens)
        for _ in range(right):
            sequence.append(bench.choice(sequence))
        sequence += wrong
        jobs.append((sequence, 0 if is_prompt else right + len(wrong) + 1))
    for number, (sequence, wanted) in enumerate(jobs):
        bench.submit(bench.job(str(number), bench.open(), sequence, wanted))
    bench.run()
    for number, (sequence, wanted) in enumerate(jobs):
        assert bench.answers[str(number)][0] == bench.truth(sequence, wanted)
    assert all(report.tokens <= BUDGET for report in bench.reports)
    assert bench.failures == {}


def test_a_following_job_reads_only_what_is_new_and_rolls_back_what_was_wrong() -> None:
    bench = Bench()
    session = bench.open()
    bench.submit(bench.job("first", session, [5, 6, 7, 8, 9], 3))
    bench.run()
    before = sum(report.tokens for report in bench.reports)
    second = [5, 6, 7, 44, 45]  # the guesses 8, 9 were rejected
    bench.submit(bench.job("second", session, second, 2, valid=3))
    bench.run()
    assert bench.answers["second"][0] == bench.truth(second, 2)
    assert sum(report.tokens for report in bench.reports) - before == 2


def test_a_job_that_returns_another_joins_the_very_next_step() -> None:
    bench = Bench()
    session = bench.open()
    text = [5, 6, 7]

    def more(judged: Judged | None, timing: StepTiming) -> Job | None:
        assert judged is not None
        text.append(judged.next_token_id)
        return None if len(text) > 6 else bench.job(f"{len(text)}", session, list(text), 1, 9, more)

    bench.submit(bench.job("3", session, list(text), 1, then=more))
    bench.run()
    assert [report.tokens for report in bench.reports] == [3, 1, 1, 1]
    assert text[3:] == [bench.choice(text[:n]) for n in range(3, 7)]


def test_timing_adds_up_and_busy_time_is_shared_by_tokens() -> None:
    bench = Bench()
    bench.submit(bench.job("a", bench.open(), [1, 2, 3], 3), bench.job("b", bench.open(), [4], 1))
    bench.run()
    (_, a), (_, b) = bench.answers["a"], bench.answers["b"]
    for timing in (a, b):
        assert timing.queued_ns + timing.batched_ns + timing.computed_ns == timing.total_ns
        assert (timing.step_sessions, timing.step_tokens, timing.forward_passes) == (2, 4, 1)
    assert a.busy_ns == a.computed_ns * 3 // 4
    assert b.busy_ns == b.computed_ns // 4


def test_a_failing_model_fails_the_sessions_in_the_step_and_the_engine_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    a, b = bench.open(), bench.open()
    bench.submit(bench.job("a", a, [1, 2], 1), bench.job("b", b, [3], 1))

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("no such operator")

    with monkeypatch.context() as patch:
        patch.setattr(bench.model, "forward", broken)
        bench.run()
    assert set(bench.failures) == {"a", "b"}
    assert isinstance(bench.failures["a"], InternalError)
    assert "RuntimeError: no such operator" in str(bench.failures["a"])
    bench.submit(bench.job("c", a, [1, 2], 1))
    bench.run()
    assert bench.answers["c"][0] == bench.truth([1, 2], 1)


def test_memory_that_is_refused_is_told_as_a_server_that_is_too_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    a = bench.open()
    bench.submit(bench.job("a", a, [1, 2], 1))

    def refused(*_: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(bench.model, "forward", refused)
        bench.run()
    assert isinstance(bench.failures["a"], OverloadedError)
    assert "ran out of memory" in str(bench.failures["a"])


def test_a_fault_in_one_sessions_bookkeeping_ends_that_session_alone() -> None:
    bench = Bench()

    def broken(judged: Judged | None, timing: StepTiming) -> Job | None:
        raise ValueError("broken")

    bench.submit(
        bench.job("a", bench.open(), [1], 1, then=broken), bench.job("b", bench.open(), [2], 1)
    )
    bench.run()
    assert set(bench.failures) == {"a"}
    assert bench.answers["b"][0] == bench.truth([2], 1)


def test_a_released_session_leaves_no_job_and_no_cache() -> None:
    bench = Bench()
    gone, stays = bench.open(), bench.open()
    bench.submit(bench.job("gone", gone, [1, 2], 1), bench.job("stays", stays, [3], 1))
    bench.engine.release(gone)
    bench.engine._take_inbox()
    bench.run()
    assert set(bench.answers) == {"stays"}
    assert bench.model.cache.sessions == (stays,)


def test_a_job_for_a_released_session_fails_alone() -> None:
    bench = Bench()
    gone, stays = bench.open(), bench.open()
    bench.engine.release(gone)
    bench.submit(bench.job("gone", gone, [1, 2], 1), bench.job("stays", stays, [3], 1))
    bench.run()
    assert isinstance(bench.failures["gone"], InternalError)
    assert set(bench.answers) == {"stays"}


def test_no_fault_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    broken, whole = bench.open(), bench.open()
    failed: queue.SimpleQueue[OutriderError] = queue.SimpleQueue()
    answered: queue.SimpleQueue[Judged | None] = queue.SimpleQueue()

    def fault(*_: object) -> int:
        raise RuntimeError("fault")

    job = bench.job("broken", broken, [1], 1)
    job.failed = failed.put
    other = bench.job("whole", whole, [1], 1)
    other.then = lambda judged, _: answered.put(judged)
    with monkeypatch.context() as patch:
        patch.setattr(bench.model.cache, "allocate", fault)
        patch.setattr(bench.model.cache, "length", fault)
        bench.engine.allocate(5, lambda _: None, failed.put)
        bench.engine.submit(job)
        bench.engine.start()
        for _ in range(2):
            assert "fault" in str(failed.get(timeout=60))
    bench.engine.submit(other)
    assert answered.get(timeout=60) == bench.truth([1], 1)
    bench.engine.stop()


def test_cache_is_granted_whole_or_refused() -> None:
    bench = Bench(language_model(cache_tokens=256))
    granted: list[int] = []
    refused: list[OutriderError] = []
    for _ in range(3):
        bench.engine.allocate(100, granted.append, refused.append)
    bench.engine._take_inbox()
    assert len(granted) == 2
    assert [type(error) for error in refused] == [OverloadedError]


def test_stopping_fails_what_waits() -> None:
    bench = Bench()
    bench.engine.start()
    bench.engine.stop()
    bench.engine._jobs = [bench.job("late", bench.open(), [1], 1)]
    bench.engine._halt()
    assert isinstance(bench.failures["late"], UnavailableError)


def test_scores_are_the_stock_logits() -> None:
    bench = Bench()
    tokens = list(range(1, 11))
    found: list[Scores] = []
    failed: list[OutriderError] = []
    bench.engine.score(Scoring(tokens, [7, 300], [], found.append, failed.append))
    bench.score()
    logits = stock_logits(bench.model.loaded, tokens)[-1]
    assert found[0].logits == pytest.approx([float(logits[7]), float(logits[300])], abs=1e-4)
    assert found[0].opinion == Opinion(())
    assert bench.model.cache.sessions == ()
    bench.engine.score(Scoring([], [7], [], found.append, failed.append))
    bench.score()
    assert len(failed) == 1


@pytest.mark.parametrize("length", [1, 2, SCORED_CHUNK, SCORED_CHUNK + 1, 2 * SCORED_CHUNK + 5])
def test_a_text_is_scored_by_the_stock_log_probabilities(length: int) -> None:
    bench = Bench()
    context, text = [3, 1, 4], [1 + (7 * at) % 290 for at in range(length)]
    found: list[Scores] = []
    bench.engine.score(
        Scoring(context, [], text, found.append, lambda error: pytest.fail(str(error)))
    )
    bench.score()
    rows = stock_logits(bench.model.loaded, [*context, *text]).double().log_softmax(-1)
    expected = [float(rows[len(context) - 1 + at, token]) for at, token in enumerate(text)]
    assert found[0].opinion.logprobs == pytest.approx(expected, abs=1e-4)
    assert found[0].opinion.ranks == tuple(
        1 + int((row > row[token]).sum())
        for row, token in zip(rows[len(context) - 1 :], text, strict=False)
    )
    assert bench.model.cache.sessions == ()


def test_a_score_leaves_room_for_steps_between_its_forwards_and_for_other_scores() -> None:
    bench = Bench()
    done: list[str] = []
    refuse = pytest.fail
    for name, length in (("long", 5 * CHUNK), ("short", CHUNK)):
        bench.engine.score(Scoring(
            [3] * length, [7], [], lambda _, name=name: done.append(name),  # type: ignore[misc]
            lambda error: refuse(str(error)),
        ))  # fmt: skip
    bench.submit(bench.job("verify", bench.open(), [5, 6, 7], 1))
    while bench.engine._scorings or bench.engine._jobs:
        if bench.engine._jobs:
            bench.engine.step()
            done += bench.answers
        bench.engine._score_on()
    assert done == ["verify", "short", "long"]


def test_a_score_under_way_is_failed_when_the_engine_stops() -> None:
    bench = Bench()
    failed: list[OutriderError] = []
    bench.engine.score(Scoring([3] * 20, [7], [], pytest.fail, failed.append))  # type: ignore[arg-type]
    bench.engine._take_inbox()
    bench.engine._score_on()
    bench.engine._halt()
    assert [type(error) for error in failed] == [UnavailableError]
    assert bench.model.cache.sessions == ()


def test_what_is_too_late_is_never_run_and_the_rest_is() -> None:
    bench = Bench()
    sessions = [bench.open() for _ in range(3)]
    bench.submit(
        bench.job("late", sessions[0], [5, 6, 7], 1, deadline_ns=1),
        bench.job("in time", sessions[1], [5, 6, 7], 1, deadline_ns=10**15),
        bench.job("patient", sessions[2], [5, 6, 7], 1),
    )
    bench.run()
    assert set(bench.answers) == {"in time", "patient"}
    assert isinstance(bench.failures["late"], DeadlineError)
    assert bench.model.cache.length(sessions[0]) == 0
    assert [report.sessions for report in bench.reports] == [2]


def test_nothing_runs_when_all_is_too_late() -> None:
    bench = Bench()
    bench.submit(bench.job("late", bench.open(), [5, 6, 7], 1, deadline_ns=1))
    bench.engine.step()
    assert set(bench.failures) == {"late"}
    assert bench.reports == []
    assert bench.engine.steps == 0


def test_a_step_out_of_memory_tells_its_sessions_to_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()

    def forward(segments: object) -> torch.Tensor:
        assert bench.engine.step_started_ns is not None
        raise torch.OutOfMemoryError("no room")

    bench.submit(bench.job("poor", bench.open(), [5, 6, 7], 1))
    with monkeypatch.context() as patch:
        patch.setattr(bench.model, "forward", forward)
        bench.engine.step()
    error = bench.failures["poor"]
    assert isinstance(error, OverloadedError)
    assert "step=1 slots=" in str(error)
    assert bench.engine.step_started_ns is None
    bench.submit(bench.job("next", bench.open(), [5, 6, 7], 1))
    bench.run()
    assert set(bench.answers) == {"next"}


def test_a_job_that_is_withdrawn_is_neither_run_nor_answered() -> None:
    bench = Bench()
    left, kept = (bench.job(n, bench.open(), [5, 6, 7], 1) for n in ("left", "kept"))
    bench.submit(left, kept)
    bench.engine.withdraw(left)
    bench.engine.withdraw(left)  # it may have gone by then
    bench.engine._take_inbox()
    bench.run()
    assert set(bench.answers) == {"kept"}
    assert bench.failures == {}


@pytest.mark.parametrize("how", ["unwanted", "late"])
def test_a_score_that_is_left_or_late_is_run_no_further(how: str) -> None:
    bench = Bench()
    failed: list[OutriderError] = []
    found: list[Scores] = []
    deadline_ns = 1 if how == "late" else None
    scoring = Scoring([3] * 20, [7], [], found.append, failed.append, deadline_ns)
    bench.engine.score(scoring)
    bench.engine._take_inbox()
    if how == "unwanted":
        bench.engine._score_on()
        scoring.unwanted.set()
    bench.engine._score_on()
    assert [type(error) for error in failed] == [DeadlineError]
    assert not found
    assert not bench.engine._scorings
    assert bench.model.cache.sessions == ()
