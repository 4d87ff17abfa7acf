"""Numbers of the host to a device, without waiting for what the device is doing.

A copy from ordinary memory waits; one from pinned memory does not, and torch keeps that memory
until the copy is done.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pinned(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Holds integers `[n]` on the host, where a copy to `device` need not wait."""
    return torch.tensor(numbers, dtype=torch.long, pin_memory=device.type == "cuda")


def staged(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Copies integers `[n]` to `device` behind what it has to do."""
    return pinned(numbers, device).to(device, non_blocking=True)
