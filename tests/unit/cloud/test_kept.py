"""Caches that outlive their session: whose they are, what they hold, and that they give way."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_server.kept import MOST_KEPT, KeptCaches
from common.config import CloudSection
from common.errors import OverloadedError
from common.lm.kv_cache import KVCache
from common.lm.pages import PAGE, LayerShape
from common.types import OpenSession, SamplingParams, StopParams
from tests.models import language_model
from tests.three_arms import hosting

LAYERS = [LayerShape(1, 2, 2)]
MINE, YOURS = ("me", b"talk"), ("you", b"talk")


def ended(kept: KeptCaches, cache: KVCache, name: tuple[str, bytes], tokens: list[int]) -> int:
    """Has a session of these tokens run and end."""
    session = kept.allocate(len(tokens), name, tokens)
    cache.extend(session, len(tokens) - cache.length(session))
    kept.keep(name, session, tokens)
    return session


def test_the_next_turn_begins_with_what_agrees() -> None:
    cache = KVCache(LAYERS, 10 * PAGE)
    kept = KeptCaches(cache)
    session = ended(kept, cache, MINE, [1, 2, 3, 4])
    assert kept.allocate(9, MINE, [1, 2, 3, 9, 9]) == session
    assert cache.length(session) == 3
    cache.check_integrity()


def test_a_cache_is_kept_no_further_than_it_was_run() -> None:
    cache = KVCache(LAYERS, 10 * PAGE)
    kept = KeptCaches(cache)
    session = kept.allocate(8)
    cache.extend(session, 2)
    kept.keep(MINE, session, [1, 2, 3, 4])
    assert cache.length(kept.allocate(8, MINE, [1, 2, 3, 4])) == 2


def test_nobody_else_is_served_from_it() -> None:
    cache = KVCache(LAYERS, 10 * PAGE)
    kept = KeptCaches(cache)
    ended(kept, cache, MINE, [1, 2, 3])
    assert cache.length(kept.allocate(3, YOURS, [1, 2, 3])) == 0
    assert cache.length(kept.allocate(3, None, [1, 2, 3])) == 0


def test_it_is_lent_once() -> None:
    cache = KVCache(LAYERS, 10 * PAGE)
    kept = KeptCaches(cache)
    ended(kept, cache, MINE, [1, 2, 3])
    assert cache.length(kept.allocate(3, MINE, [1, 2, 3])) == 3
    assert cache.length(kept.allocate(3, MINE, [1, 2, 3])) == 0


def test_it_gives_way_to_a_session_that_needs_the_room() -> None:
    cache = KVCache(LAYERS, 2 * PAGE)
    kept = KeptCaches(cache)
    ended(kept, cache, MINE, [1, 2, 3])
    ended(kept, cache, YOURS, [1, 2, 3])
    kept.allocate(PAGE)
    assert len(kept) == 1  # the oldest went
    kept.allocate(PAGE)
    assert len(kept) == 0
    with pytest.raises(OverloadedError):
        kept.allocate(1)
    cache.check_integrity()


def test_others_give_way_to_a_turn_that_needs_more_room_than_the_one_before() -> None:
    cache = KVCache(LAYERS, 3 * PAGE)
    kept = KeptCaches(cache)
    ended(kept, cache, MINE, [1, 2, 3])
    ended(kept, cache, YOURS, [1] * 2 * PAGE)
    session = kept.allocate(2 * PAGE, MINE, [1, 2, 3])
    assert (cache.length(session), len(kept)) == (3, 0)
    cache.check_integrity()


def test_no_more_are_kept_than_may_be() -> None:
    cache = KVCache(LAYERS, 1000 * PAGE)
    kept = KeptCaches(cache)
    for number in range(MOST_KEPT + 5):
        ended(kept, cache, ("me", bytes([number])), [1])
    assert len(kept) == MOST_KEPT == len(cache.sessions)


NAMES = st.sampled_from([None, MINE, YOURS])
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=3 * PAGE)


@given(st.lists(st.tuples(NAMES, PROMPTS, st.booleans()), max_size=20))
def test_the_books_balance_whatever_comes(
    turns: list[tuple[tuple[str, bytes] | None, list[int], bool]],
) -> None:
    cache = KVCache(LAYERS, 4 * PAGE)
    kept = KeptCaches(cache)
    for name, prompt, ends in turns:
        session = kept.allocate(len(prompt), name, prompt)  # all else gives way
        cache.extend(session, len(prompt) - cache.length(session))
        if name is not None and ends:
            kept.keep(name, session, prompt)
        else:
            cache.free(session)
        cache.check_integrity()
        assert len(cache.sessions) == len(kept) <= 2


def test_a_turn_runs_only_what_is_new_and_writes_the_same() -> None:
    limits = CloudSection(prefill_chunk=4)
    first = tuple(range(1, 22))

    async def turns(name: bytes) -> tuple[list[list[int]], list[int]]:
        outputs: list[list[int]] = []
        steps: list[int] = []
        with hosting(language_model(), limits) as host:
            prompt = first
            for _ in range(2):
                opening = OpenSession(
                    host.peer, prompt, SamplingParams(), StopParams(5, ()), conversation=name
                )
                before = host.engine.steps
                async with host.open(opening, "me") as live:
                    output = [t async for piece in live.decode() for t in piece.token_ids]
                outputs.append(output)
                steps.append(host.engine.steps - before)
                prompt = (*prompt, *output, 7, 8, 9)
        return outputs, steps

    outputs, steps = asyncio.run(turns(b"talk"))
    anew, steps_anew = asyncio.run(turns(b""))
    # Of the second prompt's 29 tokens the cache has 25: a step for the rest, and four more.
    assert (steps, steps_anew) == ([10, 5], [10, 12])
    assert outputs == anew
