"""The arms over loopback, and transformers' assisted generation, for benchmarks/engine.py."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.edge_overhead import edge_overhead
from common.lm.loading import load
from tests.integration.processes import edge, serving

LENGTH, TOKENS, PROMPTS = 4, 64, 16
COMPILED = ("--set", "engine.compile=on")


@dataclass(frozen=True, slots=True)
class Row:
    """Is one line of the table: what was compared, both sides, and what was wanted."""

    what: str
    ours: str
    theirs: str
    ratio: float
    wanted: str


def arms(demo: Path) -> list[Row]:
    """Runs `bench` with both ends compiled, then assisted generation of the same pair."""
    with tempfile.TemporaryDirectory() as scratch, serving(demo / "target", *COMPILED) as server:
        out = Path(scratch) / "out"
        edge(
            "bench", "--server", server.address, "--draft", str(demo / "draft"),
            "--prompts", str(demo / "prompts.jsonl"), "--limit", str(PROMPTS), "--out", str(out),
            "--arms", "cloud,cloud_optimized,speculative", *COMPILED,
            "--set", f"drafting.length={LENGTH}", "--set", "network.pipeline=0",
            "--set", f"decoding.max_new_tokens={TOKENS}",
        )  # fmt: skip
        summary = json.loads((out / "summary.json").read_text())["arms"]
        records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
        edge_spent = edge_overhead(
            server.address, demo / "draft", demo / "prompts.jsonl",
            draft_length=LENGTH, tokens=TOKENS, limit=PROMPTS,
        )  # fmt: skip
    speed = {name: arm["tokens_per_s"]["value"] for name, arm in summary.items()}
    assisted = assisted_speed(demo, [r for r in records if r["arm"] == "cloud"])
    overhead_ms = summary["speculative"]["network_ms"]["p50"]["value"]

    def row(what: str, ours: float, theirs: float, wanted: str) -> Row:
        return Row(what, f"{ours:.0f} tokens/s", f"{theirs:.0f} tokens/s", ours / theirs, wanted)

    return [
        row("cloud_optimized (cloud: stock generate), loopback, bundled pair",
            speed["cloud_optimized"], speed["cloud"], "≥ 2.5"),
        row(f"speculative, γ {LENGTH}, loopback (assisted generation in one process)",
            speed["speculative"], assisted, "≥ 2"),
        Row("round trip less the server's time, loopback, p50 (0.6 ms)", f"{overhead_ms:.2f} ms",
            "0.6 ms", overhead_ms / 0.6, "≤ 1"),
        Row(f"a round of the edge less forwards and waiting, γ {LENGTH}, loopback (the round)",
            f"{edge_spent.own_ns / edge_spent.rounds / 1e6:.2f} ms",
            f"{edge_spent.all_ns / edge_spent.rounds / 1e6:.2f} ms", edge_spent.share, "≤ 0.05"),
    ]  # fmt: skip


def assisted_speed(demo: Path, records: list[dict[str, Any]]) -> float:
    """Returns the tokens a second of transformers' assisted generation over the same prompts."""
    torch.set_num_threads(1)
    target, draft = (load(str(demo / name), device="cpu") for name in ("target", "draft"))
    assistant: Any = draft.model
    assistant.generation_config.update(
        num_assistant_tokens=LENGTH,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    model: Any = target.model
    tokens, spent = 0, 0.0
    for turn, record in enumerate([*records[:1], *records]):
        ids = torch.tensor([record["prompt_token_ids"]])
        began = time.perf_counter()
        made = model.generate(
            ids, assistant_model=assistant, max_new_tokens=TOKENS, do_sample=False,
            attention_mask=torch.ones_like(ids), pad_token_id=target.eos_token_ids[0],
        )  # fmt: skip
        if turn:  # the first is to warm up
            spent += time.perf_counter() - began
            tokens += made.shape[1] - ids.shape[1]
    return tokens / spent
