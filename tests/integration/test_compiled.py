"""Both ends compiled, as a user asks for it: the same texts, and records that say so."""

from __future__ import annotations

import json
from pathlib import Path

from edge_client.arms import ARM_NAMES
from tests.integration.processes import edge, serving
from tests.models import Pair

COMPILED = ["--set", "engine.compile=on"]


def test_compiled_ends_write_what_stock_generate_writes(tiny_pair: Pair, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    turns = ["a b c d", "d c b a e f g h"]
    lines = [json.dumps({"prompt_id": str(n), "turns": [text]}) for n, text in enumerate(turns)]
    prompts.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    with serving(tiny_pair.target, "--draft-model", str(tiny_pair.draft), *COMPILED) as server:
        edge(
            "bench", "--server", server.address, "--draft", str(tiny_pair.draft),
            "--prompts", str(prompts), "--out", str(out), *COMPILED, "--arms", ",".join(ARM_NAMES),
            "--set", "decoding.max_new_tokens=24", "--set", "decoding.temperature=0.8",
            "--set", "decoding.seed=3",
        )  # fmt: skip
        assert server.stop() == 0
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    engines = {r["arm"]: (r["draft_engine"], r["target_engine"]) for r in records}
    assert engines == {
        "edge": ("compiled", None),
        "cloud": (None, "stock"),
        "cloud_optimized": (None, "compiled"),
        "speculative": ("compiled", "compiled"),
        "cloud_assisted": ("compiled", "compiled"),
    }
    texts = {(r["prompt_id"], tuple(r["output_token_ids"])) for r in records if r["arm"] != "edge"}
    assert len(texts) == len(turns)


def test_a_server_told_to_stop_while_it_compiles_stops_in_order(tiny_pair: Pair) -> None:
    with serving(tiny_pair.target, "--set", "engine.compile=auto") as server:
        assert server.stop() == 0
    assert not any("Traceback" in line for line in server.log)
