"""One audited forward: every floating tensor the model's path produces, by precision."""

from __future__ import annotations

from dataclasses import dataclass

from common.lm.kv_cache import KVCache
from common.lm.precision import PrecisionReport, audit, dtype_name
from common.lm.runner import LanguageModel, Segment

_PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class PrecisionCheck:
    """Says whether all was in the model's own precision, and what was found."""

    passed: bool
    text: str


def check_precision(model: LanguageModel, policy: PrecisionReport) -> PrecisionCheck:
    """Runs a prompt and a decode step under audit."""
    tokens = [index % model.loaded.vocab_size for index in range(_PROBE_TOKENS)]

    # A graph on a GPU shows nothing of what it does; it serves the model's own cache alone.
    cache = KVCache(model.cache.layers, _PROBE_TOKENS, model.dtype, model.loaded.device)

    def forward() -> None:
        with cache.session() as session:
            model.forward_in(cache, [Segment(session, tokens[:-1], 0, 1)])
            model.forward_in(cache, [Segment(session, tokens[-1:], _PROBE_TOKENS - 1, 1)])

    report = audit(forward)
    offenders = report.offenders(model.dtype)
    passed = not offenders and policy.exact and model.cache.dtype == model.dtype
    lines = [
        f"model            {model.loaded.name}",
        f"stored as        {model.loaded.checkpoint_dtype}",
        f"weights          {dtype_name(model.dtype)}",
        f"keys and values  {dtype_name(model.cache.dtype)}",
        *(f"{name:<16} {value}" for name, value in policy.settings.items()),
        *(f"tensors          {count} x {dtype}" for dtype, count in report.dtypes.items()),
        *(
            f"OFFENDER         {count} x {dtype_name(dtype)} from {operation}"
            for operation, dtype, count in offenders
        ),
        f"{'PASSED' if passed else 'FAILED'}: all must be {dtype_name(model.dtype)}",
    ]
    return PrecisionCheck(passed, "\n".join(lines))
