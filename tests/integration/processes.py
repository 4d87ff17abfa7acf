"""Two real processes: the server as a user starts it, and the edge as a user runs it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_client.cli import main

ANY_PORT = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
AS_IT_IS = ["--set", "engine.compile=off"]
"""A graph takes longer to compile than most tests take; those that want one say so after this."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}


@dataclass
class Server:
    """Is a running `outrider-cloud serve`."""

    process: subprocess.Popen[str]
    address: str
    metrics: str
    log: list[str] = field(default_factory=list)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(target: Path, *flags: str, within: Sequence[str] = ()) -> Iterator[Server]:
    """Starts a server on free ports, waits for its READY line, and drains it in the end.

    `within` are words before the command, which runs it somewhere else.
    """
    command = [*within, sys.executable, "-m", "cloud_server", "serve", "--model", str(target)]
    process = subprocess.Popen(
        [*command, *ANY_PORT, *AS_IT_IS, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    log: list[str] = []
    reader = threading.Thread(target=lambda lines: log.extend(lines), args=(process.stderr,))
    reader.start()
    try:
        ready = re.fullmatch(r"READY grpc=(\S+) metrics=(\S+)\n", process.stdout.readline())
        assert ready, "".join(log)
        yield Server(process, ready[1], ready[2], log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        reader.join()
        process.stdout.close()
        process.stderr.close()


def _edge_command(arguments: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", "edge_client", *arguments[:1]]
    return [*command, *(AS_IT_IS if arguments[0] == "bench" else ()), *arguments[1:]]


Done = subprocess.CompletedProcess[str]


def edge(*arguments: str, check: int | None = 0) -> Done:
    """Runs `outrider-edge`; fails unless it exits with `check`, and never lets a traceback by.

    The edge's process is this one: to import what it needs takes longer than most of what is
    tested. For edges side by side, and what one does to its own process: `edge_process`.
    """
    _, _, _, *rest = command = _edge_command(arguments)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(rest)
        except SystemExit as refused:  # by argparse
            code = int(refused.code or 0)
    return _checked(Done(command, code, out.getvalue(), err.getvalue()), check)


def edge_process(*arguments: str, check: int | None = 0) -> Done:
    """Does what `edge` does, in a process of its own."""
    done = subprocess.run(
        _edge_command(arguments),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=110,
        check=False,
    )
    return _checked(done, check)


def _checked(done: Done, check: int | None) -> Done:
    assert check is None or done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


@contextmanager
def edge_running(*arguments: str, within: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Starts `outrider-edge`, `within` as for `serving`; makes sure that it is gone in the end."""
    with subprocess.Popen(
        [*within, *_edge_command(arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_records(out: Path, count: int, bench: subprocess.Popen[str]) -> None:
    """Waits until a bench has written so many records; fails when it ends before."""
    records = out / "records.jsonl"
    while not records.exists() or records.read_text().count("\n") < count:
        with suppress(subprocess.TimeoutExpired):
            bench.wait(0.05)
            raise AssertionError(bench.communicate()[1])


def generate(
    address: str, draft: Path, prompt: str, *flags: str, run: Callable[..., Done] = edge
) -> dict[str, Any]:
    """Runs `outrider-edge generate --json` and returns its object."""
    arguments = ["--server", address, "--draft", str(draft), "--prompt", prompt, "--json"]
    answer: dict[str, Any] = json.loads(run("generate", *arguments, *flags).stdout)
    return answer
