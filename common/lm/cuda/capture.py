"""What a function does on a GPU, recorded once and then launched again without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Takes what computes a tensor from tensors that stay where they are; returns what does so again.

The tensor returned is the same each time, and what it holds lasts until the next call.
"""

_WARM_UPS = 2
"""Runs before a capture: kernels are compiled and libraries make their workspaces meanwhile."""


class CudaGraphs:
    """Captures CUDA graphs that share one pool of memory, as they never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Captures what `run` launches; raises RuntimeError where it waits for the device."""
        with torch.cuda.device(self._device):
            stream: Any = torch.cuda.Stream  # without types
            beside = stream(self._device)
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = run()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def capture_on(device: torch.device) -> Capture | None:
    """Returns how graphs are captured on a device, None where they are not."""
    return CudaGraphs(device) if device.type == "cuda" else None
