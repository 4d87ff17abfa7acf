"""What a user sees: the server and the edge as two processes over real gRPC."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from transformers import AutoTokenizer

from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub
from tests.integration.processes import (
    ENVIRONMENT,
    Server,
    edge,
    edge_process,
    edge_running,
    generate,
    serving,
    wait_for_records,
)
from tests.models import Pair

CLOUD_ARMS = ("cloud", "cloud_optimized", "speculative")


@pytest.mark.parametrize("flags", [(), ("--temperature", "0.9", "--seed", "7", "--top-p", "0.9")])
def test_three_arms_write_one_text(server: Server, tiny_pair: Pair, flags: tuple[str, ...]) -> None:
    def text(*more: str) -> dict[str, Any]:
        return generate(
            server.address, tiny_pair.draft, "One day, she", "--max-new-tokens", "24",
            "--ignore-eos", *flags, *more,
        )  # fmt: skip

    cloud, *others = (text("--arm", arm) for arm in CLOUD_ARMS)
    for length, ahead in ((4, 0), (2, 3)):
        pace = ("--set", f"drafting.length={length}", "--set", f"network.pipeline={ahead}")
        others.append(text(*pace))
        stats = others[-1]["stats"]  # left to itself, it need not draft if the target is as fast
        assert 0 < stats["num_accepted_tokens"] < stats["num_draft_tokens"]
        assert stats["rounds"] < 24
    assert len(cloud["token_ids"]) == 24
    assert cloud["finish_reason"] == "max_new_tokens"
    for other in others:
        for same in ("token_ids", "text", "finish_reason"):
            assert other[same] == cloud[same]


def test_a_sampled_text_outlives_the_server(tiny_pair: Pair) -> None:
    """The same in all arms, before and after a restart: nothing but the seed decides."""
    written = set()
    for arms in (CLOUD_ARMS, CLOUD_ARMS[2:]):
        with serving(tiny_pair.target) as server:
            for arm in arms:
                answer = generate(
                    server.address, tiny_pair.draft, "One day, she", "--arm", arm,
                    "--max-new-tokens", "16", "--temperature", "0.8", "--seed", "7",
                )  # fmt: skip
                assert answer["stats"]["seed"] == 7
                written.add(tuple(answer["token_ids"]))
    assert len(written) == 1


def test_a_seed_that_was_drawn_is_reported_and_replays_the_text(
    server: Server, tiny_pair: Pair
) -> None:
    flags = ("--temperature", "1.2", "--max-new-tokens", "16", "--ignore-eos")
    first, second = (generate(server.address, tiny_pair.draft, "A cat", *flags) for _ in range(2))
    assert first["token_ids"] != second["token_ids"]
    again = generate(
        server.address, tiny_pair.draft, "A cat", *flags, "--seed", str(first["stats"]["seed"])
    )
    assert again["token_ids"] == first["token_ids"]


@pytest.mark.parametrize("mode", ["rejection", "rank", "typical"])
def test_other_modes_run_are_labelled_and_repeat_with_their_seed(
    mode: str, server: Server, tiny_pair: Pair
) -> None:
    flags = (
        "generate", "--server", server.address, "--draft", str(tiny_pair.draft),
        "--prompt", "A cat",
        "--temperature", "1.0", "--seed", "3", "--max-new-tokens", "16", "--ignore-eos", "--json",
        "--set", f"verification.mode={mode}",
    )  # fmt: skip
    first, second = edge(*flags), edge(*flags)
    answer, again = json.loads(first.stdout), json.loads(second.stdout)
    assert answer["token_ids"] == again["token_ids"]
    assert len(answer["token_ids"]) == 16
    lossless = mode == "rejection"
    assert answer["stats"]["lossless"] is lossless
    assert answer["stats"]["verification"]["mode"] == mode
    assert ("LOSSY" in first.stderr) is not lossless
    assert (answer["stats"]["draft_probabilities_bytes"] is not None) is lossless


def test_a_gate_commits_without_asking_and_says_so(server: Server, tiny_pair: Pair) -> None:
    result = edge(
        "generate", "--server", server.address, "--draft", str(tiny_pair.draft),
        "--prompt", "A cat",
        "--max-new-tokens", "16", "--ignore-eos", "--json",
        "--set", "gate.kind=logprob", "--set", "gate.threshold=-100",
    )  # fmt: skip
    stats = json.loads(result.stdout)["stats"]
    assert (
        "LOSSY: speculative commits tokens without asking (logprob >= -100 nats)" in result.stderr
    )
    assert (stats["num_unverified_tokens"], stats["unasked_blocks"]) == (15, 4)
    assert stats["rounds"] == 1  # the last token is never drafted, so somebody has to be asked
    assert stats["cloud_call_rate"] == 0.2
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        counted = answer.read().decode()
    gated = 'outrider_sessions_opened_total{gated="true",verification="coupled"} '
    assert float(counted.partition(gated)[2].partition("\n")[0]) >= 1


def test_a_lossy_bench_says_so_before_it_begins(
    server: Server, tiny_pair: Pair, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = bench_flags(server, tiny_pair, write_prompts(tmp_path / "prompts.jsonl", 2), out)
    flags += ["--arms", "cloud,speculative", "--max-new-tokens", "8"]
    done = edge(*flags, "--set", "verification.mode=rank")
    said = "LOSSY: speculative verified by rank <= 20: its text is not the target's own"
    assert done.stderr.startswith(said)
    assert said in done.stdout
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    by_arm = {record["arm"]: record for record in records}
    assert by_arm["speculative"]["lossless"] is False
    assert by_arm["speculative"]["target_nll"] is not None
    assert by_arm["cloud"]["lossless"] is True
    assert "lossy" in (out / "report.html").read_text()


@pytest.mark.timeout(300)
def test_eight_clients_share_forwards_and_each_has_its_own_text(
    server: Server, tiny_pair: Pair
) -> None:
    prompts = [f"The cat and the dog {number}" for number in range(8)]

    def run(prompt: str) -> dict[str, Any]:
        return generate(
            server.address, tiny_pair.draft, prompt, "--max-new-tokens", "120", "--ignore-eos",
            run=edge_process,
        )  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, prompts))
    assert max(answer["stats"]["step_sessions"]["max"] for answer in together) > 1
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair.target)
    with grpc.insecure_channel(server.address) as channel:
        for prompt, answer in zip(prompts, together, strict=True):
            alone = cloud_text(channel, tokenizer(prompt)["input_ids"], 120)
            assert answer["token_ids"] == alone


def cloud_text(channel: grpc.Channel, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Returns what the target alone writes, with nobody else on the server."""
    stop = pb.StopParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    request = pb.GenerateRequest(
        mode=pb.GENERATE_MODE_STOCK, open=pb.OpenSession(prompt_token_ids=prompt, stop=stop)
    )
    pieces = VerifierStub(channel).Generate(request, timeout=60)
    return [token for piece in pieces for token in piece.token_ids]


