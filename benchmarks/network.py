"""Whether the network is hidden where it can be: every way of pacing drafts, over every link.

    python -m benchmarks.network --out docs/results/network.md

One server and one client on this machine, one torch thread each, and `outrider-link` between them.
Times are only comparable within this page; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tqdm import tqdm

from benchmarks.link import relayed
from benchmarks.network_charts import chart
from benchmarks.pairs import BASE, NARROW, choices, noise_of, step_ms, widened, width_of
from benchmarks.tables import Table, environment
from common.config import NetworkSection
from common.types import SamplingParams, StopParams
from edge_client.adaptive import ADAPTIVE_LENGTHS, MOST_AHEAD, AdaptivePace
from edge_client.arms import Arm, Drafting, GenerationRequest, build_arms
from edge_client.draft_length import FixedPace, Pace
from edge_client.drafter import Drafter, EdgeModel
from edge_client.expectation import Situation, tokens_a_second
from edge_client.resume import ResilientCloud
from edge_client.transport import CloudConnection
from tests.integration.processes import serving

DEMO = BASE.parent
DRAFT_MS = (0.35, 10.0, 60.0)
TARGET_MS = 8.0
ROUND_TRIPS_MS = (0, 20, 50, 100, 200)
ACCEPTANCES = (0.6, 0.8, 0.9)
LENGTHS = (0, 1, 2, 4, 8, 16)
WORTH_TRYING = 0.75
"""Settings that the closed form puts below so much of its best are not run."""
SAMPLING = SamplingParams(temperature=1.0, seed=20261125)
TOKENS = 64
PROMPT = "Once upon a time there was a small boat that wanted to see the sea."
MOST_ALONE = 64
RUN_AHEAD = f"adaptive, run-ahead {MOST_ALONE}"
SPECEDGE_BYTES = 135_000
"""Uplink bytes of a round of SpecEdge: a dense attention mask (see docs/methods.md)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Is a fixed pace."""

    length: int
    ahead: int

    def __str__(self) -> str:
        return f"γ {self.length}" + (", sent ahead" if self.ahead else "")


@dataclass(frozen=True, slots=True)
class Reading:
    """Is what one text took."""

    tokens_per_s: float
    forwards_a_token: float
    bytes_up_a_round: float


SETTINGS = [Setting(length, ahead) for ahead in (0, MOST_AHEAD) for length in LENGTHS]


class Client:
    """Is a draft model behind a link to the server."""

    def __init__(self, draft: Path, address: str, stack: ExitStack) -> None:
        network = NetworkSection()

        def connect(to: str) -> CloudConnection:
            return CloudConnection(to, network, 2**22)

        self._cloud = stack.enter_context(ResilientCloud([address], connect, network))
        self._info = self._cloud.info()
        self._model = EdgeModel(str(draft), threads=1)
        self._drafter = Drafter(self._model)
        tokenizer = self._model.loaded.tokenizer
        self._prompt = tuple(tokenizer(PROMPT)["input_ids"])

    def paced(
        self, pace: Callable[[], Pace], sampling: SamplingParams = SAMPLING, run_ahead: int = 0
    ) -> Reading:
        """Has a text written by drafts at a pace."""
        return self._read(self._arm("speculative", Drafting(pace, run_ahead=run_ahead)), sampling)

    def alone(self, name: str, sampling: SamplingParams = SAMPLING) -> Reading:
        """Has a text written by another arm."""
        return self._read(self._arm(name, Drafting(lambda: FixedPace(0, 0))), sampling)

    def _arm(self, name: str, drafting: Drafting) -> Arm:
        arms = build_arms(
            [name],
            tokenizer=self._model.loaded.tokenizer,
            peer=self._model.peer,
            drafter=self._drafter,
            cloud=self._cloud,
            server=self._info,
            drafting=drafting,
        )
        return arms[name]

    def _read(self, arm: Arm, sampling: SamplingParams) -> Reading:
        request = GenerationRequest(self._prompt, sampling, StopParams(TOKENS, ()))
        started = time.perf_counter()
        steps = list(arm.run(request))
        seconds = time.perf_counter() - started
        tokens = sum(len(step.token_ids) for step in steps)
        rounds = [step for step in steps if step.num_accepted_tokens is not None]
        return Reading(
            tokens / seconds,
            sum(step.timing.forward_passes for step in steps if step.timing) / tokens,
            median(step.bytes_up or 0 for step in rounds[1:]) if len(rounds) > 1 else 0.0,
        )


@contextmanager
def client(draft: Path, server: str, rtt_ms: float) -> Iterator[Client]:
    """Connects a draft model through a relay of its own, and lets both ends warm up."""
    host, _, port = server.rpartition(":")
    with relayed((host, int(port)), "--rtt", f"{rtt_ms}ms") as link, ExitStack() as stack:
        made = Client(draft, f"{link[0]}:{link[1]}", stack)
        if rtt_ms < 60:
            made.paced(lambda: FixedPace(2, 64))
        yield made


def adaptive() -> Pace:
    """Is the default pace of `drafting.length: adaptive`, `network.pipeline: auto`."""
    return AdaptivePace(ADAPTIVE_LENGTHS, 64)


# --- the grid ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """Is one link under one pair: what each pace gave, in tokens a second."""

    draft_ms: float
    rtt_ms: float
    acceptance: float
    fixed: dict[Setting, Reading]
    adaptive: Reading

    def best(self, *, ahead: bool | None = None) -> tuple[Setting, float]:
        """Returns the fastest fixed setting, of one kind if asked."""
        kind = {
            setting: reading.tokens_per_s
            for setting, reading in self.fixed.items()
            if ahead is None or bool(setting.ahead) == ahead
        }
        best = max(kind, key=lambda setting: kind[setting])
        return best, kind[best]


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
            best = {
                bool(kind): max(expected[s] for s in SETTINGS if bool(s.ahead) == bool(kind))
                for kind in (0, 1)
            }
            fixed = {
                setting: made.paced(partial(FixedPace, setting.length, 64, setting.ahead))
                for setting in SETTINGS
                if expected[setting] >= WORTH_TRYING * best[bool(setting.ahead)]
            }
            yield Cell(draft_ms, rtt_ms, acceptance, fixed, made.paced(adaptive))


def grid_table(measured: Sequence[Cell]) -> Table:
    """Shows the best of each kind and the adaptive pace beside it."""
    table = Table(
        "draft step", "RTT", "acceptance", "best stop-and-wait", "best sent ahead",
        "sent ahead ÷ stop-and-wait", "adaptive", "adaptive ÷ best fixed",
    )  # fmt: skip
    for cell in measured:
        waiting, waited = cell.best(ahead=False)
        sending, sent = cell.best(ahead=True)
        own = cell.adaptive.tokens_per_s
        table.add(
            f"{cell.draft_ms:g} ms", f"{cell.rtt_ms} ms", f"{cell.acceptance}",
            f"{waited:.1f} ({waiting})", f"{sent:.1f} (γ {sending.length})",
            f"{sent / waited:.2f}", f"{own:.1f}", f"{own / cell.best()[1]:.3f}",
        )  # fmt: skip
    return table


def verdicts(measured: Sequence[Cell]) -> str:
    """States the two targets that the grid is for."""
    ratios = [cell.adaptive.tokens_per_s / cell.best()[1] for cell in measured]
    short = sum(ratio < 0.95 for ratio in ratios)
    hidden = [
        cell.best(ahead=True)[1] / cell.best(ahead=False)[1]
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


# --- the arms over the link ----------------------------------------------------------------------


def arms_over_rtt(server: str) -> dict[str, list[Reading]]:
    """Measures every arm with the bundled pair, greedy, over all round trips."""
    greedy = SamplingParams()
    curves: dict[str, list[Reading]] = {}
    for rtt_ms in tqdm(ROUND_TRIPS_MS, desc="arms"):
        with client(BASE, server, rtt_ms) as made:
            readings = {
                name: made.alone(name, greedy) for name in ("edge", "cloud", "cloud_optimized")
            }
            for label, pace in (
                ("stop and wait, γ 4", lambda: FixedPace(4, 64)),
                ("sent ahead, γ 4", lambda: FixedPace(4, 64, MOST_AHEAD)),
                ("adaptive", adaptive),
            ):
                readings[label] = made.paced(pace, greedy)
            readings[RUN_AHEAD] = made.paced(adaptive, greedy, run_ahead=MOST_ALONE)
        for label, reading in readings.items():
            curves.setdefault(label, []).append(reading)
    return curves


def arms_table(curves: dict[str, list[Reading]]) -> Table:
    """Shows tokens a second, and target forwards a token in brackets."""
    table = Table("arm", *(f"RTT {rtt} ms" for rtt in ROUND_TRIPS_MS))
    for label, readings in curves.items():
        cells = (
            f"{reading.tokens_per_s:.1f}"
            + (f" ({reading.forwards_a_token:.2f})" if reading.forwards_a_token else "")
            for reading in readings
        )
        table.add(label, *cells)
    return table


def run_ahead_line(curves: dict[str, list[Reading]]) -> str:
    """Holds run-ahead against the target alone, round trip by round trip."""
    pairs = zip(curves[RUN_AHEAD], curves["cloud_optimized"], strict=True)
    ratios = ", ".join(f"{own.tokens_per_s / alone.tokens_per_s:.2f}" for own, alone in pairs)
    return f"With run-ahead, against `cloud_optimized`, by round trip: {ratios} (wanted: 0.97)."


def bytes_line(curves: dict[str, list[Reading]]) -> str:
    """Compares a round's uplink bytes with a dense mask's."""
    ours = max(reading.bytes_up_a_round for reading in curves["stop and wait, γ 4"])
    return (
        f"A round of four guesses takes {ours:.0f} bytes up, gRPC's frame header included; "
        f"{SPECEDGE_BYTES / ours:,.0f} times fewer than SpecEdge's {SPECEDGE_BYTES:,}."
    )


PAGE = """# The network, hidden where it can be

