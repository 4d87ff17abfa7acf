"""How long a sequence a model serves exactly."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from common.errors import ModelError

_LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies change once the running sequence outgrows a limit."""


def context_limit(config: PreTrainedConfig, name: str) -> tuple[int, str]:
    """Returns the context length in tokens, and why it is shorter than the configured one, or "".

    Where rotary frequencies depend on the running length, keys already in the cache would have to
    be computed again once a sequence passes the limit, and one batch would hold sequences on both
    sides of it. Below the limit they are constant, so that is where the context ends.
    """
    text = config.get_text_config()
    configured = getattr(text, "max_position_embeddings", None)
    if not isinstance(configured, int) or configured < 1:
        raise ModelError(
            f"{name}: config.json of {config.model_type} names no max_position_embeddings; "
            "add it, so that the context can be bounded"
        )
    limit, note = configured, ""
    for rope in _rope_parameters(text):
        kind = rope.get("rope_type", rope.get("type"))
        original = rope.get("original_max_position_embeddings") or getattr(
            text, "original_max_position_embeddings", None
        )
        if kind in _LENGTH_DEPENDENT and isinstance(original, int) and original < limit:
            limit = original
            note = (
                f"{original} of {configured}: {kind} rotary frequencies change with the running "
                "length beyond it"
            )
    return limit, note


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in given.values() if isinstance(value, dict)]
    return nested or [given]
