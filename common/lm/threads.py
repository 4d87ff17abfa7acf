"""How many threads torch computes with in this process."""

from __future__ import annotations

import torch

from common.lm.loading import LoadedModel

SMALL_MODEL = 32_000_000
"""Parameters up to which one thread computes: so little work is done before a second is awake.

A 0.9M draft took 1.0 ms a token with one thread; with two it took 1.1 ms on an idle
2-core machine and 30 ms on a busy one, where each operation waits for the slower core,
and where waiting threads keep cores from the other process of the pair. With both
processes on an idle 2-core machine, a 5.8M target wrote 244 tokens/s alone and 201 with
a draft when it had one thread, 225 and 179 when it had two.
"""


def set_threads(asked: int | None, loaded: LoadedModel) -> None:
    """Sets as many threads as were asked for; None: one for a small model, else torch's choice."""
    if asked is None and loaded.parameters <= SMALL_MODEL:
        asked = 1
    if asked is not None:
        torch.set_num_threads(asked)
