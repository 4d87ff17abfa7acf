"""The key/value cache against a model of dictionaries and lists, contents included."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    precondition,
    rule,
)

from common.errors import ConfigError, InternalError, OverloadedError
from common.lm.kv_cache import KVCache
from common.lm.pages import PAGE, LayerShape

LAYERS = [LayerShape(heads=2, key_size=3, value_size=1), LayerShape(1, 2, 2)]
PAGES = 7
CAPACITY = PAGES * PAGE

Tokens = st.builds(
    lambda pages, rest: [token for page in pages for token in [page] * PAGE] + [2] * rest,
    st.lists(st.integers(0, 1), max_size=3),
    st.integers(0, PAGE),
)
"""Sequences of few kinds of pages, so that many begin alike."""


def content(owner: str | None, tokens: list[int]) -> float:
    """What is stored at the last of these tokens: of all before it, and of whose it is."""
    return float(crc32(repr((owner, tokens)).encode()) % 2**20)


class KVCacheMachine(RuleBasedStateMachine):
    """Stores at every token what depends on all before it, and looks whether it is found again."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(LAYERS, CAPACITY)
        self.tokens: dict[int, list[int]] = {}
        self.owner: dict[int, str | None] = {}
        self.room: dict[int, int] = {}  # least reservation each session must still have

    @rule(
        target=sessions,
        tokens=st.integers(1, 2 * PAGE),
        owner=st.sampled_from([None, "me", "me", "you"]),
    )
    def allocate(self, tokens: int, owner: str | None) -> int:
        free = self.cache.free_tokens
        if tokens > free:
            with pytest.raises(OverloadedError, match=f"{free} of {CAPACITY}"):
                self.cache.allocate(tokens, owner)
            assert self.cache.free_tokens == free
            return -1
        session = self.cache.allocate(tokens, owner)
        assert session not in self.tokens
        self.tokens[session], self.owner[session], self.room[session] = [], owner, tokens
        return session

    @rule(session=sessions, tokens=Tokens, tells=st.booleans())
    def append(self, session: int, tokens: list[int], tells: bool) -> None:
        if session not in self.tokens:
            return
        before, held = self.cache.used_tokens, self.tokens[session]
        try:
            self.cache.extend(session, len(tokens))
        except OverloadedError:
            assert (self.cache.used_tokens, self.cache.length(session)) == (before, len(held))
            return
        for token in tokens:
            held.append(token)
            self._write(session, len(held) - 1, content(self.owner[session], held))
        self.room[session] = max(self.room[session], len(held))
        if tells:
            self.cache.publish(session, [*held, 9], len(held))

    @rule(session=sessions, tokens=Tokens)
    def adopt(self, session: int, tokens: list[int]) -> None:
        if session not in self.tokens:
            return
        before, held = self.cache.used_tokens, self.tokens[session]
        wanted = [*held, *tokens]
        length = self.cache.adopt(session, wanted, len(wanted) - 1)
        assert len(held) <= length <= max(len(held), len(wanted) - 1)
        if length > len(held):
            assert self.owner[session] is not None
        assert self.cache.used_tokens <= before
        self.tokens[session] = wanted[:length]

    @rule(session=sessions, data=st.data())
    def truncate(self, session: int, data: st.DataObject) -> None:
        if session not in self.tokens:
            return
        length = data.draw(st.integers(0, len(self.tokens[session])))
        self.cache.truncate(session, length)
        del self.tokens[session][length:]

    @rule(session=sessions, excess=st.integers(1, 9))
    def truncate_forwards(self, session: int, excess: int) -> None:
        if session in self.tokens:
            with pytest.raises(InternalError, match="cannot roll back"):
                self.cache.truncate(session, len(self.tokens[session]) + excess)

    @precondition(lambda self: len(self.tokens) > 1)
    @rule(extra=st.integers(1, 3 * PAGE))
    def reserve_for_all_or_none(self, extra: int) -> None:
        wanted = {session: len(held) + extra for session, held in self.tokens.items()}
        used = self.cache.used_tokens
        try:
            self.cache.reserve(wanted)
        except OverloadedError:
            assert self.cache.used_tokens == used
        else:
            for session, length in wanted.items():
                self.room[session] = max(self.room[session], length)

    @rule(session=sessions)
    def withhold(self, session: int) -> None:
        if session in self.tokens:
            self.cache.withhold(session)

    @rule(session=consumes(sessions))
    def free(self, session: int) -> None:
        if session in self.tokens:
            self.cache.free(session)
            del self.tokens[session], self.room[session], self.owner[session]
        with pytest.raises(InternalError, match="no session"):
            self.cache.free(session)

    @invariant()
    def the_books_balance(self) -> None:
        self.cache.check_integrity()
        assert self.cache.free_tokens + self.cache.used_tokens == CAPACITY
        held = {page for session in self.tokens for page in self.cache.pages(session)}
        assert self.cache.used_tokens == PAGE * len(held)
        for session, room in self.room.items():
            assert self.cache.reserved(session) >= room
        assert set(self.cache.sessions) == set(self.tokens)

    @invariant()
    def every_session_holds_its_own_tokens(self) -> None:
        for session, tokens in self.tokens.items():
            assert self.cache.length(session) == len(tokens)
            stored = [content(self.owner[session], tokens[: i + 1]) for i in range(len(tokens))]
            for layer in range(len(LAYERS)):
                keys, values = self.cache.read(session, layer, 0, len(tokens))
                want = torch.tensor(stored) + layer
                assert torch.equal(keys, want[None, :, None].expand_as(keys))
                assert torch.equal(values, -want[None, :, None].expand_as(values))

    def _write(self, session: int, position: int, number: float) -> None:
        for layer, shape in enumerate(LAYERS):
            key = torch.full((shape.heads, 1, shape.key_size), number + layer)
            value = torch.full((shape.heads, 1, shape.value_size), -(number + layer))
            self.cache.write(session, layer, position, key, value)


KVCacheMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestKVCache = KVCacheMachine.TestCase


def filled(cache: KVCache, tokens: list[int], owner: str | None = "me") -> int:
    """Opens a session that holds these tokens and has said so."""
    session = cache.allocate(len(tokens), owner)
    cache.extend(session, len(tokens))
    cache.publish(session, tokens, len(tokens))
    return session


def test_sessions_that_begin_alike_hold_the_same_pages() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    tokens = list(range(3 * PAGE))
    first = filled(cache, tokens)
    second = cache.allocate(len(tokens), "me")
    used = cache.used_tokens
    assert cache.adopt(second, [*tokens[: 2 * PAGE], *tokens], 3 * PAGE) == 2 * PAGE
    assert cache.pages(second)[:2] == cache.pages(first)[:2]
    assert cache.used_tokens == used - 2 * PAGE
    cache.free(first)
    assert cache.used_tokens == 3 * PAGE
    cache.check_integrity()


def test_no_more_is_taken_over_than_is_wanted() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    tokens = list(range(2 * PAGE))
    filled(cache, tokens)
    assert cache.adopt(cache.allocate(2 * PAGE, "me"), tokens, 2 * PAGE - 1) == PAGE


@pytest.mark.parametrize("owner", ["you", None])
def test_nobody_shares_with_another_owner(owner: str | None) -> None:
    cache = KVCache(LAYERS, CAPACITY)
    tokens = list(range(2 * PAGE))
    filled(cache, tokens)
    assert cache.adopt(cache.allocate(2 * PAGE, owner), tokens, 2 * PAGE) == 0
    assert cache.adopt(filled(cache, [], None), tokens, 2 * PAGE) == 0


def test_what_is_withheld_is_not_found_any_more() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    tokens = list(range(2 * PAGE))
    first = filled(cache, tokens)
    cache.withhold(first)
    assert cache.adopt(cache.allocate(2 * PAGE, "me"), tokens, 2 * PAGE) == 0


def test_going_back_into_a_shared_page_leaves_the_other_session_what_it_had() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    tokens = list(range(2 * PAGE + 1))
    first = filled(cache, tokens)
    for pool in (*cache.keys, *cache.values):
        pool.copy_(torch.arange(CAPACITY).float()[None, :, None])
    second = cache.allocate(2 * PAGE + 1, "me")
    cache.adopt(second, tokens, len(tokens) - 1)
    cache.place({second: (PAGE + 3, PAGE + 4)})
    assert cache.pages(second)[0] == cache.pages(first)[0]
    assert cache.pages(second)[1] != cache.pages(first)[1]
    for layer in range(len(LAYERS)):
        cache.write(second, layer, PAGE + 3, *(torch.zeros_like(x[:, :1]) for x in (
            cache.keys[layer], cache.values[layer])))  # fmt: skip
        whole = cache.read(first, layer, 0, 2 * PAGE + 1)[0]
        assert torch.equal(cache.read(second, layer, 0, PAGE + 3)[0], whole[:, : PAGE + 3])
        assert whole[:, PAGE + 3].all()
    cache.check_integrity()


