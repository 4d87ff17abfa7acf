"""What the commands say on stderr."""

from __future__ import annotations

import sys

from edge_client.rule import Rule

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def note(message: str) -> None:
    """Writes a line for the user."""
    print(message, file=sys.stderr, flush=True)


def warn(message: str) -> None:
    """Writes a line that should be seen: red on a terminal."""
    note(f"{_RED}{message}{_PLAIN}" if sys.stderr.isatty() else message)


def warn_of_dtypes(*dtypes: str | None) -> None:
    """Says so when a model runs in another precision than float32; None is no model."""
    for dtype in sorted({dtype for dtype in dtypes if dtype not in (None, "float32")} - {None}):
        warn(f"NOT FLOAT32: this runs in {dtype}, as edge.dtype or cloud.dtype asked for")


def warn_of_losses(rule: Rule) -> None:
    """Says what makes the speculative text another than the target's own."""
    for loss in rule.losses:
        warn(f"LOSSY: speculative {loss}")
