"""What a live session holds of the queue: no more than its jobs, and nothing once it is left."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloud_server.acceptance import Judged
from cloud_server.admission import Admission
from cloud_server.jobs import Job
from cloud_server.live import LiveSession
from cloud_server.metrics import Metrics
from cloud_server.sessions import TargetSession
from common.config import CloudSection
from common.errors import OverloadedError, UnavailableError
from common.types import Draft, OpenSession, Peer, SamplingParams, StepTiming, StopParams

PROMPT = (5, 6, 7, 5, 6, 7)
LIMITS = CloudSection(max_client_tokens=20)


class Rig:
    """Is a host whose engine takes jobs and runs none."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.withdrawn: list[Job] = []
        self.admission = Admission(LIMITS)
        ticks = itertools.count(0, 1000)
        self.host = cast(
            Any,
            SimpleNamespace(
                clock=lambda: next(ticks),
                engine=SimpleNamespace(submit=self.jobs.append, withdraw=self.withdrawn.append),
                metrics=Metrics(),
                admission=self.admission,
            ),
        )

    def session(self, guest: Any) -> LiveSession:
        opening = OpenSession(Peer("", "", 0, ""), PROMPT, SamplingParams(), StopParams(50))
        state = TargetSession(
            opening, context_length=99, model_eos=(), detokenizer=lambda: lambda token: ""
        )
        return LiveSession(self.host, state, 0, guest, 77)


async def settled() -> None:
    """Lets all that was posted to the loop run."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_prompt_is_in_flight_until_it_is_through_or_has_failed() -> None:
    async def look() -> None:
        for ends in ("done", "failed"):
            rig = Rig()
            with rig.admission.guest("a", 0, 0) as guest:
                rig.session(guest).prefill()
                assert guest.in_flight == 5
                (job,) = rig.jobs
                assert job.deadline_ns == 77
                if ends == "done":
                    job.then(None, StepTiming())
                else:
                    job.failed(UnavailableError("gone"))
                await settled()
                assert guest.in_flight == 0

    asyncio.run(look())


def test_a_verify_is_in_flight_until_it_is_answered_with_its_prompt_counted_once() -> None:
    async def look() -> None:
        rig = Rig()
        with rig.admission.guest("a", 0, 0) as guest:
            session = rig.session(guest)
            session.prefill()
            verifying = asyncio.create_task(session.verify(Draft(1, 6, 0, (8, 9)), 0))
            await settled()
            assert guest.in_flight == 5 + 1 + 2
            rig.jobs[0].then(None, StepTiming())
            await settled()
            assert guest.in_flight == 1 + 2
            rig.jobs[1].then(Judged(2, 4), StepTiming())
            assert (await verifying).accepted == 2
            assert guest.in_flight == 0

    asyncio.run(look())


def test_a_verify_that_is_left_leaves_the_queue_and_has_its_own_deadline() -> None:
    async def leave() -> None:
        rig = Rig()
        with rig.admission.guest("a", 0, 0) as guest:
            verifying = asyncio.create_task(rig.session(guest).verify(Draft(1, 6, 0), 0, 5))
            await settled()
            assert rig.jobs[0].deadline_ns == 5
            verifying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await verifying
            assert rig.withdrawn == rig.jobs
            assert guest.in_flight == 0

    asyncio.run(leave())


def test_confirmed_tokens_count_against_the_limits_and_nothing_has_changed() -> None:
    async def ask() -> None:
        rig = Rig()
        with rig.admission.guest("a", 0, 0) as guest, rig.admission.guest("a", 15, 0):
            session = rig.session(guest)
            with pytest.raises(OverloadedError, match=r"cloud\.max_client_tokens"):
                await session.verify(Draft(1, 6, 0, confirmed_token_ids=(1,) * 6), 0)
            assert session.state.position == 6
            assert rig.jobs == []

    asyncio.run(ask())
