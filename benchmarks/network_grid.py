"""The grid of network.py: drafts and links of every kind, fixed paces and the adaptive one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

from tqdm import tqdm

from benchmarks.network_client import PROMPT, SAMPLING, Client, adaptive, client
from benchmarks.pairs import NARROW, choices, noise_of, widened, width_of
from benchmarks.tables import Table
from edge_client.adaptive import MOST_AHEAD
from edge_client.draft_length import FixedPace, Pace
from edge_client.drafter import Drafter, EdgeModel
from edge_client.expectation import Situation, tokens_a_second

DRAFT_MS = (0.35, 10.0, 60.0)
TARGET_MS = 8.0
ACCEPTANCES = (0.6, 0.8, 0.9)
LENGTHS = (0, 1, 2, 4, 8, 16)
WORTH_TRYING = 0.75
"""Settings that the closed form puts below so much of its best are not run."""
TAUGHT = 3
"""Texts that a pace that adapts has written before: a long draft makes a text of a few rounds."""
TURNS = 4
"""Texts that a figure is the mean of, each written in turns by all that are held against it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Is a fixed pace."""

    length: int
    ahead: int

    def pace(self) -> Pace:
        """Makes it."""
        return FixedPace(self.length, 64, self.ahead)

    def __str__(self) -> str:
        return f"γ {self.length}" + (", sent ahead" if self.ahead else "")


SETTINGS = [Setting(length, ahead) for ahead in (0, MOST_AHEAD) for length in LENGTHS]


@dataclass(frozen=True, slots=True)
class Cell:
    """Is one link under one pair: the best fixed pace of each kind, and what came in turns.

    Found by a sweep over one text, they are timed again over others: the best of many over one
    text is also the one whose drafts happen to end well in it. Tokens a second.
    """

    draft_ms: float
    rtt_ms: float
    acceptance: float
    waiting: Setting
    sending: Setting
    waited: list[float]
    sent: list[float]
    adaptive: list[float]

    @property
    def hidden(self) -> float:
        """What sending ahead gives over stop and wait."""
        return fmean(self.sent) / fmean(self.waited)

    @property
    def followed(self) -> float:
        """What the adaptive pace reaches of the best fixed one."""
        return fmean(self.adaptive) / max(fmean(self.sent), fmean(self.waited))


def made_pairs(scratch: Path, target: Path) -> dict[tuple[float, float], Path]:
    """Makes a draft model for each draft step and acceptance, all for one target."""
    model = EdgeModel(str(target), threads=1)
    tokens = list(model.loaded.tokenizer(PROMPT)["input_ids"])
    start = len(tokens)
    writer = Drafter(model)
    tokens += writer.draft(tokens, 384, SAMPLING, prompt_length=start).token_ids
    wanted = tokens[start:]
    tried = iter(range(10_000))

    def agreement(noise: float) -> float:
        path = widened(scratch / f"tried-{next(tried)}", NARROW, noise)
        chosen = choices(EdgeModel(str(path), threads=1), tokens, start, SAMPLING)
        return sum(map(int.__eq__, chosen, wanted)) / len(wanted)

    noises = {acceptance: noise_of(acceptance, agreement) for acceptance in ACCEPTANCES}
    return {
        (draft_ms, acceptance): widened(
            scratch / f"draft-{draft_ms}-{acceptance}", width, noises[acceptance]
        )
        for draft_ms in DRAFT_MS
        for width in [width_of(draft_ms, scratch)]
        for acceptance in ACCEPTANCES
    }


def cells(
    pairs: dict[tuple[float, float], Path], server: str, wanted: Sequence[float]
) -> Iterator[Cell]:
    """Measures the grid; a cell's settings follow one another within a minute."""
    places = [(pair, rtt) for pair in pairs for rtt in wanted]
    for (draft_ms, acceptance), rtt_ms in tqdm(places, desc="grid"):
        with client(pairs[draft_ms, acceptance], server, rtt_ms) as made:
            situation = Situation(
                draft_ms / 1e3, rtt_ms / 1e3, TARGET_MS / 1e3, 0.2e-3, [acceptance]
            )
            expected = {
                setting: tokens_a_second(situation, setting.length, setting.ahead)
                for setting in SETTINGS
            }
            waiting, sending = (
                _swept(made, {s: expected[s] for s in SETTINGS if bool(s.ahead) == ahead})
                for ahead in (False, True)
            )
            own = adaptive()
            for _ in range(TAUGHT):
                made.paced(own)
            paces = (waiting.pace(), sending.pace(), own)
            turns = [
                [made.paced(pace, sampling).tokens_per_s for pace in paces]
                for turn in range(TURNS)
                for sampling in [replace(SAMPLING, seed=SAMPLING.seed + 1 + turn)]
            ]
            waited, sent, followed = map(list, zip(*turns, strict=True))
            yield Cell(draft_ms, rtt_ms, acceptance, waiting, sending, waited, sent, followed)


def _swept(made: Client, expected: dict[Setting, float]) -> Setting:
    """Returns the fastest of the settings that may be, by one text each."""
    worth = WORTH_TRYING * max(expected.values())
    rates = {s: made.paced(s.pace()).tokens_per_s for s in expected if expected[s] >= worth}
    return max(rates, key=lambda setting: rates[setting])


def grid_table(measured: Sequence[Cell]) -> Table:
    """Shows the best of each kind and the adaptive pace beside it."""
    table = Table(
        "draft step", "RTT", "acceptance", "best stop-and-wait", "best sent ahead",
        "sent ahead ÷ stop-and-wait", "adaptive", "adaptive ÷ best fixed",
    )  # fmt: skip
    for cell in measured:
        table.add(
            f"{cell.draft_ms:g} ms", f"{cell.rtt_ms} ms", f"{cell.acceptance}",
            f"{fmean(cell.waited):.1f} ({cell.waiting})",
            f"{fmean(cell.sent):.1f} (γ {cell.sending.length})",
            f"{cell.hidden:.2f}", f"{fmean(cell.adaptive):.1f}", f"{cell.followed:.3f}",
        )  # fmt: skip
    return table


def verdicts(measured: Sequence[Cell]) -> str:
    """States the two targets that the grid is for."""
    ratios = [cell.followed for cell in measured]
    short = sum(ratio < 0.95 for ratio in ratios)
    hidden = [
        cell.hidden
        for cell in measured
        if cell.draft_ms == 10 and cell.rtt_ms in (50, 100) and cell.acceptance >= 0.8
    ]
    lines = [
        f"- Adaptive against the best fixed setting: {min(ratios):.3f} at worst, "
        f"{median(ratios):.3f} in the middle; below 0.95 in {short} of {len(ratios)} cells.",
    ]
    if hidden:
        lines.append(
            "- Sent ahead against the best stop-and-wait, draft step 10 ms, acceptance ≥ 0.8, RTT "
            f"50 and 100 ms: {min(hidden):.2f} to {max(hidden):.2f} (wanted: 1.25)."
        )
    return "\n".join(lines)
