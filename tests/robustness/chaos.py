"""Has texts made while link and server fail: `make chaos`, `python -m tests.robustness.chaos`."""

from __future__ import annotations

import argparse
import logging
import queue
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.types import OpenSession
from tests.integration.processes import serving
from tests.models import save_pair
from tests.robustness.faulty_relay import FaultyRelay, Plan
from tests.robustness.known import openings, references
from tests.robustness.resuming import generate
from tests.robustness.watching import last_faults, tracebacks

ARMS = ("speculative", "cloud", "cloud_optimized")
TEXTS = 8
TOKENS = 40
THREADS = 4
DEADLINE_S = 60.0
"""Within it a generation must be made, restarts of the server included."""

Generate = Callable[[str, str, OpenSession, float], list[int]]
"""Has one text made: address, arm, opening, deadline in seconds; returns the output's tokens."""


@dataclass
class Report:
    """Is what a run has seen; `faults` must be empty."""

    generations: int = 0
    identical: int = 0
    kills: int = 0
    slowest_s: float = 0.0
    link: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows: list[tuple[str, object]] = [
            ("generations", self.generations),
            ("identical to the undisturbed ones", self.identical),
            ("servers killed", self.kills),
            ("slowest generation, s", round(self.slowest_s, 1)),
            *((f"link: {fault}", count) for fault, count in sorted(self.link.items())),
            ("faults", len(self.faults)),
        ]
        return "\n".join(f"{name:<45}{value:>12}" for name, value in rows)


@dataclass(frozen=True)
class _Done:
    """Is one generation, over."""

    number: int
    seconds: float
    tokens: tuple[int, ...] = ()
    error: str = ""


def chaos(
    target: Path,
    generate: Generate,
    *,
    total: int,
    kill_every: int,
    plan: Plan,
    progress: tqdm[Any] | None = None,
) -> Report:
    """Makes `total` generations through a faulty link, and kills the server after each so many."""
    report = Report()
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[_Done] = queue.SimpleQueue()
    for number in range(total):
        todo.put(number)
    with ExitStack() as stack:
        server = stack.enter_context(serving(target))
        texts = references(server.address, openings(TEXTS, TOKENS))
        relay = stack.enter_context(FaultyRelay(server.address, plan))

        def work() -> None:
            while True:
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                opening = texts[number % TEXTS].opening
                started = time.monotonic()
                arm = ARMS[number % len(ARMS)]
                try:
                    tokens = tuple(generate(relay.address, arm, opening, DEADLINE_S))
                    error = ""
                except Exception as failed:  # whatever it is, it is no text
                    tokens, error = (), repr(failed)
                done.put(_Done(number, time.monotonic() - started, tokens, error))

        for _ in range(THREADS):
            threading.Thread(target=work, daemon=True).start()
        for count in range(1, total + 1):
            try:
                one = done.get(timeout=2 * DEADLINE_S)
            except queue.Empty:
                report.faults.append(f"a generation hangs for {2 * DEADLINE_S} s")
                break
            _judge(report, one, texts[one.number % TEXTS].tokens)
            if progress is not None:
                progress.update()
            if count % kill_every == 0 and count < total:
                server.kill()
                report.kills += 1
                report.faults += tracebacks(server)
                server = stack.enter_context(serving(target, "--listen", server.address))
        relay.calm()
        report.link = relay.counts
        report.faults += last_faults(server)
    return report


def _judge(report: Report, one: _Done, expected: tuple[int, ...]) -> None:
    report.generations += 1
    report.slowest_s = max(report.slowest_s, one.seconds)
    report.identical += one.tokens == expected
    arm = ARMS[one.number % len(ARMS)]
    if one.error:
        report.faults.append(f"generation {one.number} ({arm}) failed: {one.error}")
    elif one.tokens != expected:
        report.faults.append(f"generation {one.number} ({arm}): {one.tokens} is not {expected}")
    if one.seconds > DEADLINE_S:
        report.faults.append(f"generation {one.number} ({arm}) took {one.seconds:.1f} s")


def main() -> int:
    """Runs the long form; exits 1 when anything happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, default=200)
    parser.add_argument("--kill-every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # each loss is told, and there are thousands
    total = arguments.generations
    with tempfile.TemporaryDirectory() as directory, tqdm(total=total) as progress:
        report = chaos(
            save_pair(Path(directory)).target,
            generate,
            total=total,
            kill_every=arguments.kill_every,
            plan=Plan(seed=arguments.seed),
            progress=progress,
        )
    print(report)
    print(*report.faults, sep="\n\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
