"""A bench whose process is ended goes on without the arm that was in hand.

Each of them forks in a process of its own, as the command does: a child of one that has threads may
wait for ever for what a thread held when it was forked.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import pytest

from common.errors import UsageError
from edge_client import guarded as module
from edge_client.guarded import RUNNING, guarded

Run = Callable[[Path, Mapping[str, str], bool], int]
"""What a child does: the run's directory, the arms that have ended, and whether to resume."""


def forked(run: Run, directory: Path, *, resume: bool = False) -> int:
    """The exit code of a guarded run, from a process without threads."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(guarded, partial(run, directory), directory, resume=resume).result()


def dies(arms: list[str], how: int, directory: Path, ended: Mapping[str, str], resume: bool) -> int:
    """Ends itself in the arm that is next, and leaves what it was given."""
    faulthandler.disable()  # an abort is meant here
    with (directory / "log").open("a") as file:
        file.write(json.dumps([dict(ended), resume]) + "\n")
    for arm in arms:
        if arm not in ended:
            (directory / RUNNING).write_text(arm)
            os.kill(os.getpid(), how)
    return 5


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGABRT])
def test_each_arm_that_ends_the_process_is_left_out_of_the_next(tmp_path: Path, how: int) -> None:
    assert forked(partial(dies, ["edge", "speculative"], how), tmp_path) == 5
    tries = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [(sorted(ended), resume) for ended, resume in tries] == [
        ([], False),
        (["edge"], True),
        (["edge", "speculative"], True),
    ]
    name = signal.Signals(how).name
    assert tries[1][0]["edge"].startswith(f"the process was ended by {name} during this")


def killed(_: Path, __: Mapping[str, str], ___: bool) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_what_is_no_arm_s_fault_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ended by SIGKILL outside a generation.*memory_gb"):
        forked(killed, tmp_path)


def test_an_arm_that_is_left_out_and_still_there_ends_it(tmp_path: Path) -> None:
    def spawn(*_: object) -> int:
        (tmp_path / RUNNING).write_text("edge")
        return -signal.SIGKILL

    with pytest.raises(UsageError, match="outside a generation"):
        guarded(lambda _, __: 0, tmp_path, resume=False, spawn=spawn)


def says_whether_to_resume(_: Path, __: Mapping[str, str], resume: bool) -> int:
    return 3 + resume


def test_a_bench_that_ends_by_itself_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / RUNNING).write_text("of another run")
    assert forked(says_whether_to_resume, tmp_path, resume=True) == 4
    assert not (tmp_path / RUNNING).exists()


def has_its_parent_asked(how: int, _: Path, __: Mapping[str, str], ___: bool) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [how])
    os.kill(os.getppid(), how)
    return int(signal.sigwait([how]))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_what_asks_the_bench_to_end_is_handed_on(tmp_path: Path, how: int) -> None:
    assert forked(partial(has_its_parent_asked, how), tmp_path) == how


def waits_to_be_asked(_: Mapping[str, str], __: bool) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    came = signal.sigtimedwait([signal.SIGTERM], 10)
    return 0 if came is None else came.si_signo


def asked_before_it_forks(directory: Path) -> int:
    fork = os.fork

    def asked_meanwhile() -> int:
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        handler(signal.SIGTERM, None)
        return fork()

    with patch.object(os, "fork", asked_meanwhile):
        return guarded(waits_to_be_asked, directory, resume=False)


def test_what_comes_before_there_is_a_child_is_handed_on(tmp_path: Path) -> None:
    """As when another thread takes it, of a process that has some."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        code = alone.submit(asked_before_it_forks, tmp_path).result()
    # By the time it waits the signal may have ended it, which is as well.
    assert code in (signal.SIGTERM, 128 + signal.SIGTERM)


def ends_as_asked(how: int, directory: Path, _: Mapping[str, str], __: bool) -> int:
    (directory / RUNNING).write_text("edge")
    signal.signal(how, signal.SIG_DFL)
    os.kill(os.getpid(), how)
    return 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_was_asked_to_end_is_not_begun_again(tmp_path: Path, how: int) -> None:
    assert forked(partial(ends_as_asked, how), tmp_path) == 128 + how


def leaves_its_number(directory: Path, _: Mapping[str, str], __: bool) -> int:
    (directory / "pid").write_text(str(os.getpid()))
    return 0


def groups_removed_after(directory: Path) -> list[int]:
    removed: list[int] = []
    with patch.object(module, "remove", removed.append):
        guarded(partial(leaves_its_number, directory), directory, resume=False)
    return removed


def test_the_control_groups_of_the_child_are_removed(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        removed = alone.submit(groups_removed_after, tmp_path).result()
    assert removed == [int((tmp_path / "pid").read_text())]


def test_a_bench_does_not_outlive_whoever_started_it(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal\n"
        "from edge_client.guarded import guarded\n"
        "def run(ended, resume):\n"
        "    print(os.getpid(), flush=True)\n"
        "    signal.pause()\n"
        "guarded(run, pathlib.Path('.'), resume=False)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        try:
            rest, _ = parent.communicate(timeout=20)  # to the end of all that could write there
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        assert rest == ""
