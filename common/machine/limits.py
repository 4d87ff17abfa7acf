"""What one end may use, enforced on this process before anything large is loaded.

Control groups where the system permits, and besides: processors by affinity, from which
torch takes its number of threads, and memory by RLIMIT_DATA, so that an allocation fails
with an error that can be told before the kernel ends the process.
"""

from __future__ import annotations

import atexit
import math
import os
import resource
from collections.abc import Callable
from pathlib import Path

from common.config import SideLimits
from common.machine import cgroups

GB = 1024**3
"""A gigabyte of `memory_gb`, in bytes."""
_REFUSALS = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory"),
    *("out of memory", "bad_alloc", "can't start new thread"),
)


def enforce(
    limits: SideLimits,
    *,
    from_the_end: bool = False,
    confine: Callable[[float | None, int | None], list[Path]] = cgroups.confine,
) -> None:
    """Enforces the limits on this process; see granted.py for reading back what holds.

    `from_the_end` takes the last processors instead of the first, so that two ends on one
    machine do not share theirs where there are enough.
    """
    cores = limits.cpu_cores
    memory = None if limits.memory_gb is None else round(limits.memory_gb * GB)
    if cores is None and memory is None:
        return
    if cores is not None and hasattr(os, "sched_setaffinity"):
        available = sorted(os.sched_getaffinity(0))
        count = max(1, min(len(available), math.ceil(cores)))
        chosen = available[-count:] if from_the_end else available[:count]
        os.sched_setaffinity(0, chosen)
    groups = confine(cores, memory)
    if groups:
        atexit.register(cgroups.leave, groups)
    if memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was refused: Python's, C++'s or torch's."""
    if isinstance(error, MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _REFUSALS)
