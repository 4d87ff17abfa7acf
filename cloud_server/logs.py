"""Logs that hold no prompt: of an error its kind and its place, not what it says."""

from __future__ import annotations

import logging
import sys
import traceback
from types import TracebackType
from typing import TypeAlias

_Raised: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


class DiscreetFormatter(logging.Formatter):
    """Shows where an exception was raised and by what, without its message.

    A message may quote what a client sent, and other people read logs.
    """

    def formatException(self, ei: _Raised) -> str:
        """Lists the frames of an exception and of what caused it, the first cause first."""
        lines: list[str] = []
        error = ei[1]
        while error is not None:
            frames = traceback.format_tb(error.__traceback__)
            lines.insert(0, f"{''.join(frames)}{type(error).__name__} (its message is left out)")
            error = error.__cause__ or error.__context__
        return "\n".join(lines)


def log_to_stderr() -> None:
    """Sends what is logged to stderr, a line a record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(DiscreetFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
