"""Models that bring Python code of their own, which runs only where that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

from common.errors import ModelError


def names_code(directory: Path, file: str = "config.json") -> bool:
    """Says whether a configuration file of a model names classes in files beside it."""
    try:
        content = json.loads((directory / file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and bool(content.get("auto_map"))


def untrusted(directory: Path) -> ModelError:
    """Returns the refusal of a model whose code is not to be run."""
    return ModelError(
        f"{directory} brings Python code of its own (auto_map), and nothing here runs it unasked: "
        "read the code, then set cloud.trust_remote_code=true or edge.trust_remote_code=true at "
        "the end that loads it"
    )
