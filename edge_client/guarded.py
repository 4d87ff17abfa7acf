"""A bench under a memory limit runs in a child: what ends that process ends an arm, not the run.

An allocation that is refused is an error that the bench itself tells. What cannot be told there,
the kernel's SIGKILL or a library that aborts, ends the child; the run is then taken up again
without the arm that was in hand.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from common.errors import UsageError
from common.machine.cgroups import remove

RUNNING = "running"
"""The file of a run's directory that names the arm in hand."""

Run = Callable[[Mapping[str, str], bool], int]
"""Runs the bench in this process: the arms that have ended and why, and whether to resume."""

SHELL_SIGNAL = 128
"""What shells add to the number of the signal that ended a process."""

_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
_ASKED = (signal.SIGINT, signal.SIGTERM)  # somebody wants the bench to end; memory has no part


def guarded(
    run: Run, directory: Path, *, resume: bool, spawn: Callable[..., int] | None = None
) -> int:
    """Runs the bench, again without an arm where one ended its process; returns its exit code.

    `spawn` runs a call in a child and returns its exit code, or minus the signal that ended it.
    Raises UsageError when the process ends and no arm is to blame.
    """
    ended: dict[str, str] = {}
    with suppress(OSError):  # what is wrong with the directory is said by the run
        (directory / RUNNING).unlink()
    while True:
        code = (spawn or _in_child)(run, dict(ended), resume or bool(ended))
        if code >= 0:
            return code
        if -code in _ASKED:
            return SHELL_SIGNAL - code
        name = signal.Signals(-code).name
        arm = _arm_in_hand(directory)
        if arm is None or arm in ended:
            raise UsageError(
                f"the bench was ended by {name} outside a generation, as under a memory limit that "
                f"is too small; raise limits.edge.memory_gb"
            )
        ended[arm] = (
            f"the process was ended by {name} during this generation, as happens beyond "
            f"limits.edge.memory_gb; raise it, or ask for less"
        )


def _arm_in_hand(directory: Path) -> str | None:
    try:
        return (directory / RUNNING).read_text(encoding="utf-8") or None
    except OSError:
        return None


def _in_child(run: Run, ended: Mapping[str, str], resume: bool) -> int:
    """Forks, before torch or any thread is there, and hands on what asks this process to end.

    The child has a process group of its own: Ctrl-C, which reaches a whole group, would come to
    it twice.
    """
    parent = os.getpid()
    child = 0
    early: list[int] = []  # what came before there was a child

    def hand_on(number: int, _: FrameType | None) -> None:
        if child:
            os.kill(child, number)
        else:
            early.append(number)

    before = {number: signal.signal(number, hand_on) for number in _ASKED}
    signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED)  # of this thread; others may take them
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _end_with(parent)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKED)
        os._exit(_call(run, ended, resume))
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKED)
        for came in early:
            os.kill(child, came)
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        remove(child)
    return os.waitstatus_to_exitcode(status)


def _call(run: Run, ended: Mapping[str, str], resume: bool) -> int:
    try:
        return run(ended, resume)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _end_with(parent: int) -> None:
    """Has the kernel end this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