def test_a_copy_there_is_no_room_for_changes_nothing() -> None:
    cache = KVCache(LAYERS, 2 * PAGE)
    tokens = list(range(PAGE + 1))
    filled(cache, tokens[:PAGE])
    second = cache.allocate(1, "me")
    cache.adopt(second, tokens, len(tokens) - 1)
    assert cache.free_tokens == PAGE
    third = cache.allocate(1)
    with pytest.raises(OverloadedError, match="0 of 128 tokens free and 64 more"):
        cache.place({second: (3, 4)})
    assert cache.length(second) == PAGE
    cache.free(third)
    cache.place({second: (3, 4)})
    cache.check_integrity()


def test_reads_are_views_where_pages_lie_together() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    with cache.session(2 * PAGE) as session:
        cache.extend(session, 2 * PAGE)
        keys, _ = cache.read(session, 0, 1, PAGE + 3)
        assert keys.data_ptr() == cache.read(session, 0, 1, 4)[0].data_ptr()
    assert cache.used_tokens == 0


def test_a_session_finds_its_tokens_in_pages_that_lie_apart() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    gap = [cache.allocate() for _ in range(3)]
    cache.free(gap[1])
    session = cache.allocate(2 * PAGE)
    assert cache.pages(session) == [1, 3]
    assert cache.places(session) == (2, PAGE, PAGE, 3 * PAGE, PAGE)
    cache.extend(session, 2 * PAGE)
    given = torch.arange(20.0)[None, :, None].expand(2, 20, 3)
    cache.write(session, 0, PAGE - 10, given, given[..., :1])
    keys, values = cache.read(session, 0, PAGE - 10, PAGE + 10)
    assert torch.equal(keys, given)
    assert torch.equal(values, given[..., :1])


def test_a_full_cache_can_be_used_to_its_last_page() -> None:
    cache = KVCache(LAYERS, 2 * PAGE - 9)  # in whole pages
    with cache.session() as first, cache.session(PAGE) as second:
        cache.extend(second, PAGE)
        assert cache.free_tokens == 0
        with pytest.raises(OverloadedError, match="0 of 128 tokens free and 64 more"):
            cache.extend(second, 1)
        cache.extend(first, PAGE)


def test_a_device_without_memory_for_the_pool_says_how_much_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(ConfigError, match=r"448 tokens, 0\.0 GiB: lower cache_tokens"):
        KVCache(LAYERS, CAPACITY)


def test_a_gpus_memory_bounds_the_pool(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, **_: empty(shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (48 * 1000, 10**9))
    assert KVCache(LAYERS, 5000, device="cuda").capacity_tokens == 15 * PAGE  # 900, in whole pages
    assert "room for keys and values of 900 tokens, of 5000 asked" in caplog.text
    assert KVCache(LAYERS, PAGE, device="cuda").capacity_tokens == PAGE


def test_integrity_check_reports_what_is_wrong() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    session = filled(cache, [1] * PAGE)
    cache._pages.hold(0)
    with pytest.raises(InternalError, match=r"{0: 2}\) hold pages, and sessions .*{0: 1}"):
        cache.check_integrity()
    cache._pages.let_go(0)
    lost = cache._pages._free.pop()
    with pytest.raises(InternalError, match="of 7 pages 1 are held and 5 free"):
        cache.check_integrity()
    cache._pages._free.append(lost)
    cache._prefixes.offer(b"", 5)
    with pytest.raises(InternalError, match=r"pages \[5\] are shared and held by nobody"):
        cache.check_integrity()
    cache._prefixes.withdraw(5)
    cache._sessions[session].length = PAGE + 1
    with pytest.raises(InternalError, match="length 65, reserved 64"):
        cache.check_integrity()


def test_writes_and_reads_beyond_the_length_are_errors() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    with cache.session() as session:
        cache.extend(session, 2)
        with pytest.raises(InternalError, match=r"cannot read \[0, 3\)"):
            cache.read(session, 0, 0, 3)
        with pytest.raises(InternalError, match=r"cannot write \[1, 3\)"):
            cache.write(session, 0, 1, torch.zeros(2, 2, 3), torch.zeros(2, 2, 1))
        with pytest.raises(InternalError, match="cannot continue from 3"):
            cache.place({session: (3, 4)})


def test_bytes_per_token_counts_all_layers() -> None:
    assert KVCache(LAYERS, CAPACITY).bytes_per_token == 4 * (2 * 4 + 1 * 4)
