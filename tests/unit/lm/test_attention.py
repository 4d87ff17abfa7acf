"""Ragged attention against its definition, written out as loops over single queries and keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.errors import InternalError, ModelError
from common.lm.attention import LayerCall, RaggedStep, Span, current_step, ragged_attention
from common.lm.kv_cache import KVCache
from common.lm.pages import LayerShape

HEADS, KV_HEADS, SIZE, VALUE_SIZE = 4, 2, 8, 6


def defined(query: Tensor, keys: Tensor, values: Tensor, position: int, call: LayerCall) -> Tensor:
    """One softmax a head and query over the keys it may see; `[n, heads, size]`."""
    out = torch.empty(query.shape[1], HEADS, VALUE_SIZE, dtype=torch.float64)
    for head in range(HEADS):
        shared = head // (HEADS // KV_HEADS)
        for row in range(query.shape[1]):
            at = position + row
            seen = [j for j in range(at + 1) if call.window is None or at - j < call.window]
            scores = keys[shared, seen].double() @ query[head, row].double() * call.scaling
            if call.softcap is not None:
                scores = call.softcap * torch.tanh(scores / call.softcap)
            out[row, head] = scores.softmax(0) @ values[shared, seen].double()
    return out


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_each_span_attends_to_its_own_session(window: int | None, softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    cache = KVCache([LayerShape(KV_HEADS, SIZE, VALUE_SIZE)], 1024)
    call = LayerCall(layer=0, scaling=0.3, window=window, softcap=softcap)
    held: dict[int, tuple[Tensor, Tensor]] = {}
    steps = [  # (session, position, tokens)
        [(0, 0, 7), (1, 0, 1)],
        [(1, 1, 9), (0, 7, 1), (2, 0, 40)],
        [(0, 4, 3), (2, 33, 40), (1, 10, 1)],
    ]
    sessions = [cache.allocate() for _ in range(3)]
    for step in steps:
        total = sum(count for _, _, count in step)
        query = torch.randn(HEADS, total, SIZE, generator=generator)
        key = torch.randn(KV_HEADS, total, SIZE, generator=generator)
        value = torch.randn(KV_HEADS, total, VALUE_SIZE, generator=generator)
        spans, want, start = [], [], 0
        for which, position, count in step:
            cache.truncate(sessions[which], position)
            cache.extend(sessions[which], count)
            rows = slice(start, start + count)
            spans.append(Span(start, start + count, sessions[which], position))
            old = held.get(which, (key[:, :0], value[:, :0]))
            keys = torch.cat((old[0][:, :position], key[:, rows]), 1)
            values = torch.cat((old[1][:, :position], value[:, rows]), 1)
            held[which] = keys, values
            want.append(defined(query[:, rows], keys, values, position, call))
            start += count
        got = RaggedStep(cache, spans).attend(call, query, key, value)
        assert got.shape == (total, HEADS, VALUE_SIZE)
        assert (got - torch.cat(want)).abs().max().item() < 1e-5


def test_one_step_serves_layers_of_different_windows_in_any_order() -> None:
    windows = [5, None, 5, 2, None]
    cache = KVCache([LayerShape(KV_HEADS, SIZE, VALUE_SIZE)] * len(windows), 64)
    session = cache.allocate(12)
    cache.extend(session, 12)
    whole = torch.randn(HEADS + 2 * KV_HEADS, 12, SIZE)
    query, keys, values = whole[:HEADS], whole[HEADS:-KV_HEADS], whole[-KV_HEADS:]
    values = values[..., :VALUE_SIZE]
    for layer in range(len(windows)):
        cache.write(session, layer, 0, keys, values)
    step = RaggedStep(cache, [Span(0, 3, session, 9)])
    for layer, window in enumerate(windows):
        call = LayerCall(layer, 0.3, window, None)
        got = step.attend(call, query[:, 9:], keys[:, 9:], values[:, 9:])
        assert (got - defined(query[:, 9:], keys, values, 9, call)).abs().max().item() < 1e-5


class _Attention(nn.Module):
    layer_idx = 0


class _Echo:
    def attend(self, call: LayerCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.call = call
        return value.transpose(0, 1)


def _call(module: nn.Module | None = None, **kwargs: Any) -> LayerCall:
    step, one = _Echo(), torch.zeros(1, 1, 1, 4)
    with current_step(step):
        ragged_attention(module or _Attention(), one, one, one, **kwargs)
    return step.call


def test_arguments_reach_the_step() -> None:
    call = _call(scaling=0.25, sliding_window=7, softcap=30.0, position_ids=torch.zeros(1, 1))
    assert call == LayerCall(layer=0, scaling=0.25, window=7, softcap=30.0)
    assert _call().scaling == 0.5


@pytest.mark.parametrize(
    "argument",
    [
        {"s_aux": torch.zeros(4)},
        {"sinks": torch.zeros(4)},
        {"position_bias": torch.zeros(1)},
        {"head_mask": torch.zeros(4)},
        {"attention_mask": torch.zeros(1, 1, 1, 1)},
        {"dropout": 0.1},
        {"output_attentions": True},
        {"something_new": 3},
    ],
    ids=lambda argument: next(iter(argument)),
)
def test_arguments_that_change_the_result_are_refused_by_name(argument: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"_Attention passes `{next(iter(argument))}`"):
        _call(**argument)


def test_attention_that_is_not_causal_is_refused() -> None:
    with pytest.raises(ModelError, match="`is_causal=False`"):
        _call(is_causal=False)
    module = _Attention()
    module.is_causal = False  # type: ignore[assignment]
    with pytest.raises(ModelError, match="`is_causal=False`"):
        _call(module)


def test_arguments_that_say_nothing_are_let_through() -> None:
    _call(s_aux=None, output_attentions=False, dropout=0.0, is_causal=True)


def test_a_layer_without_a_name_and_a_call_without_a_step_are_errors() -> None:
    with pytest.raises(ModelError, match="Linear has no `layer_idx`"):
        _call(nn.Linear(1, 1))
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(InternalError, match="outside a step"):
        ragged_attention(_Attention(), one, one, one)
