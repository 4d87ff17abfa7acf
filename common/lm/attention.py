"""Ragged attention over the key/value cache, registered with transformers.

All tokens of a step, whatever session they belong to, stand in one row `[1, T]`. Linear layers
see that row; attention alone has to know which tokens belong together. It learns this from the
step in `current_step`, which the runner sets around a forward. No mask function is registered
under the name, so transformers builds no mask and hands over `attention_mask=None`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from common.errors import InternalError, ModelError
from common.lm.kv_cache import KVCache

NAME = "outrider_ragged"
"""Name under which transformers knows this attention."""

_PACKED_ROWS = 32
"""Up to this many queries, those of one key head are stacked: no repeated keys, small masks."""

_HARMLESS = frozenset(
    {"position_ids", "cache_position", "position_embeddings", "use_cache", "logits_to_keep"}
)
"""Keyword arguments that transformers passes along and that do not change attention itself."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """States how one layer attends; `window` w lets query i see keys j with 0 <= i - j < w."""

    layer: int
    scaling: float
    window: int | None
    softcap: float | None


class Step(Protocol):
    """Answers the attention calls of one forward."""

    def attend(self, call: LayerCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Maps query `[heads, T, size]`, key, value `[kv_heads, T, size]` to `[T, heads, size]`."""
        ...


_current: ContextVar[Step | None] = ContextVar("outrider_step", default=None)


@contextmanager
def current_step(step: Step) -> Iterator[None]:
    """Lets the attention calls inside a `with` block belong to `step`."""
    token = _current.set(step)
    try:
        yield
    finally:
        _current.reset(token)


@dataclass(frozen=True, slots=True)
class Span:
    """Places rows [start, stop) of the packed row at `position` onwards of a session."""

    start: int
    stop: int
    session: int
    position: int


def places(cache: KVCache, spans: Sequence[Span]) -> list[int]:
    """Says where spans stand in the step and in the cache, as the kernels read it (spans.h)."""
    return [
        number
        for span in spans
        for number in (span.start, span.stop, span.position, *cache.places(span.session))
    ]


class KernelStep:
    """Has the kernels attend, which hold the spans meanwhile (see kernels/)."""

    def attend(self, call: LayerCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Writes the new keys and values of every span, and attends all in one call."""
        output: Tensor = torch.ops.outrider.attend(
            query, key, value, call.layer, call.scaling, call.window or 0, call.softcap or 0.0
        )
        return output


@contextmanager
def kernel_step(cache: KVCache, spans: Sequence[Span]) -> Iterator[None]:
    """Lets the attention calls inside a `with` block be answered by the kernels."""
    torch.ops.outrider.begin_step(places(cache, spans), cache.keys, cache.values)
    try:
        with current_step(KernelStep()):
            yield
    finally:
        torch.ops.outrider.end_step()


class RaggedStep:
    """Attends each span to its own session's cache, causally."""

    def __init__(self, cache: KVCache, spans: list[Span]) -> None:
        """Takes spans whose sessions are already extended to hold the new tokens."""
        self._cache = cache
        self._spans = spans
        self._masks: dict[tuple[int, int | None, int], Tensor] = {}

    def attend(self, call: LayerCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Writes the new keys and values of every span, then attends span by span."""
        outputs = []
        for index, span in enumerate(self._spans):
            rows = slice(span.start, span.stop)
            end = span.position + span.stop - span.start
            self._cache.write(span.session, call.layer, span.position, key[:, rows], value[:, rows])
            first = 0 if call.window is None else max(0, span.position + 1 - call.window)
            keys, values = self._cache.read(span.session, call.layer, first, end)
            mask = self._mask(index, call, query.shape[0] // key.shape[0], first, end)
            outputs.append(attention(query[:, rows], keys, values, mask, call))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _mask(
        self, index: int, call: LayerCall, groups: int, first: int, end: int
    ) -> Tensor | None:
        """Builds the additive mask of a span once a step and window; None: see `attention`."""
        span = self._spans[index]
        rows = span.stop - span.start
        window_bites = call.window is not None and end > call.window
        if rows == 1 or (span.position == 0 and not window_bites and call.softcap is None):
            return None
        repeats = groups if _stacks(rows, call) else 1
        mask = self._masks.get((index, call.window, repeats))
        if mask is None:
            device = self._cache.device
            distance = (
                torch.arange(span.position, end, device=device)[:, None]
                - torch.arange(first, end, device=device)[None, :]
            )
            hidden = distance < 0
            if call.window is not None:
                hidden |= distance >= call.window
            mask = torch.zeros(hidden.shape, dtype=self._cache.dtype, device=device)
            mask = mask.masked_fill_(hidden, float("-inf")).repeat(repeats, 1)
            self._masks[index, call.window, repeats] = mask
        return mask


def _stacks(rows: int, call: LayerCall) -> bool:
    return rows <= _PACKED_ROWS or call.softcap is not None


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, call: LayerCall
) -> Tensor:
    """Attends `[heads, n, size]` to `[kv_heads, m, size]` and returns `[n, heads, size]`.

    Without a mask a single query sees every key, and n queries see n keys causally. The mask is
    additive, `[n, m]`, or `[groups * n, m]` where the queries of a key head are stacked.
    """
    heads, rows, size = query.shape
    groups = heads // key.shape[0]
    if rows > 1 and (mask is None or not _stacks(rows, call)):
        output = F.scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=call.scaling,
            enable_gqa=groups > 1,
        )[0]
        return output.transpose(0, 1)
    query = query.reshape(key.shape[0], groups * rows, size)
    if call.softcap is None:
        output = F.scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, scale=call.scaling
        )[0]
    else:
        scores = (query @ key.transpose(1, 2)).float() * call.scaling
        scores = torch.tanh(scores / call.softcap) * call.softcap
        if mask is not None:
            scores = scores + mask
        output = scores.softmax(-1).to(value.dtype) @ value
    return output.reshape(heads, rows, -1).transpose(0, 1)


def ragged_attention(
    module: nn.Module,
    query: Tensor,  # [1, heads, T, size]
    key: Tensor,  # [1, kv_heads, T, size]
    value: Tensor,  # [1, kv_heads, T, size]
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implements transformers' attention signature; returns `[1, T, heads, size]`.

    Raises ModelError on any argument whose effect this attention does not reproduce.
    """
    # A graph is compiled for kernels alone: they know the step, whatever it is.
    step = KernelStep() if torch.compiler.is_dynamo_compiling() else _current.get()
    if step is None:
        raise InternalError(f"{NAME} attention was called outside a step of the runner")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    foreign = {name: given for name, given in kwargs.items() if name not in _HARMLESS}
    foreign |= {"attention_mask": attention_mask, "dropout": dropout, "is_causal=False": not causal}
    for name, given in foreign.items():
        if given is not None and given is not False and not _is_zero(given):
            raise ModelError(
                f"{type(module).__name__} passes `{name}` to its attention, which this engine "
                "does not reproduce"
            )
    call = LayerCall(
        layer=_layer_index(module),
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=sliding_window,
        softcap=softcap,
    )
    return step.attend(call, query[0], key[0], value[0])[None], None


def _is_zero(given: object) -> bool:
    return isinstance(given, (int, float)) and given == 0


def _layer_index(module: nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise ModelError(f"{type(module).__name__} has no `layer_idx` that names its layer")
    return index


AttentionInterface.register(NAME, ragged_attention)
