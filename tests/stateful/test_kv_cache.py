"""The key/value cache against a model of dictionaries and lists, contents included."""

from __future__ import annotations

from typing import Any

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

from common.errors import InternalError, OverloadedError
from common.lm.kv_cache import BLOCK, KVCache, LayerShape

LAYERS = [LayerShape(heads=2, key_size=3, value_size=1), LayerShape(1, 2, 2)]
CAPACITY = 5 * BLOCK + 7


class KVCacheMachine(RuleBasedStateMachine):
    """Gives every token a number of its own and checks that reads find it where it was put."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.cache = KVCache(LAYERS, CAPACITY)
        self.model: dict[int, list[float]] = {}
        self.room: dict[int, int] = {}  # least reservation each session must still have
        self.fresh = 0.0

    @rule(target=sessions, tokens=st.integers(1, 2 * BLOCK))
    def allocate(self, tokens: int) -> int:
        free = self.cache.free_tokens
        if tokens > free:
            with pytest.raises(OverloadedError, match=f"{free} of {CAPACITY}"):
                self.cache.allocate(tokens)
            assert self.cache.free_tokens == free
            return -1
        session = self.cache.allocate(tokens)
        assert session not in self.model
        self.model[session] = []
        self.room[session] = tokens
        return session

    @rule(session=sessions, count=st.integers(1, BLOCK + 5))
    def append(self, session: int, count: int) -> None:
        if session not in self.model:
            return
        before, held = self.cache.used_tokens, self.cache.length(session)
        needed = max(0, held + count - self.room[session])
        try:
            self.cache.extend(session, count)
        except OverloadedError:
            assert needed > self.cache.free_tokens
            assert (self.cache.used_tokens, self.cache.length(session)) == (before, held)
            return
        start = len(self.model[session])
        for offset in range(count):
            self.fresh += 1
            self.model[session].append(self.fresh)
            self._write(session, start + offset, self.fresh)
        self.room[session] = max(self.room[session], start + count)

    @rule(session=sessions, data=st.data())
    def truncate(self, session: int, data: st.DataObject) -> None:
        if session not in self.model:
            return
        length = data.draw(st.integers(0, len(self.model[session])))
        self.cache.truncate(session, length)
        del self.model[session][length:]

    @rule(session=sessions, excess=st.integers(1, 9))
    def truncate_forwards(self, session: int, excess: int) -> None:
        if session in self.model:
            with pytest.raises(InternalError, match="cannot roll back"):
                self.cache.truncate(session, len(self.model[session]) + excess)

    @precondition(lambda self: len(self.model) > 1)
    @rule(extra=st.integers(1, 3 * BLOCK))
    def reserve_for_all_or_none(self, extra: int) -> None:
        wanted = {session: len(held) + extra for session, held in self.model.items()}
        used = self.cache.used_tokens
        try:
            self.cache.reserve(wanted)
        except OverloadedError:
            assert self.cache.used_tokens == used
        else:
            for session, length in wanted.items():
                self.room[session] = max(self.room[session], length)

    @rule(session=consumes(sessions))
    def free(self, session: int) -> None:
        if session in self.model:
            self.cache.free(session)
            del self.model[session], self.room[session]
        with pytest.raises(InternalError, match="no session"):
            self.cache.free(session)

    @invariant()
    def the_books_balance(self) -> None:
        self.cache.check_integrity()
        assert self.cache.free_tokens + self.cache.used_tokens == CAPACITY
        assert self.cache.used_tokens >= sum(self.room.values())
        assert set(self.cache.sessions) == set(self.model)

    @invariant()
    def every_session_holds_its_own_tokens(self) -> None:
        for session, tokens in self.model.items():
            assert self.cache.length(session) == len(tokens)
            for layer in range(len(LAYERS)):
                keys, values = self.cache.read(session, layer, 0, len(tokens))
                want = torch.tensor(tokens) * (layer + 1)
                assert torch.equal(keys, want[None, :, None].expand_as(keys))
                assert torch.equal(values, -want[None, :, None].expand_as(values))

    def _write(self, session: int, position: int, number: float) -> None:
        for layer, shape in enumerate(LAYERS):
            number_here = number * (layer + 1)
            key = torch.full((shape.heads, 1, shape.key_size), number_here)
            value = torch.full((shape.heads, 1, shape.value_size), -number_here)
            self.cache.write(session, layer, position, key, value)


KVCacheMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestKVCache = KVCacheMachine.TestCase


def test_reads_are_views_not_copies() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    with cache.session(4) as session:
        cache.extend(session, 4)
        keys, _ = cache.read(session, 0, 1, 3)
        assert keys.data_ptr() == cache.read(session, 0, 1, 4)[0].data_ptr()
    assert cache.used_tokens == 0


def test_a_full_cache_can_be_used_to_its_last_token() -> None:
    cache = KVCache(LAYERS, BLOCK + 3)
    with cache.session() as first:
        cache.extend(first, 1)
        with cache.session(3) as second:
            cache.extend(second, 3)
            assert cache.free_tokens == 0
            with pytest.raises(OverloadedError, match="0 of 67 tokens free and 1 more"):
                cache.extend(second, 1)
            cache.extend(first, BLOCK - 1)


def test_a_device_without_memory_overloads_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = KVCache(LAYERS, CAPACITY)
    session = cache.allocate()
    cache.extend(session, 3)
    used, made, empty = cache.used_tokens, 0, torch.empty

    def fail_at_the_third(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal made
        made += 1
        if made == 3:
            raise torch.OutOfMemoryError("planted")
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", fail_at_the_third)
    with pytest.raises(OverloadedError, match="lower cache_tokens"):
        cache.extend(session, BLOCK)
    assert (cache.used_tokens, cache.length(session)) == (used, 3)
    cache.check_integrity()


def test_rounding_up_never_takes_room_another_session_of_the_call_needs() -> None:
    cache = KVCache(LAYERS, 3 * BLOCK + 2)
    sessions = [cache.allocate() for _ in range(3)]
    cache.reserve({sessions[0]: BLOCK + 1, sessions[1]: BLOCK + 1})
    cache.check_integrity()
    assert cache.free_tokens == 0


def test_integrity_check_reports_what_is_wrong() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    session = cache.allocate()
    cache._used_tokens += 1
    with pytest.raises(InternalError, match="64 tokens reserved by sessions, 65 counted"):
        cache.check_integrity()
    cache._used_tokens -= 1
    cache._sessions[session].length = 65
    with pytest.raises(InternalError, match="length 65, reserved 64"):
        cache.check_integrity()
    cache._sessions[session].length = 0
    cache._sessions[session].keys[1] = torch.empty(1, 1, 1)
    with pytest.raises(InternalError, match="layer 1: keys"):
        cache.check_integrity()


def test_writes_and_reads_beyond_the_length_are_errors() -> None:
    cache = KVCache(LAYERS, CAPACITY)
    with cache.session() as session:
        cache.extend(session, 2)
        with pytest.raises(InternalError, match=r"cannot read \[0, 3\)"):
            cache.read(session, 0, 0, 3)
        with pytest.raises(InternalError, match=r"cannot write \[1, 3\)"):
            cache.write(session, 0, 1, torch.zeros(2, 2, 3), torch.zeros(2, 2, 1))


def test_bytes_per_token_counts_all_layers() -> None:
    assert KVCache(LAYERS, CAPACITY).bytes_per_token == 4 * (2 * 4 + 1 * 4)
