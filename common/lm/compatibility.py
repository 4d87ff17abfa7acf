"""Proof, before anything is served, that an architecture comes out exact here.

Two looks. The first runs one short row and notes every attention call: each layer must attend
exactly once, through this engine's function, with the window its configuration promises. The
second compares logits of a small ragged session life (chunked prefill, decode, rollback, verify,
two sessions in one step) with the stock module's own full forward. What fails either is refused
by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from common.errors import ModelError, OutriderError
from common.lm.attention import LayerCall, attention, current_step
from common.lm.kv_cache import KVCache
from common.lm.loading import LoadedModel
from common.lm.pages import PAGE, LayerShape
from common.lm.precision import dtype_name
from common.lm.segments import Segment
from common.lm.wording import brief, quiet

if TYPE_CHECKING:
    from common.lm.runner import LanguageModel

_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest accepted |difference of logits|, relative to their scale where that exceeds 1."""

_ATTENDS_TO_ALL = frozenset({"full_attention", "sliding_attention"})


class _Observation:
    """Notes every attention call of one forward and answers it with plain causal attention."""

    def __init__(self) -> None:
        self.calls: list[tuple[LayerCall, LayerShape]] = []

    def attend(self, call: LayerCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        shape = LayerShape(key.shape[0], key.shape[2], value.shape[2])
        self.calls.append((call, shape))
        return attention(query, key, value, None, call)


def observe_layers(
    loaded: LoadedModel, module: PreTrainedModel
) -> list[tuple[LayerCall, LayerShape]]:
    """Finds out how each layer attends and what it stores, by running one token.

    Raises ModelError by name.
    """
    config = loaded.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    if strange := sorted(set(kinds) - _ATTENDS_TO_ALL):
        raise _refusal(loaded, f"its layers of type {', '.join(strange)} keep another state")
    observation = _Observation()
    with _refusing(loaded), torch.inference_mode(), current_step(observation):
        module(
            input_ids=torch.zeros((1, 1), dtype=torch.long, device=loaded.device),
            position_ids=torch.zeros((1, 1), dtype=torch.long, device=loaded.device),
            use_cache=False,
        )
    layers = config.num_hidden_layers
    called = sorted(call.layer for call, _ in observation.calls)
    if called != list(range(layers)):
        raise _refusal(
            loaded,
            f"{len(set(called))} of its {layers} layers attend through transformers' "
            f"AttentionInterface, in {len(called)} calls; the others keep recurrent state, share "
            "keys, or have attention code of their own",
        )
    observation.calls.sort(key=lambda pair: pair[0].layer)
    _check_windows(loaded, config, [call for call, _ in observation.calls])
    return observation.calls


def probe(lm: LanguageModel) -> None:
    """Compares a short ragged life of two sessions with the stock module; raises ModelError."""
    loaded = lm.loaded
    length = min(12, loaded.context_length)
    first, second = _probe_tokens(loaded.vocab_size, length)
    cut, end = length // 3, length
    cache = KVCache(lm.cache.layers, 2 * PAGE, loaded.dtype, loaded.device)
    with cache.session(length) as a, cache.session(length) as b:
        steps = [
            [Segment(a, first[:cut], 0, cut)],
            [Segment(b, second[:1], 0, 1), Segment(a, second[cut:], cut, 0)],  # wrong guesses
            [Segment(a, first[cut : end - 1], cut, end - 1 - cut), Segment(b, second[1:], 1, 1)],
            [Segment(b, second[cut:], cut, end - cut), Segment(a, first[end - 1 :], end - 1, 1)],
        ]
        with _refusing(loaded):
            sources = {a: stock_logits(loaded, first), b: stock_logits(loaded, second)}
        for step in steps:
            with _refusing(loaded):
                got = lm.forward_in(cache, step)
            want = torch.cat([_rows(sources[s.session], s) for s in step])
            _compare(loaded, got, want)


def stock_logits(loaded: LoadedModel, token_ids: Sequence[int]) -> Tensor:
    """Computes `[n, vocab_size]` logits of a whole sequence with the stock module."""
    with torch.inference_mode():
        ids = torch.tensor([list(token_ids)], device=loaded.device)
        logits: Tensor = loaded.model(input_ids=ids, use_cache=False).logits[0]
    return logits[:, : loaded.vocab_size]


def _rows(logits: Tensor, segment: Segment) -> Tensor:
    return logits[segment.end - segment.num_logits : segment.end]


def _compare(loaded: LoadedModel, got: Tensor, want: Tensor) -> None:
    difference = (got.float() - want.float()).abs().max().item()
    allowed = _TOLERANCE[loaded.dtype] * max(1.0, want.float().abs().max().item())
    if not difference <= allowed:  # also when it is not a number
        raise _refusal(
            loaded,
            f"its logits over the ragged cache differ from its own by {difference:.2g} in "
            f"{dtype_name(loaded.dtype)} (at most {allowed:.2g} is rounding)",
        )


def _probe_tokens(vocab_size: int, length: int) -> tuple[list[int], list[int]]:
    spread = max(1, vocab_size // 37)
    first = [(7 + 5 * index * spread) % vocab_size for index in range(length)]
    second = [(11 + 3 * index * spread + index) % vocab_size for index in range(length)]
    return first, second


def _check_windows(
    loaded: LoadedModel, config: PreTrainedConfig, calls: Sequence[LayerCall]
) -> None:
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    default = "sliding_attention" if window else "full_attention"
    for call in calls:
        kind = kinds[call.layer] if kinds else default
        promised = window if kind == "sliding_attention" else None
        reach = loaded.context_length  # a window that no sequence outgrows is none
        if min(call.window or reach, reach) != min(promised or reach, reach):
            raise _refusal(
                loaded,
                f"layer {call.layer} is configured with window {promised} but attends with "
                f"{call.window}",
            )


@contextmanager
def _refusing(loaded: LoadedModel) -> Iterator[None]:
    """Turns whatever a module raises on the way into a refusal of its architecture."""
    try:
        with quiet():
            yield
    except ModelError as error:
        raise _refusal(loaded, str(error)) from error
    except (OutriderError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # any module, any error
        raise _refusal(loaded, f"it fails on a packed row ({brief(error)})") from error


def _refusal(loaded: LoadedModel, reason: str) -> ModelError:
    return ModelError(f"{loaded.name}: {loaded.architecture} cannot be served exactly: {reason}")
