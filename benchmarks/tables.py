"""What the pages in docs/results are made of: tables, and where the numbers were taken."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from common.config import Config
from edge_client.experiments.environment import describe_environment


class Table:
    """Is a Markdown table; `str` writes it."""

    def __init__(self, *headings: str) -> None:
        self._rows = [headings, ("---",) * len(headings)]

    def add(self, *cells: str) -> None:
        """Appends a row."""
        self._rows.append(cells)

    def __str__(self) -> str:
        return "\n".join(f"| {' | '.join(row)} |" for row in self._rows)


def environment() -> str:
    """Returns a paragraph on machine, versions and commit."""
    found: dict[str, Any] = describe_environment(
        config=Config(), precision={}, draft=None, server=None
    )
    edge, git = found["edge"], found["git"]
    has_gpu = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if has_gpu else "No GPU: those numbers are not measured"
    commit = "" if git is None else f", commit {git['commit'][:12]}"
    return (
        f"Taken on {edge['cpu_model']}, {edge['cores']['granted']} cores, "
        f"{torch.get_num_threads()} torch threads, {platform.system()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {version('transformers')}{commit}. {gpu}."
    )
