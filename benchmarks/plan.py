"""What `outrider-edge plan` predicts, held against what the relay measures.

    python -m benchmarks.plan --out docs/results/plan.md

One server with the bundled target; between it and the edge `outrider-link`. In each turn one bench
without a delay is the calibration, and from its records alone the twelve settings are predicted;
then each is run. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from benchmarks.link import relayed
from benchmarks.tables import Table, environment
from edge_client.expectation import Situation, tokens_a_second
from edge_client.experiments.calibration import Calibration, read_calibration
from tests.integration.processes import serving

DEMO = Path(__file__).parents[1] / "demo"
RTTS_MS = (0, 20, 50, 100)
TOKENS = 128
ALLOWED = 0.10
SEED = 20261125


@dataclass(frozen=True)
class Setting:
    """Is a draft length, and how many drafts are sent ahead."""

    length: int
    ahead: int

    @property
    def keys(self) -> Mapping[str, int]:
        """The configuration keys that make it."""
        return {"drafting.length": self.length, "network.pipeline": self.ahead}


CALIBRATED = Setting(4, 0)
SETTINGS = (Setting(2, 0), Setting(6, 0), Setting(2, 8))


@dataclass
class Held:
    """Holds predictions and measurements of one setting, in tokens a second, by turn."""

    predicted: list[float] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)

    def middle(self) -> tuple[float, float]:
        """Returns the median of each."""
        return statistics.median(self.predicted), statistics.median(self.measured)


def bench(address: tuple[str, int], setting: Setting, arms: str, out: Path, limit: int) -> Path:
    """Runs one bench and returns its directory."""
    host, port = address
    command = [sys.executable, "-m", "edge_client", "bench", "--server", f"{host}:{port}"]
    command += ["--draft", str(DEMO / "draft"), "--prompts", str(DEMO / "prompts.jsonl")]
    command += ["--arms", arms, "--seed", str(SEED), "--limit", str(limit), "--out", str(out)]
    command += ["--temperature", "0", "--max-new-tokens", str(TOKENS), "--ignore-eos"]
    for key, value in setting.keys.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return out


def measured(folder: Path) -> float:
    """Returns the tokens a second of the split arm, pooled."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return float(summary["arms"]["speculative"]["tokens_per_s"]["value"])


def predicted(found: Calibration, setting: Setting, rtt_ms: float) -> float:
    """Returns what the plan says of it: the calibration's own network, and the delay on top."""
    assert found.draft_s is not None
    assert found.network_s is not None
    assert found.target_s is not None
    assert found.target_token_s is not None
    assert found.acceptance is not None
    situation = Situation(
        found.draft_s,
        found.network_s + rtt_ms / 1e3,
        found.target_s,
        found.target_token_s,
        found.acceptance,
        found.edge_round_s,
        found.server_round_s,
        found.opening_s,
        found.alone_s,
    )
    return tokens_a_second(situation, setting.length, setting.ahead, found.text_tokens)


def run(turns: int, limit: int, scratch: Path) -> tuple[dict[tuple[int, Setting], Held], Table]:
    """Runs everything; returns what was held against what, and the calibrations."""
    held = {(rtt, setting): Held() for rtt in RTTS_MS for setting in SETTINGS}
    calibrations = Table("turn", "draft ms a token", "target ms", "and a token",
                         "edge ms a round", "server ms a round", "network ms", "opening ms",
                         "acceptance by position")  # fmt: skip
    bar = tqdm(total=turns * (len(held) + 1))
    with serving(DEMO / "target") as server:
        host, _, port = server.address.rpartition(":")
        for turn in range(turns):
            with relayed((host, int(port)), "--rtt", "0ms") as link:
                folder = scratch / f"{turn}-calibration"
                bench(link, CALIBRATED, "edge,cloud_optimized,speculative", folder, limit)
            found = read_calibration(folder)
            calibrations.add(str(turn + 1), *cells(found))
            bar.update()
            for rtt in RTTS_MS:
                with relayed((host, int(port)), "--rtt", f"{rtt}ms") as link:
                    for number, setting in enumerate(SETTINGS):
                        folder = scratch / f"{turn}-{rtt}-{number}"
                        one = held[rtt, setting]
                        bench(link, setting, "speculative", folder, limit)
                        one.measured.append(measured(folder))
                        one.predicted.append(predicted(found, setting, rtt))
                        bar.update()
    bar.close()
    return held, calibrations


def cells(found: Calibration) -> Sequence[str]:
    """Writes what was measured."""
    times = (found.draft_s, found.target_s, found.target_token_s, found.edge_round_s,
             found.server_round_s, found.network_s, found.opening_s)  # fmt: skip
    shares = ", ".join(f"{share:.2f}" for share in found.acceptance or ())
    return [*("–" if value is None else f"{value * 1e3:.2f}" for value in times), shares]


def table_of(held: Mapping[tuple[int, Setting], Held]) -> tuple[Table, int]:
    """Returns predictions beside measurements, and how many are near enough."""
    table = Table("delay", "γ", "sent ahead", "predicted tokens/s", "measured tokens/s",
                  "predicted ÷ measured", "allowed: ±10 %")  # fmt: skip
    near = 0
    for (rtt, setting), one in held.items():
        ours, theirs = one.middle()
        within = abs(ours / theirs - 1) <= ALLOWED
        near += within
        table.add(
            f"{rtt} ms",
            str(setting.length),
            str(setting.ahead),
            f"{ours:.1f}",
            f"{theirs:.1f}",
            f"{ours / theirs:.3f}",
            "within" if within else "OUTSIDE",
        )
    return table, near


PAGE = """# The plan, held against measurement

Made by `python -m benchmarks.plan`: {limit} bundled prompts, {tokens} new tokens each, greedy, on
the bundled pair, edge and cloud on one machine with `outrider-link` between them. Turns: {turns},
of which each figure is the median. In each turn one bench without a delay, at draft length 4 and
waiting for every verdict, is read as `outrider-edge plan` reads `--records`, and what comes of it
predicts the twelve settings; the network's time is the calibration's own and the delay asked of
the relay. The formula and every term are in [methods.md](../methods.md#plan).

{environment}

{table}

{near} of {all} settings are within 10 %. Measured is `tokens_per_s` of `speculative`, all tokens
÷ all time, the prompt's processing inside. Prompts are the same in calibration and settings, so
this holds the formula against the loop and the link, not one text against another.

## What was measured without a delay

{calibrations}
"""


def main() -> None:
    """Calibrates, predicts, measures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--limit", type=int, default=8, help="prompts (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="default: %(default)s")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        held, calibrations = run(options.turns, options.limit, Path(scratch))
    table, near = table_of(held)
    page = PAGE.format(
        limit=options.limit,
        tokens=TOKENS,
        turns=options.turns,
        environment=environment(),
        table=table,
        near=near,
        all=len(held),
        calibrations=calibrations,
    )
    options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
