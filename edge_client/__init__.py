"""The edge: drafts tokens with a small model and streams the text a cloud confirms."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_client.drafter import EdgeModel

__all__ = ["EdgeModel"]


def __getattr__(name: str) -> object:
    # Loaded when first used: torch takes seconds, and `--help` needs none of it.
    if name == "EdgeModel":
        from edge_client.drafter import EdgeModel

        return EdgeModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
