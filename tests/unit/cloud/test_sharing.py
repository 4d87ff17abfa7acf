"""Sessions that begin alike run their common beginning once, and write what they would alone."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from cloud_server.host import Host
from common.config import CloudSection
from common.lm.pages import PAGE
from common.types import Draft, OpenSession, SamplingParams, StopParams
from tests.models import language_model
from tests.three_arms import hosting

LIMITS = CloudSection(prefill_chunk=16)
SYSTEM = tuple(1 + i % 60 for i in range(2 * PAGE + 10))
QUESTIONS = ((5, 6, 7), (8, 9))


def opening(host: Host, question: tuple[int, ...], name: bytes = b"") -> OpenSession:
    return OpenSession(
        host.peer, (*SYSTEM, *question), SamplingParams(), StopParams(6, ()), conversation=name
    )


async def texts(host: Host, clients: tuple[str, str], name: bytes = b"") -> list[list[int]]:
    """Has two sessions write one after the other, the first still open when the second comes."""
    written = []
    async with AsyncExitStack() as stack:
        for client, question in zip(clients, QUESTIONS, strict=True):
            live = await stack.enter_async_context(host.open(opening(host, question, name), client))
            written.append([t async for piece in live.decode() for t in piece.token_ids])
    return written


async def alone(question: tuple[int, ...]) -> tuple[list[int], int]:
    with hosting(language_model(), LIMITS) as host:
        async with host.open(opening(host, question), "me") as live:
            text = [t async for piece in live.decode() for t in piece.token_ids]
        return text, host.engine.steps


def test_a_prompt_goes_on_from_what_another_session_has_run() -> None:
    with hosting(language_model(), LIMITS) as host:
        written = asyncio.run(texts(host, ("me", "me")))
        steps = host.engine.steps
    (first, steps_first), (second, steps_second) = (asyncio.run(alone(q)) for q in QUESTIONS)
    assert written == [first, second]
    assert steps == steps_first + steps_second - 2 * PAGE // LIMITS.prefill_chunk


@pytest.mark.parametrize("clients", [("me", "you")])
def test_clients_share_nothing(clients: tuple[str, str]) -> None:
    with hosting(language_model(), LIMITS) as host:
        asyncio.run(texts(host, clients))
        assert host.engine.steps == sum(asyncio.run(alone(q))[1] for q in QUESTIONS)


@pytest.mark.parametrize("name", [b"", b"talk"])
def test_what_has_ended_is_shared_no_more(name: bytes) -> None:
    """Else the arm of a comparison that comes second would find its prompts read."""

    async def one_after_the_other(host: Host) -> None:
        for question, conversation in zip(QUESTIONS, (name, b""), strict=True):
            async with host.open(opening(host, question, conversation), "me") as live:
                async for _ in live.decode():
                    pass

    with hosting(language_model(), LIMITS) as host:
        asyncio.run(one_after_the_other(host))
        assert host.engine.steps == sum(asyncio.run(alone(q))[1] for q in QUESTIONS)


def test_sessions_that_come_together_share_from_page_to_page() -> None:
    async def together(host: Host) -> list[list[int]]:
        async def one(question: tuple[int, ...]) -> list[int]:
            async with host.open(opening(host, question), "me") as live:
                live.prefill()
                return [t async for piece in live.decode() for t in piece.token_ids]

        return list(await asyncio.gather(*map(one, QUESTIONS * 4)))

    model = language_model(cache_tokens=8 * 3 * PAGE)
    with hosting(model, LIMITS) as host:
        written = asyncio.run(together(host))
    assert written == [asyncio.run(alone(q))[0] for q in QUESTIONS] * 4
    model.cache.check_integrity()
    assert model.cache.used_tokens == 0


def test_a_session_that_leaves_takes_nothing_from_the_others() -> None:
    async def staying(host: Host) -> list[int]:
        async with host.open(opening(host, QUESTIONS[1]), "me") as second:
            async with host.open(opening(host, QUESTIONS[0]), "me") as first:
                async for _ in first.decode():
                    break
                pieces = second.decode()
                text = [*(await anext(pieces)).token_ids]
            async with host.open(opening(host, (3, 3, 3)), "me") as third:
                async for _ in third.decode():
                    pass
            return text + [t async for piece in pieces for t in piece.token_ids]

    with hosting(language_model(), LIMITS) as host:
        assert asyncio.run(staying(host)) == asyncio.run(alone(QUESTIONS[1]))[0]


def test_a_page_with_guesses_in_it_is_not_shared_before_they_stand() -> None:
    """Else going back over it would take room that no session has reserved."""
    prompt = SYSTEM[: PAGE - 2]

    async def guess(host: Host) -> int:
        given = OpenSession(host.peer, prompt, SamplingParams(), StopParams(9, ()))
        async with host.open(given, "me") as live:
            wrong = (0, 0, 0, 0)
            await live.verify(
                Draft(step_id=1, position=PAGE - 2, epoch=0, token_ids=wrong), host.clock()
            )
            other = model.cache.allocate(2 * PAGE, "me")
            return model.cache.adopt(other, (*prompt, *wrong), PAGE)

    model = language_model()
    with hosting(model, LIMITS) as host:
        assert asyncio.run(guess(host)) == 0
