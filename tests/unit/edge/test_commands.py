"""The commands that talk to a server, against one in this process that does as it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from edge_client.cli import main
from tests.models import Pair
from tests.unit.edge.pair import server_info
from tests.unit.edge.test_transport import Servicer, refuse, serving


@pytest.fixture
def address() -> Iterator[str]:
    with serving(Servicer()) as address:
        yield address


def test_ping_reports_what_was_seen_and_the_network_part(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ping", "--server", address, "--count", "5", "--payload-bytes", "100"]
    assert main([*argv, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["server"], report["count"], report["payload_bytes"]) == (address, 5, 100)
    for percentile, elapsed in report["elapsed_ms"].items():
        # This server says each echo took it 2 ns.
        assert report["network_ms"][percentile] == pytest.approx(elapsed - 2e-6)
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"5 round trips of 100 bytes to {address}"
    assert [line.split()[:2] for line in lines[1:]] == [["elapsed", "p50"], ["network", "p50"]]


def test_a_payload_the_server_would_refuse_is_bad_usage(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ping", "--server", address, "--payload-bytes", "4096"]) == 2
    assert "ask for at most 2048" in capsys.readouterr().err


def test_two_tokenizers_are_refused_and_both_named(
    address: str, tiny_pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--server", address, "--draft", str(tiny_pair.draft), "--prompt", "p"]
    assert main(["generate", *argv]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "ffffffffffff" in said  # the server's; the client's is what it is
    assert "client" in said


def test_two_precisions_are_refused_and_both_named(
    address: str, tiny_pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--server", address, "--draft", str(tiny_pair.draft), "--prompt", "p"]
    assert main(["generate", *argv, "--set", "edge.dtype=bfloat16"]) == 2
    assert "client bfloat16, server float32" in capsys.readouterr().err


def test_a_server_does_not_reach_the_terminal_of_its_user(
    tiny_pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer = Servicer()
    with serving(servicer) as address:
        argv = ["--server", address, "--draft", str(tiny_pair.draft), "--prompt", "p"]
        evil = server_info(dtype="\x1b[2Jfloat\n64")
        monkeypatch.setattr("tests.unit.edge.test_transport.server_info", lambda: evil)
        assert main(["generate", *argv]) == 2
        servicer.fail = refuse(grpc.StatusCode.INTERNAL, "\x1b]0;title\x07\nmore")
        assert main(["ping", "--server", address]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.isprintable() for line in said)
    assert r"server \x1b[2Jfloat\n64" in said[0]
    assert r"\x1b]0;title\x07 more" in said[1]


def test_a_bench_of_the_edge_alone_needs_no_server(
    tiny_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The cat"}\n{"turns": ["Hello", "And you?"]}\n')
    out = tmp_path / "run"
    argv = ["bench", "--arms", "edge", "--draft", str(tiny_pair.draft), "--prompts", str(prompts)]
    assert main([*argv, "--out", str(out), "--max-new-tokens", "4", "--seed", "3"]) == 0
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [(record["arm"], record["seed"]) for record in records] == [("edge", 3)] * 3
    assert sorted(record["turn"] for record in records) == [0, 0, 1]
    assert str(out / "report.html") in capsys.readouterr().out


def test_a_bad_prompt_file_is_exit_2_and_named_by_line(
    tiny_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "The cat"}\n{"prompt": \n')
    argv = ["bench", "--arms", "edge", "--draft", str(tiny_pair.draft), "--prompts", str(prompts)]
    assert main([*argv, "--out", str(tmp_path / "run")]) == 2
    assert f"{prompts}:2" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "out", "message"),
    [
        ("", "new", "holds no prompts"),
        ('{"prompt": "The cat"}\n', ".", "is not empty"),
    ],
)
def test_what_needs_no_model_is_said_before_one_is_loaded(
    text: str, out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_text(text)
    argv = ["bench", "--draft", "/no/such/model", "--prompts", str(tmp_path / "prompts.jsonl")]
    assert main([*argv, "--out", str(tmp_path / out)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said


def test_a_token_does_not_go_through_a_relay_in_clear(
    tiny_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The relay is on this machine; the server behind it is not."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The cat"}\n')
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    argv = ["bench", "--draft", str(tiny_pair.draft), "--prompts", str(tmp_path / "prompts.jsonl")]
    argv += ["--server", "10.0.0.7:50051", "--link", "4g-lte", "--out", str(tmp_path / "out")]
    assert main([*argv, "--token-file", str(tmp_path / "tokens")]) == 2
    assert "cross the network to 10.0.0.7 in clear" in capsys.readouterr().err.splitlines()[-1]
