"""The batch window: the pure choice, and the engine's loop in virtual time."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.acceptance import Check
from cloud_server.engine import Engine
from cloud_server.jobs import Job, StepReport
from cloud_server.scoring import Scoring
from cloud_server.window import holds_ns
from common.errors import OutriderError, UnavailableError
from common.types import SamplingParams
from tests.models import language_model

WINDOW = 5_000_000
BUDGET, CHUNK = 12, 4
TIMES = st.integers(0, 2 * WINDOW)


def job(
    session: int,
    arrived_ns: int = 0,
    *,
    tokens: int = 3,
    is_prompt: bool = False,
    deadline_ns: int | None = None,
    started_ns: int = 0,
) -> Job:
    ids = list(range(1, 1 + tokens))
    check = Check(
        context=tuple(ids), guesses=(), valid=0, prompt_length=1, sampling=SamplingParams()
    )
    return Job(
        session=session,
        tokens=ids,
        valid=tokens,
        check=None if is_prompt else check,
        arrived_ns=arrived_ns,
        then=lambda judged, timing: None,
        failed=lambda error: None,
        deadline_ns=deadline_ns,
        started_ns=started_ns,
    )


JOBS = st.builds(
    job,
    st.integers(0, 4),
    TIMES,
    is_prompt=st.booleans(),
    deadline_ns=st.none() | TIMES,
    started_ns=st.just(0) | TIMES,
)


@given(st.lists(JOBS, min_size=1, max_size=6), st.integers(0, 6), TIMES, TIMES)
def test_a_wait_ends_and_costs_nobody_more_than_the_window(
    jobs: list[Job], num_sessions: int, window_ns: int, since: int
) -> None:
    now = max(job.arrived_ns for job in jobs) + since
    held = holds_ns(jobs, num_sessions, window_ns, now)
    assert 0 <= held <= window_ns
    if not held:
        return
    assert holds_ns(jobs, num_sessions, window_ns, now + held) == 0
    assert all(now + held <= job.arrived_ns + window_ns for job in jobs)
    assert all(job.deadline_ns is None or now + held < job.deadline_ns for job in jobs)
    assert not any(job.started_ns for job in jobs)
    assert len({job.session for job in jobs}) < num_sessions


@pytest.mark.parametrize(
    ("jobs", "held"),
    [
        ([job(0, 1_000)], WINDOW - 2_000),
        ([job(0, 1_000), job(0, 500)], WINDOW - 2_500),
        ([job(0, 1_000), job(1, 2_000)], WINDOW - 2_000),
        ([job(0, 1_000), job(1, 500, is_prompt=True)], WINDOW - 2_500),
        ([job(0), job(1), job(2)], 0),
        ([job(0, is_prompt=True)], 0),
        ([job(0), job(1, is_prompt=True, started_ns=1)], 0),
        ([job(0), job(1, deadline_ns=WINDOW)], 0),
        ([job(0), job(1, deadline_ns=WINDOW + 1)], WINDOW - 3_000),
    ],
)
def test_what_is_waited_for_with_three_sessions_open(jobs: list[Job], held: int) -> None:
    assert holds_ns(jobs, 3, WINDOW, 3_000) == held


@dataclass
class Later:
    """Is an inbox in virtual time: waiting moves the clock, to the next arrival at most."""

    now: int = 0
    coming: list[tuple[int, Callable[[], None]]] = field(default_factory=list)

    def put(self, work: Callable[[], None]) -> None:
        self.coming.append((self.now, work))
        self.coming.sort(key=lambda one: one[0])

    def empty(self) -> bool:
        return not self.coming or self.coming[0][0] > self.now

    def get(self, timeout: float | None = None) -> Callable[[], None]:
        at = self.coming[0][0]
        if timeout is not None and at > self.now + round(timeout * 1e9):
            self.now += round(timeout * 1e9)
            raise queue.Empty
        self.now = max(self.now, at)
        return self.coming.pop(0)[1]


class Bench:
    """Runs an engine's loop on this thread, whose time is that of its inbox."""

    def __init__(self, window_ns: int = WINDOW) -> None:
        self.inbox = Later()
        self.forwards: list[tuple[int, int]] = []  # when, and of how many sessions
        self.answered: list[str] = []
        self.failed: dict[str, tuple[int, OutriderError]] = {}
        self.model = language_model(cache_tokens=2048)
        self.engine = Engine(
            self.model,
            token_budget=BUDGET,
            prefill_chunk=CHUNK,
            clock=lambda: self.inbox.now,
            on_step=self._on_step,
            window_ns=window_ns,
        )
        self.engine._inbox = self.inbox  # type: ignore[assignment]

    def _on_step(self, report: StepReport) -> None:
        self.forwards.append((self.inbox.now, report.sessions))

    def open(self, count: int) -> list[int]:
        return [self.model.cache.allocate(100) for _ in range(count)]

    def at(self, when: int, work: Callable[[], object]) -> None:
        """Has something asked of the engine at a time."""
        before, self.inbox.now = self.inbox.now, when
        work()
        self.inbox.now = before

    def come(
        self,
        name: str,
        session: int,
        at: int,
        *,
        tokens: int = 3,
        is_prompt: bool = False,
        deadline_ns: int | None = None,
    ) -> Job:
        coming = job(session, at, tokens=tokens, is_prompt=is_prompt, deadline_ns=deadline_ns)
        coming.then = lambda judged, timing: self.answered.append(name)
        coming.failed = lambda error: self.failed.update({name: (self.inbox.now, error)})
        self.at(at, partial(self.engine.submit, coming))
        return coming

    def run(self, until: int = 10 * WINDOW) -> None:
        self.at(until, lambda: self.inbox.put(self.engine._halt))
        self.engine._run()


