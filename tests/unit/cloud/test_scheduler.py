from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cloud_server.scheduler import Slice, Waiting, plan_step

BUDGET, CHUNK = 16, 8


@st.composite
def waiting_jobs(draw: st.DrawFn) -> list[Waiting]:
    jobs = []
    for _ in range(draw(st.integers(1, 8))):
        num_tokens = draw(st.integers(1, 40))
        num_logits = draw(st.integers(0, min(num_tokens, BUDGET)))
        jobs.append(Waiting(draw(st.integers(0, 5)), num_tokens, num_logits))
    return jobs


@given(waiting_jobs())
def test_a_plan_keeps_every_rule(jobs: list[Waiting]) -> None:
    slices = plan_step(jobs, BUDGET, CHUNK)
    assert 0 < sum(s.num_tokens for s in slices) <= BUDGET
    sessions = [jobs[s.index].session for s in slices]
    assert len(set(sessions)) == len(sessions)
    for planned in slices:
        job = jobs[planned.index]
        assert all(other.session != job.session for other in jobs[: planned.index])
        assert planned.is_last == (planned.num_tokens == job.num_tokens)
        if not planned.is_last:  # the judged tokens still come together
            assert job.num_tokens - planned.num_tokens >= job.num_logits
            assert planned.num_tokens <= CHUNK


@given(waiting_jobs())
def test_everything_is_run_in_the_end_and_the_oldest_always_moves(jobs: list[Waiting]) -> None:
    while jobs:
        slices = plan_step(jobs, BUDGET, CHUNK)
        assert 0 in {s.index for s in slices}
        left = []
        taken = {s.index: s for s in slices}
        for index, job in enumerate(jobs):
            done = taken.get(index, Slice(index, 0, False))
            if not done.is_last:
                left.append(Waiting(job.session, job.num_tokens - done.num_tokens, job.num_logits))
        jobs = left


def test_verifies_of_many_sessions_share_a_step_with_a_prompt_chunk() -> None:
    jobs = [Waiting(0, 100, 1), Waiting(1, 3, 3), Waiting(2, 1, 1), Waiting(3, 30, 0)]
    assert plan_step(jobs, BUDGET, CHUNK) == [
        Slice(0, 8, False),
        Slice(1, 3, True),
        Slice(2, 1, True),
        Slice(3, 4, False),
    ]


def test_a_verify_goes_before_an_older_but_not_oldest_prompt() -> None:
    jobs = [Waiting(0, 8, 0), Waiting(1, 100, 0), Waiting(2, 8, 8)]
    assert plan_step(jobs, BUDGET, CHUNK) == [Slice(0, 8, True), Slice(2, 8, True)]


def test_judged_tokens_wait_when_they_do_not_fit_together() -> None:
    jobs = [Waiting(0, 12, 12), Waiting(1, 5, 5), Waiting(2, 4, 4)]
    assert plan_step(jobs, BUDGET, CHUNK) == [Slice(0, 12, True), Slice(2, 4, True)]


@given(waiting_jobs(), st.lists(st.booleans(), min_size=8, max_size=8))
def test_what_fills_room_takes_nothing_from_the_others(
    jobs: list[Waiting], fills: list[bool]
) -> None:
    """Every other job gets the very slice it would get if nothing ran ahead."""
    jobs = [Waiting(i, j.num_tokens, j.num_logits) for i, j in enumerate(jobs)]
    mixed = [replace(job, fills_room=fill) for job, fill in zip(jobs, fills, strict=False)]
    others = [index for index, job in enumerate(mixed) if not job.fills_room]
    alone = plan_step([mixed[index] for index in others], BUDGET, CHUNK)
    expected = [replace(planned, index=others[planned.index]) for planned in alone]
    slices = plan_step(mixed, BUDGET, CHUNK)
    assert slices[: len(expected)] == expected
    assert all(mixed[planned.index].fills_room for planned in slices[len(expected) :])
    assert 0 < sum(planned.num_tokens for planned in slices) <= BUDGET


def test_what_fills_room_goes_last_however_old() -> None:
    jobs = [Waiting(0, 1, 1, fills_room=True), Waiting(1, 8, 8), Waiting(2, 8, 0)]
    assert plan_step(jobs, BUDGET, CHUNK) == [Slice(1, 8, True), Slice(2, 8, True)]
    assert plan_step(jobs[:2], BUDGET, CHUNK) == [Slice(1, 8, True), Slice(0, 1, True)]
    assert plan_step(jobs[:1], BUDGET, CHUNK) == [Slice(0, 1, True)]
