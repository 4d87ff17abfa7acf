"""The service in front of a host that never answers: what is left when a caller goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cloud_server.metrics import Metrics
from cloud_server.servicer import VerifierServicer
from common.config import CloudSection
from common.errors import InvalidRequestError
from common.types import Draft, OpenSession, Outcome, Verdict
from common.wire import WireLimits
from outrider.v1 import verifier_pb2 as pb


class Caller:
    """Is the context of a call from this machine."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5"

    def time_remaining(self) -> None:
        return None


class SilentHost:
    """Opens sessions, counts them, and lets every verify wait."""

    wire_limits = WireLimits(vocab_size=320, max_draft_tokens=8)
    limits = CloudSection(max_sessions=2)

    def __init__(self) -> None:
        self.sessions = 0
        self.asked = asyncio.Event()

    def clock(self) -> int:
        return 0

    @asynccontextmanager
    async def open(
        self, opening: OpenSession, client: str, deadline_ns: int | None = None
    ) -> AsyncIterator[SilentHost]:
        self.sessions += 1
        try:
            yield self
        finally:
            self.sessions -= 1

    async def verify(self, draft: object, arrived_ns: int, deadline_ns: int | None = None) -> None:
        self.asked.set()
        await asyncio.Event().wait()


def serving(host: Any) -> VerifierServicer:
    servicer = VerifierServicer()
    servicer.begin(host, stock=Any)  # type: ignore[arg-type]
    return servicer


def test_a_batch_whose_caller_leaves_keeps_no_session() -> None:
    async def leave() -> int:
        host: Any = SilentHost()
        servicer = serving(host)
        opening = pb.OpenSession(prompt_token_ids=[5], stop=pb.StopParams(max_new_tokens=8))
        entry = pb.VerifyBatchEntry(open=opening, verify=pb.VerifyRequest(step_id=1, position=1))
        request = pb.VerifyBatchRequest(entries=[entry, entry])
        context: Any = Caller()
        call = asyncio.create_task(servicer.VerifyBatch(request, context))
        await host.asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return int(host.sessions)

    assert asyncio.run(leave()) == 0


class FaultyHost(SilentHost):
    """Verifies, but for one request that meets a fault of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = Metrics()

    async def verify(  # type: ignore[override]
        self, draft: Draft, arrived_ns: int, deadline_ns: int | None = None
    ) -> Verdict:
        if draft.step_id == 2:
            raise ValueError("a fault")
        return Verdict(draft.step_id, 0, Outcome.VERIFIED, 2, 0, 7)


def test_a_fault_in_one_entry_of_a_batch_ends_that_session_alone() -> None:
    async def ask() -> tuple[pb.VerifyBatchResponse, int]:
        host: Any = FaultyHost()
        servicer = serving(host)
        opening = pb.OpenSession(prompt_token_ids=[5], stop=pb.StopParams(max_new_tokens=8))
        entries = [
            pb.VerifyBatchEntry(open=opening, verify=pb.VerifyRequest(step_id=step, position=1))
            for step in (1, 2)
        ]
        context: Any = Caller()
        answer = await servicer.VerifyBatch(pb.VerifyBatchRequest(entries=entries), context)
        return answer, int(host.sessions)

    answer, sessions = asyncio.run(ask())
    whole, failed = answer.results
    assert whole.verdict.next_token_id == 7
    assert "ValueError: a fault" in failed.error.message
    assert failed.error.reason == "INTERNAL"
    assert sessions == 1


def test_a_batch_of_more_entries_than_sessions_is_refused_before_any_is_looked_at() -> None:
    async def ask() -> None:
        host: Any = SilentHost()
        servicer = serving(host)
        request = pb.VerifyBatchRequest(entries=[pb.VerifyBatchEntry()] * 3)
        context: Any = Caller()
        with pytest.raises(InvalidRequestError, match="entries holds 3"):
            await servicer.VerifyBatch(request, context)

    asyncio.run(ask())