def test_jobs_of_all_sessions_share_a_forward_as_soon_as_the_last_is_there() -> None:
    bench = Bench()
    for at, session in enumerate(bench.open(3)):
        bench.come(str(session), session, 1_000 * at)
    bench.run()
    assert bench.forwards == [(2_000, 3)]


def test_without_a_window_each_is_run_as_it_comes() -> None:
    bench = Bench(window_ns=0)
    for at, session in enumerate(bench.open(3)):
        bench.come(str(session), session, 1_000 * at)
    bench.run()
    assert bench.forwards == [(0, 1), (1_000, 1), (2_000, 1)]


def test_a_session_that_brings_nothing_is_waited_for_no_longer_than_the_window() -> None:
    bench = Bench()
    first, second, _ = bench.open(3)
    bench.come("first", first, 1_000)
    bench.come("second", second, 2_000)
    bench.run()
    assert bench.forwards == [(1_000 + WINDOW, 2)]


def test_a_session_that_is_released_or_kept_for_a_conversation_is_not_waited_for() -> None:
    bench = Bench()
    first, gone, kept = bench.open(3)
    bench.come("first", first, 0)
    bench.at(1_000, partial(bench.engine.release, gone))
    bench.at(2_000, partial(bench.engine.release, kept, ("client", b"talk"), [1, 2]))
    bench.run()
    assert bench.forwards == [(2_000, 1)]


def test_a_prompt_under_way_never_waits_between_its_chunks_and_nobody_waits_beside_it() -> None:
    bench = Bench()
    prompt, other, _ = bench.open(3)
    bench.come("prompt", prompt, 1_000, tokens=3 * CHUNK, is_prompt=True)
    bench.come("verify", other, 1_000)
    bench.run()
    start = 1_000 + WINDOW
    assert bench.forwards == [(start, 2), (start, 1), (start, 1)]
    bench = Bench()
    prompt, _ = bench.open(2)
    bench.come("prompt", prompt, 1_000, tokens=3 * CHUNK, is_prompt=True)
    bench.run()
    assert bench.forwards == [(1_000, 1)] * 3


def test_a_deadline_within_the_window_is_kept() -> None:
    bench = Bench()
    first, _ = bench.open(2)
    bench.come("first", first, 1_000, deadline_ns=WINDOW)
    bench.run()
    assert bench.answered == ["first"]
    assert bench.forwards == [(1_000, 1)]


def test_the_inbox_is_taken_while_a_step_waits() -> None:
    bench = Bench()
    first, _ = bench.open(2)
    withdrawn = bench.come("withdrawn", first, 0)
    called: list[int] = []
    bench.at(1_000, lambda: bench.engine.call(lambda: called.append(bench.inbox.now)))
    bench.at(2_000, lambda: bench.engine.withdraw(withdrawn))
    bench.run()
    assert called == [1_000]
    assert bench.forwards == []
    assert (bench.answered, bench.failed) == ([], {})


def test_scores_go_on_while_others_wait() -> None:
    bench = Bench()
    first, _ = bench.open(2)
    bench.come("first", first, 0)
    scored: list[int] = []
    scoring = Scoring([3, 4], [7], [], lambda _: scored.append(bench.inbox.now), pytest.fail)  # type: ignore[arg-type]
    bench.at(1_000, lambda: bench.engine.score(scoring))
    bench.run()
    assert scored == [1_000]


def test_halting_and_draining_wait_for_nothing() -> None:
    bench = Bench()
    first, _ = bench.open(2)
    bench.come("first", first, 0)
    bench.run(until=1_000)
    at, error = bench.failed["first"]
    assert at == 1_000
    assert isinstance(error, UnavailableError)
    bench = Bench()
    first, _ = bench.open(2)
    bench.come("first", first, 0)
    bench.at(1_000, bench.engine.hurry)
    bench.come("second", first, 2_000)
    bench.run()
    assert bench.forwards == [(1_000, 1), (2_000, 1)]