Made by `python -m benchmarks.network`: one server, one client, one torch thread each, and the relay
between them. Texts of {tokens} tokens. Speeds are tokens a second of one text, its first round trip
included.

{environment}

## The arms over the link

The bundled pair, greedy. In brackets: target forwards a token, the prompt's included.

{arms}

{alone}

{bytes}

![tokens a second and target forwards a token against round trip]({chart})

## Every pace on every link

A target of {target_ms:.1f} ms a step, and drafts of it whose step is set by their width and whose
acceptance by noise on their weights; temperature 1. All settings of a cell write the same text, so
guesses are right in the same places. Fixed settings are γ of {lengths}, waited for or
sent up to {ahead} ahead; those the closed form puts below {worth} of the best of their kind were
not run. Draft steps as measured: {steps}.

{verdicts}

{grid}
"""


def main() -> None:
    """Measures and writes the page and its chart."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--rtt", type=float, nargs="*", default=ROUND_TRIPS_MS, metavar="MS")
    parser.add_argument("--draft", type=float, nargs="*", default=DRAFT_MS, metavar="MS")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        target = widened(scratch / "target", width_of(TARGET_MS, scratch))
        pairs = made_pairs(scratch, target)
        steps = {ms: step_ms(pairs[ms, ACCEPTANCES[0]]) for ms in options.draft}
        target_ms = step_ms(target)
        wanted = {key: path for key, path in pairs.items() if key[0] in options.draft}
        with serving(target, "--set", "cloud.threads=1") as server:
            measured = list(cells(wanted, server.address, options.rtt))
        with serving(DEMO / "target", "--set", "cloud.threads=1") as server:
            curves = arms_over_rtt(server.address)
    drawing = options.out.with_name(f"{options.out.stem}-arms.svg")
    drawing.write_text(chart(ROUND_TRIPS_MS, curves), encoding="utf-8")
    page = PAGE.format(
        tokens=TOKENS,
        environment=environment(),
        arms=arms_table(curves),
        alone=run_ahead_line(curves),
        bytes=bytes_line(curves),
        chart=drawing.name,
        target_ms=target_ms,
        lengths=", ".join(map(str, LENGTHS)),
        ahead=MOST_AHEAD,
        worth=WORTH_TRYING,
        steps=", ".join(f"{made:.2f} ms for {ms:g}" for ms, made in steps.items()),
        verdicts=verdicts(measured),
        grid=grid_table(measured),
    )
    options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
