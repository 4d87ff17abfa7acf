"""Acceptance of every mode of verification, and what the lossy ones cost, on the bundled pair.

    python -m benchmarks.modes --out docs/results/modes.md

Runs `outrider-edge bench` once a setting, arms `cloud` and `speculative`, over all bundled prompts
against one server on this machine, and reads its summaries. Nothing here is a time, so other work
on the machine does no harm.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.tables import Table, environment
from tests.integration.processes import serving

DEMO = Path(__file__).parents[1] / "demo"
TEMPERATURES = (0.0, 0.3, 0.7, 1.0, 1.5)
SEED = 20261125


@dataclass(frozen=True)
class Setting:
    """Is one line of a table: what is shown, and the configuration keys that make it."""

    label: str
    keys: Mapping[str, object]
    temperature: float = 0.0


LOSSLESS = [
    Setting("coupled", {}),
    Setting("coupled, stop at confidence 0.4", {"drafting.stop": "confidence"}),
    Setting("rejection", {"verification.mode": "rejection"}),
]
LOSSY = [
    Setting("rank ≤ 1", {"verification.mode": "rank", "verification.rank_threshold": 1}),
    Setting("rank ≤ 3", {"verification.mode": "rank", "verification.rank_threshold": 3}),
    Setting("rank ≤ 20", {"verification.mode": "rank", "verification.rank_threshold": 20}),
    Setting("typical 0.09, 0.3", {"verification.mode": "typical"}),
    Setting(
        "typical 0.3, 1",
        {
            "verification.mode": "typical",
            "verification.typical_threshold": 0.3,
            "verification.typical_alpha": 1,
        },
    ),
    Setting("gate: entropy ≤ 1", {"gate.kind": "entropy", "gate.threshold": 1}),
    Setting("gate: entropy ≤ 2", {"gate.kind": "entropy", "gate.threshold": 2}),
    Setting("gate: margin ≥ 0.5", {"gate.kind": "margin", "gate.threshold": 0.5}),
    Setting("gate: margin ≥ 0.2", {"gate.kind": "margin", "gate.threshold": 0.2}),
    Setting("gate: logprob ≥ -0.5", {"gate.kind": "logprob", "gate.threshold": -0.5}),
    Setting("gate: logprob ≥ -1", {"gate.kind": "logprob", "gate.threshold": -1}),
]


def at(setting: Setting, temperature: float) -> Setting:
    """Returns the setting at a temperature."""
    return Setting(setting.label, setting.keys, temperature)


def settings() -> Iterator[Setting]:
    """Yields all that is run."""
    for temperature in TEMPERATURES:
        for setting in LOSSLESS:
            yield at(setting, temperature)
    for temperature in (0.0, 1.0):
        for setting in LOSSY:
            yield at(setting, temperature)


def summary_of(setting: Setting, server: str, folder: Path, limit: int) -> dict[str, Any]:
    """Runs one bench and returns its summary."""
    command = [sys.executable, "-m", "edge_client", "bench", "--server", server]
    command += ["--draft", str(DEMO / "draft"), "--prompts", str(DEMO / "prompts.jsonl")]
    command += ["--arms", "cloud,speculative", "--seed", str(SEED), "--limit", str(limit)]
    command += ["--temperature", str(setting.temperature), "--out", str(folder)]
    command += ["--set", "drafting.length=4", "--set", "network.pipeline=0"]
    for key, value in setting.keys.items():
        command += ["--set", f"{key}={value}"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def cell(estimate: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Writes an estimate with its interval."""
    if estimate is None:
        return "–"
    value = f"{estimate['value']:.{digits}f}"
    if estimate["ci95"] is None:
        return value
    low, high = estimate["ci95"]
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def lossless_table(found: Sequence[tuple[Setting, Mapping[str, Any]]]) -> Table:
    """Returns acceptance by mode and temperature."""
    table = Table("temperature", "mode", "accepted ÷ drafted", "tokens a round",
                  "probability bytes a guess", "same tokens as cloud")  # fmt: skip
    for setting, summary in found:
        arm = summary["arms"]["speculative"]
        (match,) = summary["exact_match"]
        table.add(
            f"{setting.temperature:g}",
            setting.label,
            cell(arm["acceptance_rate"]),
            cell(arm["mean_accepted_length"], 2),
            cell(arm["draft_probabilities_bytes_per_draft_token"], 1),
            f"{match['prompts_equal']}/{match['prompts_compared']}",
        )
    return table


def lossy_table(found: Sequence[tuple[Setting, Mapping[str, Any]]]) -> Table:
    """Returns what was saved, and what was paid."""
    table = Table("temperature", "rule", "accepted ÷ drafted", "cloud calls a block", "verified",
                  "corrected", "token match", "chrF", "ROUGE-L", "target NLL",
                  "target NLL of cloud")  # fmt: skip
    for setting, summary in found:
        arm, agreement = summary["arms"]["speculative"], summary["agreement"]["speculative"]
        table.add(
            f"{setting.temperature:g}",
            setting.label,
            cell(arm["acceptance_rate"]),
            cell(arm["cloud_call_rate"], 2),
            cell(arm["verified_share"], 2),
            cell(arm["corrected_share"]),
            cell(agreement["token_match"], 2),
            cell(agreement["chrf"], 1),
            cell(agreement["rouge_l"], 1),
            cell(arm["target_nll"], 2),
            cell(summary["arms"]["cloud"]["target_nll"], 2),
        )
    return table


PAGE = """# Modes of verification on the bundled pair

Made by `python -m benchmarks.modes`. {prompts} bundled prompts, 128 new tokens at most, draft
length 4, seed {seed}; 95 % bootstrap intervals over prompts. Every number is defined in
[methods.md](../methods.md), every mode in [exactness.md](../exactness.md).

{environment}

## Lossless

{lossless}

Coupled text is the cloud's own, token for token; rejection at a temperature is another draw from
the same distribution, and says so.

## Lossy

{lossy}

Against `cloud` at the same temperature and seed. *Cloud calls a block* is below 1 only with a gate.
Token match compares position by position, so it falls for good after the first token that differs;
chrF and ROUGE-L compare the texts as texts.
At temperature 0 the cloud takes the likeliest token at every step, so text that departs from it is
as a rule less likely to the target: the difference of the last two columns is the price in nats a
token. At temperature 1 a rule that prefers likely tokens can come out *below* the cloud's figure:
its text is too sure of itself, which is no gain but another distribution.
"""


def main() -> None:
    """Runs all settings and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.md")
    parser.add_argument("--limit", type=int, default=48, help="prompts (default: %(default)s)")
    options = parser.parse_args()
    found: list[tuple[Setting, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as scratch, serving(DEMO / "target") as server:
        for number, setting in enumerate(tqdm(list(settings()))):
            folder = Path(scratch) / str(number)
            found.append((setting, summary_of(setting, server.address, folder, options.limit)))
    lossy = [one for one in found if one[1]["lossy"]]
    lossless = [one for one in found if not one[1]["lossy"]]
    options.out.write_text(
        PAGE.format(
            prompts=found[0][1]["prompts"],
            seed=SEED,
            environment=environment(),
            lossless=lossless_table(lossless),
            lossy=lossy_table(lossy),
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
