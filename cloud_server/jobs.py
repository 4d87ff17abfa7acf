"""What is asked of the engine thread, and what comes back: a job, a failure, a step's report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from cloud_server.acceptance import Check, Judged
from common.errors import InternalError, OutriderError, OverloadedError
from common.machine.limits import is_out_of_memory
from common.types import StepTiming

logger = logging.getLogger(__name__)

Clock = Callable[[], int]
Failed = Callable[[OutriderError], None]

TOO_LATE = "its deadline passed while it waited for the target"


@dataclass(slots=True, eq=False)
class Job:
    """Runs `tokens` of one session through the target and answers a check over the last of them.

    `tokens` is the session's whole sequence, guesses included; the cache's first
    `valid` tokens are known to agree with it and are not run again. `then` gets
    the target's judgement, None where nothing was asked (a prompt), and may
    return the session's next job, which joins the very next step; `failed` gets
    the reason instead. Both are called on the engine thread. From `deadline_ns` on
    nothing of it is run. A job that `fills_room` takes what others leave of a step.
    """

    session: int
    tokens: Sequence[int]
    valid: int
    check: Check | None
    arrived_ns: int
    then: Callable[[Judged | None, StepTiming], Job | None]
    failed: Failed
    deadline_ns: int | None = None
    fills_room: bool = False
    started_ns: int = 0
    computed_ns: int = 0
    busy_ns: int = 0
    forward_passes: int = 0

    @property
    def num_logits(self) -> int:
        """How many of the last tokens need their logits."""
        return 0 if self.check is None else self.check.num_rows

    @property
    def certain(self) -> int:
        """How many of the tokens stand, whatever becomes of the guesses behind them."""
        return len(self.tokens) if self.check is None else len(self.check.context)


@dataclass(frozen=True, slots=True)
class StepReport:
    """Is what one forward was made of, for the metrics."""

    sessions: int
    tokens: int
    computed_ns: int


def as_ours(error: Exception, where: str = "the engine") -> OutriderError:
    """Returns what to tell whoever waited, and logs what is no caller's fault."""
    if isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error):
        logger.error("%s ran out of memory; its sessions fail, the server goes on", where)
        return OverloadedError(
            f"{where} ran out of memory: {error}; retry later, with fewer tokens"
        )
    if not isinstance(error, OutriderError) or isinstance(error, InternalError):
        logger.error("%s failed; its sessions fail, the server goes on", where, exc_info=error)
    if isinstance(error, OutriderError):
        return error
    return InternalError(f"{where} failed: {type(error).__name__}: {error}")