def test_stop_strings_end_all_arms_alike(server: Server, tiny_pair: Pair) -> None:
    whole = generate(
        server.address, tiny_pair.draft, "The", "--max-new-tokens", "30", "--ignore-eos"
    )
    stop = whole["text"][12:16]
    for arm in CLOUD_ARMS:
        cut = generate(
            server.address, tiny_pair.draft, "The", "--max-new-tokens", "30", "--ignore-eos",
            "--arm", arm, "--stop", stop,
        )  # fmt: skip
        assert cut["finish_reason"] == "stop_string"
        assert cut["text"] == whole["text"][: whole["text"].index(stop)]
        assert cut["token_ids"] == whole["token_ids"][: len(cut["token_ids"])]


def write_prompts(path: Path, count: int) -> Path:
    lines = [json.dumps({"id": f"p{n}", "prompt": f"Once upon a {n}"}) for n in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_bench_writes_records_summary_and_report(
    server: Server, tiny_pair: Pair, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 3)
    out = tmp_path / "out"
    done = edge(
        "bench", "--server", server.address, "--draft", str(tiny_pair.draft), "--prompts",
        str(prompts), "--max-new-tokens", "12", "--out", str(out),
    )  # fmt: skip
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert len(records) == 12
    assert all(record["error"] is None for record in records)
    by_arm = {arm: [r for r in records if r["arm"] == arm] for arm in ("edge", *CLOUD_ARMS)}
    for one, two, three in zip(*(by_arm[arm] for arm in CLOUD_ARMS), strict=True):
        assert one["output_token_ids"] == two["output_token_ids"] == three["output_token_ids"]
    assert all(record["network_ms"] is None for record in by_arm["edge"])
    assert all(record["num_draft_tokens"] is None for record in by_arm["cloud"])
    summary = json.loads((out / "summary.json").read_text())
    assert summary["environment"]
    assert "identical to cloud" in done.stdout
    assert "3/3" in done.stdout
    assert (out / "report.html").stat().st_size > 1000


def bench_flags(server: Server, pair: Pair, prompts: Path, out: Path) -> list[str]:
    return [
        "bench", "--server", server.address, "--draft", str(pair.draft), "--prompts",
        str(prompts), "--arms", "speculative", "--max-new-tokens", "60", "--ignore-eos",
        "--out", str(out),
    ]  # fmt: skip


def test_a_server_killed_in_the_middle_of_a_bench_costs_records_not_the_run(
    tiny_pair: Pair, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 40)
    out = tmp_path / "out"
    with (
        serving(tiny_pair.target) as server,
        edge_running(
            *bench_flags(server, tiny_pair, prompts, out), "--set", "network.reconnect_s=0.2"
        ) as bench,
    ):
        wait_for_records(out, 2, bench)
        server.kill()
        _, stderr = bench.communicate(timeout=100)
        assert bench.returncode == 3
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert len(records) == 40
    assert records[0]["error"] is None
    assert records[-1]["error"]
    assert (out / "summary.json").exists()
    assert "Traceback" not in stderr
    assert server.address in stderr


@pytest.mark.parametrize(
    ("how", "limits"),
    [(signal.SIGINT, []), (signal.SIGTERM, ["--set", "limits.edge.memory_gb=8"])],
)
def test_an_interrupted_bench_keeps_whole_records_and_a_summary(
    how: int, limits: list[str], server: Server, tiny_pair: Pair, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 200)
    out = tmp_path / "out"
    with edge_running(*bench_flags(server, tiny_pair, prompts, out), *limits) as bench:
        wait_for_records(out, 2, bench)
        bench.send_signal(how)
        _, stderr = bench.communicate(timeout=60)  # to the end of all that write there
        assert bench.returncode == 130
    assert "Traceback" not in stderr
    lines = (out / "records.jsonl").read_text().splitlines()
    assert 2 <= len([json.loads(line) for line in lines]) < 200
    assert json.loads((out / "summary.json").read_text())["interrupted"] is True


def test_a_bench_killed_half_way_and_resumed_is_as_one_that_was_not(
    server: Server, tiny_pair: Pair, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 6)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    flags = bench_flags(server, tiny_pair, prompts, killed)
    flags[flags.index("speculative")] = "cloud_optimized,speculative"
    with edge_running(*flags, "--seed", "5") as bench:
        wait_for_records(killed, 5, bench)
        bench.kill()
        bench.wait()
    assert not (killed / "summary.json").exists()
    before = (killed / "records.jsonl").read_text().splitlines()
    flags[flags.index("--out")] = "--resume"
    edge(*flags)  # without a seed: the run's own
    after = (killed / "records.jsonl").read_text().splitlines()
    assert 5 <= len(before) < len(after) == 12
    assert set(before[:5]) <= set(after)
    flags[flags.index("--resume") : flags.index("--resume") + 2] = ["--out", str(whole)]
    edge(*flags, "--seed", "5")
    one, other = (json.loads((out / "summary.json").read_text()) for out in (killed, whole))
    assert one["interrupted"] is other["interrupted"] is False
    for name in ("records", "prompts", "exact_match", "agreement", "bootstrap"):
        assert one[name] == other[name]
    for arm in one["arms"]:
        told = [summary["arms"][arm]["num_output_tokens"] for summary in (one, other)]
        assert told[0] == told[1] == 6 * 60


def test_generate_when_the_server_is_not_there(tiny_pair: Pair) -> None:
    done = edge(
        "generate", "--server", "127.0.0.1:9", "--draft", str(tiny_pair.draft), "--prompt", "x",
        check=3,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "127.0.0.1:9" in last
    assert "outrider-cloud serve" in last


def test_a_draft_with_another_tokenizer_is_refused_naming_both(
    server: Server, other_tokenizer: Path
) -> None:
    done = edge(
        "generate", "--server", server.address, "--draft", str(other_tokenizer), "--prompt", "x",
        check=2,
    )  # fmt: skip
    assert "tokenizer: client" in done.stderr
    assert "server" in done.stderr


def test_another_precision_is_refused_naming_both(server: Server, tiny_pair: Pair) -> None:
    done = edge(
        "generate", "--server", server.address, "--draft", str(tiny_pair.draft), "--prompt", "x",
        "--set", "edge.dtype=bfloat16", check=2,
    )  # fmt: skip
    assert "client bfloat16, server float32" in done.stderr


def test_a_prompt_longer_than_the_context_names_both_numbers(
    server: Server, tiny_pair: Pair
) -> None:
    done = edge(
        "generate", "--server", server.address, "--draft", str(tiny_pair.draft), "--prompt",
        "dog " * 400, check=2,
    )  # fmt: skip
    assert "256" in done.stderr


def test_edge_alone_needs_no_server(tiny_pair: Pair) -> None:
    done = edge(
        "generate", "--arm", "edge", "--draft", str(tiny_pair.draft), "--prompt", "The cat",
        "--max-new-tokens", "5",
    )  # fmt: skip
    assert done.stdout


def test_ping_measures_round_trips(server: Server) -> None:
    done = edge("ping", "--server", server.address, "--count", "5", "--json")
    assert json.loads(done.stdout)["elapsed_ms"]["p50"] > 0


@pytest.mark.parametrize("process", ["edge_client", "cloud_server"])
def test_check_finds_nothing_but_float32(process: str, tiny_pair: Pair) -> None:
    flag = "--draft" if process == "edge_client" else "--model"
    done = subprocess.run(
        [sys.executable, "-m", process, "check", flag, str(tiny_pair.target)],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "float32" in done.stdout
    assert "bfloat16" not in done.stdout


def test_metrics_count_what_happened(server: Server, tiny_pair: Pair) -> None:
    def read() -> dict[str, float]:
        with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {
            line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
            for line in lines
            if not line.startswith("#")
        }

    before = read()
    made = generate(server.address, tiny_pair.draft, "The", "--max-new-tokens", "9", "--ignore-eos")
    after = read()
    for name, stat in {
        "outrider_spec_decode_num_draft_tokens_total": "num_draft_tokens",
        "outrider_spec_decode_num_accepted_tokens_total": "num_accepted_tokens",
        "outrider_generation_tokens_total": "num_output_tokens",
    }.items():
        assert after[name] - before[name] == made["stats"][stat], name
    assert after["outrider_num_requests_running"] == 0


def test_sigterm_drains_and_exits_0(tiny_pair: Pair) -> None:
    with (
        serving(tiny_pair.target) as server,
        edge_running(
            "generate", "--server", server.address, "--draft", str(tiny_pair.draft),
            "--prompt", "The", "--max-new-tokens", "200", "--ignore-eos",
        ) as client,
    ):  # fmt: skip
        assert client.stdout is not None
        first = client.stdout.read(1)  # the generation is under way
        assert server.stop() == 0
        rest, stderr = client.communicate(timeout=60)
        assert client.returncode == 0, stderr
    assert len(first + rest) > 50


ANY_PORT = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--model", "no/such/model"], 2, "no/such/model"),
        (["--model", "TARGET", "--listen", "nonsense"], 2, "HOST:PORT"),
        (["--model", "TARGET", "--listen", "203.0.113.1:1", "--insecure"], 3, "203.0.113.1:1"),
        (["--model", "TARGET", "--set", "cloud.tokn_budget=4"], 2, "cloud.token_budget"),
        (["--model", "TARGET", "--set", "cloud.token_budget=4"], 2, "max_draft_tokens"),
        (["--model", "TARGET", "--device", "tpu"], 2, "tpu"),
        (["--model", "TARGET", "--draft-model", "no/such/draft"], 2, "no/such/draft"),
    ],
)
def test_a_server_that_cannot_start_says_why_in_its_last_line(
    tiny_pair: Pair, flags: list[str], code: int, message: str
) -> None:
    flags = [str(tiny_pair.target) if flag == "TARGET" else flag for flag in flags]
    done = subprocess.run(
        [sys.executable, "-m", "cloud_server", "serve", *ANY_PORT, *flags],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_server_killed_in_the_middle_of_a_text_is_one_clear_line(tiny_pair: Pair) -> None:
    with (
        serving(tiny_pair.target) as server,
        edge_running(
            "generate", "--server", server.address, "--draft", str(tiny_pair.draft),
            "--prompt", "The", "--max-new-tokens", "240", "--ignore-eos",
            "--set", "network.reconnect_s=0",
        ) as client,
    ):  # fmt: skip
        assert client.stdout is not None
        first = client.stdout.read(1)
        server.kill()
        rest, stderr = client.communicate(timeout=60)
        assert client.returncode == 3, stderr
    assert first + rest
    (line,) = stderr.strip().splitlines()
    assert f"server {server.address} went away in the middle" in line
