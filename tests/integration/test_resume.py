"""A text outlives its server: killed and restarted, or with another one to go to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.processes import (
    Server,
    edge,
    edge_running,
    generate,
    serving,
    wait_for_records,
)
from tests.models import Pair

LONG = ("--max-new-tokens", "240", "--ignore-eos")


@pytest.mark.parametrize(
    "flags", [(), ("--temperature", "0.9", "--seed", "5"), ("--arm", "cloud")], ids=str
)
def test_a_text_goes_on_at_the_next_server(
    flags: tuple[str, ...], server: Server, tiny_pair: Pair
) -> None:
    whole = generate(server.address, tiny_pair.draft, "The", *LONG, *flags)["text"]
    with (
        serving(tiny_pair.target) as doomed,
        edge_running(
            "generate", "--server", doomed.address, "--server", server.address,
            "--draft", str(tiny_pair.draft), "--prompt", "The", *LONG, *flags,
        ) as client,
    ):  # fmt: skip
        assert client.stdout is not None
        assert client.stderr is not None
        written = client.stdout.read(1)
        doomed.kill()
        written += client.stdout.read()
        stderr = client.stderr.read()
        assert client.wait() == 0, stderr
    assert written == whole + "\n"
    assert f"server {doomed.address}" in stderr
    assert "trying again" in stderr


def test_a_bench_survives_a_restart_and_its_records_say_so(tiny_pair: Pair, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("".join(json.dumps({"prompt": f"The {n}"}) + "\n" for n in range(20)))
    with (
        serving(tiny_pair.target) as server,
        edge_running(
            "bench", "--server", server.address, "--draft", str(tiny_pair.draft),
            "--prompts", str(prompts), "--out", str(out), "--arms", "cloud_optimized,speculative",
            "--max-new-tokens", "60", "--ignore-eos", "--set", "network.reconnect_s=100",
        ) as bench,
    ):  # fmt: skip
        wait_for_records(out, 3, bench)
        server.kill()
        with serving(tiny_pair.target, "--listen", server.address):
            _, stderr = bench.communicate(timeout=100)
    assert bench.returncode == 0, stderr
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [record["error"] for record in records] == [None] * 40
    by_prompt: dict[str, set[tuple[int, ...]]] = {}
    for record in records:
        by_prompt.setdefault(record["prompt_id"], set()).add(tuple(record["output_token_ids"]))
    assert all(len(texts) == 1 for texts in by_prompt.values())
    assert sum(record["reconnects"] for record in records) > 0
    interrupted = [record for record in records if record["reconnects"]]
    assert all(0 < record["time_lost_s"] < record["e2e_s"] for record in interrupted)
    quiet = [record for record in records if not record["reconnects"]]
    assert all(record["time_lost_s"] == 0 for record in quiet)


def test_a_deadline_ends_a_text_and_says_so(server: Server, tiny_pair: Pair) -> None:
    done = edge(
        "generate", "--server", server.address, "--draft", str(tiny_pair.draft),
        "--prompt", "The", *LONG, "--arm", "cloud", "--deadline", "0.05", check=3,
    )  # fmt: skip
    assert "network.deadline_s = 0.05 s" in done.stderr.splitlines()[-1]
