"""The cloud: hosts the target model and verifies the drafts of many clients in one batch."""

from __future__ import annotations

from typing import Any

__all__ = ["CloudModel"]


def __getattr__(name: str) -> Any:
    """Loads CloudModel, and torch with it, only when it is asked for."""
    if name == "CloudModel":
        from cloud_server.model import CloudModel

        return CloudModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
