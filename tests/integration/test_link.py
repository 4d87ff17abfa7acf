"""A link between two processes: the same text over it, later by what was asked for."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.processes import ENVIRONMENT, Server, edge, generate
from tests.models import Pair


@contextmanager
def link(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Starts `outrider-link` on a free port and yields it and its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "edge_client.relay.cli", "--listen", "127.0.0.1:0", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        try:
            ready = re.fullmatch(r"READY link=(\S+)\n", process.stdout.readline())
            assert ready
            yield process, ready[1]
        finally:
            process.kill()


def test_the_text_is_the_same_over_a_link_and_every_round_trip_takes_its_time(
    server: Server, tiny_pair: Pair
) -> None:
    flags = ("--max-new-tokens", "12", "--ignore-eos")
    direct = generate(server.address, tiny_pair.draft, "A cat", *flags)
    shape = ("--rtt", "40ms", "--jitter", "10ms", "--up", "2mbit", "--down", "2mbit")
    with link("--to", server.address, *shape) as (process, address):
        linked = generate(address, tiny_pair.draft, "A cat", *flags)
        pinged = json.loads(edge("ping", "--server", address, "--count", "5", "--json").stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert linked["token_ids"] == direct["token_ids"]
    assert linked["stats"]["rtt_ms"]["p50"] >= 30  # the least there can be
    assert linked["stats"]["network_ms"]["p50"] >= 30
    assert pinged["elapsed_ms"]["p50"] >= 30
    assert re.fullmatch(r"outrider-link: \d connections, \d+ bytes up, \d+ bytes down\n", said)


def test_a_bench_brings_its_own_link_and_records_it(
    server: Server, tiny_pair: Pair, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "A cat"}\n')
    edge(
        "bench", "--server", server.address, "--draft", str(tiny_pair.draft), "--prompts",
        str(prompts), "--arms", "cloud_optimized,speculative", "--link", "specedge",
        "--max-new-tokens", "8", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["environment"]["link"] == "specedge"
    assert summary["environment"]["idle_rtt_ms"]["before"]["min"] >= 14
    assert summary["arms"]["speculative"]["rtt_ms"]["p50"]["value"] >= 14
    (match,) = summary["exact_match"]
    assert match["prompts_equal"] == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--to", "127.0.0.1:1", "--rtt", "50"), "'50' is not a time; write for example 50ms"),
        (("--to", "nowhere"), "--to 'nowhere' is not HOST:PORT"),
        (("--to", "127.0.0.1:1", "--profile", "moon"), "no link profile 'moon'; choose from"),
        (("--to", "127.0.0.1:1", "--profile", "lan", "--rtt", "1ms"), "says all of a link"),
        (("--to", "127.0.0.1:1", "--trace", "no-file"), "no-file: No such file"),
        (("--to", "127.0.0.1:1", "--loss-burst", "5s"), "write EVERY:FOR"),
    ],
)
def test_what_is_no_link_is_named(flags: tuple[str, ...], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_client.relay.cli", "--listen", "127.0.0.1:0", *flags],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_link_to_nowhere_refuses_its_clients() -> None:
    with link("--to", "127.0.0.1:1") as (_, address):
        done = edge("ping", "--server", address, "--set", "network.connect_timeout_s=2", check=3)
    assert address in done.stderr


def test_a_profile_there_is_not_ends_a_bench_before_anything_starts(
    tiny_pair: Pair, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "A cat"}\n')
    done = edge(
        "bench", "--draft", str(tiny_pair.draft), "--prompts", str(prompts), "--link", "moon",
        "--out", str(tmp_path / "out"), check=2,
    )  # fmt: skip
    assert "no link profile 'moon'" in done.stderr
    assert not (tmp_path / "out").exists()
