"""Each file of configs/experiments, run against a server with a tiny pair."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import config as configuration
from tests.integration.processes import Server, edge_process
from tests.models import Pair

FOLDER = Path(__file__).parents[2] / "configs" / "experiments"
ARMS = {
    "edge_baseline": ["edge"],
    "cloud_baseline": ["cloud"],
    "cloud_optimized_baseline": ["cloud_optimized"],
    "speculative_cpu_limited": ["cloud_optimized", "speculative"],
    "accurate_baseline": ["cloud", "speculative"],
    "all_arms": ["edge", "cloud", "cloud_optimized", "speculative"],
}
LIMITED = {"edge_baseline", "speculative_cpu_limited", "accurate_baseline", "all_arms"}


def test_each_experiment_runs_by_its_file_alone(
    server: Server, tiny_pair: Pair, tmp_path: Path
) -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == set(ARMS)

    def run(name: str) -> dict[str, Any]:
        out = tmp_path / name
        edge_process(
            "bench", "--server", server.address, "--config", str(FOLDER / f"{name}.yaml"),
            "--draft", str(tiny_pair.draft), "--limit", "1", "--max-new-tokens", "4",
            "--ignore-eos", "--out", str(out),
        )  # fmt: skip
        summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
        return summary

    with ThreadPoolExecutor(2) as pool:
        summaries = dict(zip(ARMS, pool.map(run, ARMS), strict=True))
    for name, summary in summaries.items():
        assert list(summary["arms"]) == ARMS[name]
        assert all(numbers["errors"] == 0 for numbers in summary["arms"].values()), name
        assert summary["not_float32"] == []
        cores = summary["environment"]["edge"]["cores"]
        assert (cores["granted"] <= 2) or name not in LIMITED
    (row,) = summaries["accurate_baseline"]["exact_match"]
    assert row["prompts_equal"] == row["prompts_compared"] == 1


def test_where_the_original_limited_the_edge_the_files_do() -> None:
    for name in ARMS:
        config = configuration.load(FOLDER / f"{name}.yaml")
        limits = config.limits.edge
        asked = (limits.cpu_cores, limits.memory_gb)
        assert asked == ((2, 16) if name in LIMITED else (None, None)), name
        assert config.experiment.target == "demo/target"
