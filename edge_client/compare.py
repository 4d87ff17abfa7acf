"""The command `compare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from common.errors import UsageError
from edge_client.experiments.side_by_side import read_run, side_by_side
from edge_client.experiments.side_by_side_table import render


def compare(directories: Sequence[Path], *, as_json: bool) -> int:
    """Prints the runs side by side; raises UsageError for fewer than two, or one that is none."""
    if len(directories) < 2:
        raise UsageError(f"compare: {len(directories)} run named; name at least two")
    compared = side_by_side([read_run(directory) for directory in directories])
    print(json.dumps(compared, indent=2, allow_nan=False) if as_json else render(compared))
    return 0
