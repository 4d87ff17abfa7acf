"""A bench whose process is ended goes on without the arm that was in hand."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from common.errors import UsageError
from edge_client import guarded as module
from edge_client.guarded import RUNNING, guarded


def dying(directory: Path, arms: list[str], how: int) -> list[tuple[dict[str, str], bool]]:
    """Runs real children, each of which ends itself in the arm that is next; says what each had."""
    log = directory / "log"
    log.touch()

    def run(ended: Mapping[str, str], resume: bool) -> int:
        faulthandler.disable()  # an abort is meant here
        with log.open("a") as file:
            file.write(json.dumps([dict(ended), resume]) + "\n")
        for arm in arms:
            if arm not in ended:
                (directory / RUNNING).write_text(arm)
                os.kill(os.getpid(), how)
        return 5

    assert guarded(run, directory, resume=False) == 5
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGABRT])
def test_each_arm_that_ends_the_process_is_left_out_of_the_next(tmp_path: Path, how: int) -> None:
    tries = dying(tmp_path, ["edge", "speculative"], how)
    assert [(sorted(ended), resume) for ended, resume in tries] == [
        ([], False),
        (["edge"], True),
        (["edge", "speculative"], True),
    ]
    name = signal.Signals(how).name
    assert tries[1][0]["edge"].startswith(f"the process was ended by {name} during this")


def test_what_is_no_arm_s_fault_is_said_once(tmp_path: Path) -> None:
    def run(_: Mapping[str, str], __: bool) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with pytest.raises(UsageError, match=r"ended by SIGKILL outside a generation.*memory_gb"):
        guarded(run, tmp_path, resume=False)


def test_an_arm_that_is_left_out_and_still_there_ends_it(tmp_path: Path) -> None:
    def spawn(*_: object) -> int:
        (tmp_path / RUNNING).write_text("edge")
        return -signal.SIGKILL

    with pytest.raises(UsageError, match="outside a generation"):
        guarded(lambda _, __: 0, tmp_path, resume=False, spawn=spawn)


def test_a_bench_that_ends_by_itself_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / RUNNING).write_text("of another run")
    assert guarded(lambda ended, resume: 3 + resume, tmp_path, resume=True) == 4
    assert not (tmp_path / RUNNING).exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_what_asks_the_bench_to_end_is_handed_on(tmp_path: Path, how: int) -> None:
    def run(_: Mapping[str, str], __: bool) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [how])
        os.kill(os.getppid(), how)
        return int(signal.sigwait([how]))

    assert guarded(run, tmp_path, resume=False) == how


def test_what_comes_before_there_is_a_child_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another thread takes it, of a process that has some."""
    fork = os.fork

    def asked_meanwhile() -> int:
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler)
        handler(signal.SIGTERM, None)
        return fork()

    monkeypatch.setattr(os, "fork", asked_meanwhile)

    def run(_: Mapping[str, str], __: bool) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        came = signal.sigtimedwait([signal.SIGTERM], 10)
        return 0 if came is None else came.si_signo

    # By the time it waits the signal may have ended it, which is as well.
    assert guarded(run, tmp_path, resume=False) in (signal.SIGTERM, 128 + signal.SIGTERM)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_was_asked_to_end_is_not_begun_again(tmp_path: Path, how: int) -> None:
    def run(_: Mapping[str, str], __: bool) -> int:
        (tmp_path / RUNNING).write_text("edge")
        signal.signal(how, signal.SIG_DFL)
        os.kill(os.getpid(), how)
        return 0

    assert guarded(run, tmp_path, resume=False) == 128 + how


def test_the_control_groups_of_the_child_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[int] = []
    monkeypatch.setattr(module, "remove", removed.append)

    def run(_: Mapping[str, str], __: bool) -> int:
        (tmp_path / "pid").write_text(str(os.getpid()))
        return 0

    guarded(run, tmp_path, resume=False)
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
