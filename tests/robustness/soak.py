"""Clients come and go, and memory stays: `make soak`, or `python -m tests.robustness.soak`."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.types import GenerateMode
from tests.integration.processes import Server, serving
from tests.models import save_pair
from tests.robustness.clients import (
    LeftError,
    NoRoomError,
    Stub,
    by_batches,
    by_generate,
    by_session,
    connected,
)
from tests.robustness.known import Known, openings, references
from tests.robustness.watching import last_faults, resident_bytes

FLAGS = ("--set", "cloud.idle_session_seconds=3")
WARM_UP = 0.2
"""Share of the time after which memory counts."""
GROWTH = 0.03
"""By how much resident memory may grow from there to the end."""
LEAVERS = 0.3
"""Share of the clients that go away in the middle."""
WAYS = ("session", "session", "session", "batches", "optimized", "stock")
"""How a client has its text made."""


@dataclass
class Report:
    """Is what a soak has seen; `faults` must be empty."""

    outcomes: Counter[str] = field(default_factory=Counter)
    resident: list[int] = field(default_factory=list)  # bytes, one a second
    faults: list[str] = field(default_factory=list)

    @property
    def growth(self) -> float:
        return self.resident[-1] / self.resident[int(len(self.resident) * WARM_UP)] - 1

    def __str__(self) -> str:
        curve = self.resident
        marks = {share: curve[(len(curve) - 1) * share // 100] for share in range(0, 101, 10)}
        rows: list[tuple[str, object]] = [
            *sorted(self.outcomes.items()),
            ("seconds", len(curve) - 1),
            *((f"resident MB at {at} %", f"{size / 1e6:.1f}") for at, size in marks.items()),
            ("growth after warm-up", f"{self.growth:+.2%}"),
            ("faults", len(self.faults)),
        ]
        return "\n".join(f"{name:<45}{value:>12}" for name, value in rows)


def soak(
    server: Server, seconds: int, clients: int, seed: int, progress: tqdm[Any] | None = None
) -> Report:
    """Has `clients` at a time come and go for so many seconds."""
    report = Report()
    texts = references(server.address, openings(16, 60))
    report.resident.append(resident_bytes(server))
    crowd = _Crowd(server, texts, report)
    chances = [random.Random(f"{seed}/{client}") for client in range(clients)]
    asyncio.run(crowd.soak(seconds, chances, progress))
    report.faults += last_faults(server)
    for way in WAYS:
        if not report.outcomes[f"right by {way}"]:
            report.faults.append(f"no text was made by {way}")
    if report.growth > GROWTH:
        report.faults.append(f"resident memory grew {report.growth:.1%}, over {GROWTH:.0%}")
    return report


@dataclass
class _Crowd:
    """Is the clients of one soak."""

    server: Server
    texts: list[Known]
    report: Report
    over: bool = False

    async def soak(
        self, seconds: int, chances: list[random.Random], progress: tqdm[Any] | None
    ) -> None:
        """Has as many clients at a time as there are chances, and looks at memory each second."""
        coming = [asyncio.ensure_future(self._come_and_go(chance)) for chance in chances]
        for _ in range(seconds):
            await asyncio.sleep(1)
            if self.report.faults or self.server.process.poll() is not None:
                break
            self.report.resident.append(resident_bytes(self.server))
            if progress is not None:
                progress.update()
        self.over = True
        await asyncio.gather(*coming)

    async def _come_and_go(self, chance: random.Random) -> None:
        """Is one client after the other, each with a connection of its own."""
        outcomes = self.report.outcomes
        while not self.over:
            known = chance.choice(self.texts)
            way = chance.choice(WAYS)
            answers = chance.randint(0, 20) if chance.random() < LEAVERS else None
            try:
                async with connected(self.server.address) as stub:
                    tokens = await _made(stub, way, known, chance, answers)
            except LeftError:
                outcomes["left in the middle"] += 1
            except NoRoomError:
                outcomes["turned away for want of room"] += 1
                await asyncio.sleep(0.02)
            except Exception as error:  # a client's failure is a finding, not the soak's end
                self.report.faults.append(f"{way}: {error!r}")
                return
            else:
                outcomes[f"right by {way}"] += tuple(tokens) == known.tokens
                if tuple(tokens) != known.tokens:
                    self.report.faults.append(f"{way}: {tokens} is not {known}")


async def _made(
    stub: Stub, way: str, known: Known, chance: random.Random, answers: int | None
) -> list[int]:
    """Has a text made in one way; the client leaves after so many answers."""
    received = 0

    def leave() -> bool:
        nonlocal received
        received += 1
        return answers is not None and received > answers

    match way:
        case "session":
            return await by_session(stub, known, chance, leave)
        case "batches":
            return await by_batches(stub, known, chance, leave)
        case "optimized":
            return await by_generate(stub, known, GenerateMode.OPTIMIZED, leave)
        case _:
            return await by_generate(stub, known, GenerateMode.STOCK, leave)


def main() -> int:
    """Soaks a server; exits 1 when anything happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    seconds = arguments.seconds
    with tempfile.TemporaryDirectory() as directory, tqdm(total=seconds, unit=" s") as progress:
        target = save_pair(Path(directory)).target
        with serving(target, *FLAGS) as server:
            report = soak(server, seconds, arguments.clients, arguments.seed, progress)
    print(report)
    print(*report.faults, sep="\n\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
