"""Fuzzes a real server over the wire: `make fuzz`, or `python -m tests.robustness.fuzz`."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tqdm import tqdm

from common.types import GenerateMode
from tests.integration.processes import Server, serving
from tests.models import save_pair
from tests.robustness.clients import NoRoomError, by_generate, by_session, connected
from tests.robustness.known import Known, openings, references
from tests.robustness.playing import Player
from tests.robustness.sequences import Sequence, sequences
from tests.robustness.tally import Tally
from tests.robustness.watching import last_faults, resident_bytes

FLAGS = (
    *("--set", "cloud.max_sessions=160", "--set", "cloud.cache_tokens=24576"),
    *("--set", "cloud.idle_session_seconds=3"),
)
"""Limits that floods reach, and unary sessions that are soon forgotten."""
BATCH = 32
"""Sequences of one example; they play side by side, and beside those of the next."""
WARM_UP = 0.2
"""Share of the sequences after which memory counts."""
GROWTH = 0.03
"""By how much resident memory may grow from there to the end."""
DEMANDED = (
    "token beyond the vocabulary",
    "huge position",
    "negative position",
    "contradictory epoch",
    "last epoch",
    "absurd sampling",
    "NaN or infinity",
    "empty draft",
    "sent ahead",
    "run-ahead",
    "past the context's end",
    "flood of opens",
    "half-open stream",
    "wrong bytes",
    "larger than a message may be",
    "slow reader",
    "slow writer",
)
"""Labels without which a run has not tried what it is for."""
MORE = 20
"""How often a tenth more is played while one of them lacks: rare ones come in clusters."""
FULL = 2**31
ENOUGH_FAULTS = 20


@dataclass
class Report:
    """Is what a run has found; `faults` must be empty."""

    tally: Tally = field(default_factory=Tally)
    witnessed: int = 0
    turned_away: int = 0
    warm_bytes: int = 0
    end_bytes: int = 0

    @property
    def growth(self) -> float:
        return self.end_bytes / self.warm_bytes - 1 if self.warm_bytes else 0.0

    def __str__(self) -> str:
        tally = self.tally
        rows = [
            ("sequences", tally.sequences),
            ("messages", tally.messages),
            ("texts of witnesses, all right", self.witnessed),
            ("witnesses turned away for want of room", self.turned_away),
            *sorted(tally.statuses.items()),
            *sorted(tally.outcomes.items()),
            *((f"with {label}", count) for label, count in sorted(tally.labels.items())),
            ("resident MB after warm-up", round(self.warm_bytes / 1e6, 1)),
            ("resident MB at the end", round(self.end_bytes / 1e6, 1)),
            ("growth", f"{self.growth:+.2%}"),
            ("faults", len(tally.faults)),
        ]
        return "\n".join(f"{name:<45}{value:>12}" for name, value in rows)


def fuzz(server: Server, total: int, number: int, progress: tqdm[Any] | None = None) -> Report:
    """Plays `total` sequences drawn from seed `number`, while witnesses have their texts made.

    More are drawn, of the seeds that follow, until each demanded label was there.
    """
    report = Report()
    tally = report.tally
    full = references(server.address, openings(8, FULL))
    witnessed = references(server.address, openings(4, 60))
    with asyncio.Runner() as runner:
        player = runner.run(_player(server, tally))
        witnesses = [
            runner.get_loop().create_task(_witness(server.address, known, report))
            for known in witnessed
        ]

        def batch(drawn: list[Sequence]) -> None:
            if len(tally.faults) >= ENOUGH_FAULTS:
                return
            runner.run(player.play(drawn))
            if server.process.poll() is not None:
                tally.faults += [f"the server is gone after {drawn}"] * ENOUGH_FAULTS
            if not report.warm_bytes and tally.sequences >= total * WARM_UP:
                report.warm_bytes = resident_bytes(server)
            if progress is not None:
                progress.update(len(drawn))

        _draw_batches(batch, full, total, number)
        for more in range(1, MORE + 1):
            if not tally.untried(DEMANDED):
                break
            _draw_batches(batch, full, total // 10, number + more)
        runner.run(player.close())
        for witness in witnesses:
            witness.cancel()
        ends = runner.run(_ends(witnesses))
        tally.faults += [
            f"a witness: {end!r}" for end in ends if not isinstance(end, asyncio.CancelledError)
        ]
    tally.faults += last_faults(server)
    report.end_bytes = resident_bytes(server)
    tally.faults += [f"never tried: {label}" for label in tally.untried(DEMANDED)]
    return report


def _draw_batches(
    batch: Callable[[list[Sequence]], None], texts: list[Known], total: int, number: int
) -> None:
    """Has `total` sequences or a few more played, those of seed `number`."""

    @seed(number)
    @settings(
        max_examples=-(-total // BATCH),
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(sequences(texts), min_size=BATCH, max_size=BATCH))
    def run(drawn: list[Sequence]) -> None:
        batch(drawn)

    run()


async def _player(server: Server, tally: Tally) -> Player:
    return Player(server.address, tally)


async def _ends(tasks: list[asyncio.Task[None]]) -> list[BaseException | None]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def _witness(address: str, known: Known, report: Report) -> None:
    """Has one text made again and again, and compares; ends only by an error."""
    chance = random.Random(len(known.sequence))
    async with connected(address) as stub:
        while True:
            try:
                if chance.random() < 0.7:
                    tokens = await by_session(stub, known, chance)
                else:
                    tokens = await by_generate(stub, known, chance.choice(list(GenerateMode)))
            except NoRoomError:
                report.turned_away += 1
                await asyncio.sleep(0.02)
                continue
            assert tuple(tokens) == known.tokens, f"{tokens} instead of {known}"
            report.witnessed += 1


def main() -> int:
    """Runs the long form; exits 1 when anything happened that must not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    total = arguments.sequences
    with tempfile.TemporaryDirectory() as directory:
        pair = save_pair(Path(directory))
        with (
            serving(pair.target, "--draft-model", str(pair.draft), *FLAGS) as server,
            tqdm(total=total, unit=" sequences") as progress,
        ):
            report = fuzz(server, total, arguments.seed, progress)
    print(report)
    if report.growth > GROWTH:
        report.tally.faults.append(f"resident memory grew {report.growth:.1%}, over {GROWTH:.0%}")
    print(*report.tally.faults[:ENOUGH_FAULTS], sep="\n\n")
    return 1 if report.tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
