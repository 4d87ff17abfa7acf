"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config import Config
from common.errors import InternalError, OutriderError, OverloadedError
from common.types import FinishReason
from edge_client import arms, cli, parser
from edge_client.cli import main
from edge_client.steps import Step
from tests.models import Pair


def edge(pair: Pair, *more: str) -> list[str]:
    return ["generate", "--arm", "edge", "--draft", str(pair.draft), "--prompt", "The cat", *more]


def configured(monkeypatch: pytest.MonkeyPatch, *argv: str) -> Config:
    """Returns the configuration that a command line comes to."""
    seen: list[Config] = []

    def keep(_: object, config: Config) -> int:
        seen.append(config)
        return 0

    monkeypatch.setattr(parser, "generate_command", keep)
    assert main(["generate", "--draft", "d", "--prompt", "p", *argv]) == 0
    return seen[0]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from edge_client.cli import main\n"
        "try: main(['generate', '--help'])\n"
        "finally: print(sorted({'torch', 'transformers', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--max-new-tokens" in done.stdout


def test_flags_override_set_and_set_overrides_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("decoding: {temperature: 0.5, top_k: 3, max_new_tokens: 9}")
    argv = ["--config", str(file), "--set", "decoding.top_k=4", "--set", "decoding.top_p=0.5"]
    decoding = configured(monkeypatch, *argv, "--top-p", "0.25").decoding
    assert (decoding.temperature, decoding.top_k, decoding.top_p) == (0.5, 4, 0.25)
    assert decoding.max_new_tokens == 9


@pytest.mark.parametrize(
    "command", [["generate", "--prompt", "p"], ["bench", "--prompts", "f"], ["ping"]]
)
def test_the_files_of_security_have_flags_where_a_server_is_asked(command: list[str]) -> None:
    name, *rest = command
    draft = [] if name == "ping" else ["--draft", "d"]
    argv = [name, *rest, *draft, "--tls-ca", "yes", "--token-file", "a b: #c"]
    security = cli._configuration(parser.build_parser().parse_args(argv)).security
    assert (security.tls_ca, security.token_file) == ("yes", "a b: #c")


def test_every_decoding_flag_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--max-new-tokens", "5", "--temperature", "1e-05", "--top-p", "0.5"]
    argv += ["--top-k", "3", "--seed", str(2**64 - 1), "--ignore-eos"]
    argv += ["--min-p", "0.25", "--repetition-penalty", "1.25"]
    argv += ["--presence-penalty", "-1.5", "--frequency-penalty", "0.75"]
    decoding = configured(monkeypatch, *argv, "--stop", "\n\n", "--stop", '"é: #').decoding
    assert decoding.model_dump() == {
        "max_new_tokens": 5,
        "temperature": 1e-05,
        "top_p": 0.5,
        "top_k": 3,
        "seed": 2**64 - 1,
        "min_p": 0.25,
        "repetition_penalty": 1.25,
        "presence_penalty": -1.5,
        "frequency_penalty": 0.75,
        "stop": ("\n\n", '"é: #'),
        "ignore_eos": True,
    }


def test_without_flags_the_defaults_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured(monkeypatch) == Config()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["generate", "--draft", "d"], "--prompt"),
        (["generate", "--draft", "d", "--prompt", "p", "--arm", "fog"], "fog"),
        (["bench", "--draft", "d", "--prompts", "p", "--arms", "edge,fog"], "no arm 'fog'"),
        (["bench", "--draft", "d", "--prompts", "p", "--repeats", "0"], "at least 1"),
        (["ping", "--count", "0"], "at least 1"),
        (["ping", "--payload-bytes", "-1"], "-1"),
    ],
)
def test_bad_usage_is_exit_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--temperature", "-1"], "'decoding.temperature' = -1"),
        (["--temperature", "nan"], "'decoding.temperature'"),
        (["--max-new-tokens", "0"], "'decoding.max_new_tokens' = 0"),
        (["--set", "drafting.lenght=3"], "nearest known one is 'drafting.length'"),
        (
            [
                *("--set", "gate.kind=margin", "--set", "gate.threshold=1"),
                *("--set", "network.pipeline=2"),
            ],
            "set network.pipeline to 0 or auto",
        ),
        (["--server", "nowhere"], "write it as HOST:PORT"),
        (["--config", "/no/such/file"], "No such file"),
        (["--draft", "/no/such/model"], "no directory /no/such/model"),
        (["--prompt", ""], "the prompt is empty"),
    ],
)
def test_bad_configuration_is_exit_2_and_one_line(
    more: list[str], message: str, tiny_pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edge(tiny_pair, *more)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("outrider-edge: ")
    assert message in said.err


def test_no_server_there_is_exit_3_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Port 1 is reserved, and nobody listens there.
    argv = ["--draft", "/no/such/model", "--prompt", "p", "--server", "127.0.0.1:1"]
    assert main(["generate", *argv]) == 3
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "server 127.0.0.1:1" in said
    assert "start it with `outrider-cloud serve`" in said


def test_the_text_is_streamed_and_ends_with_a_newline(
    tiny_pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(edge(tiny_pair, "--max-new-tokens", "5", "--ignore-eos")) == 0
    said = capsys.readouterr()
    assert said.out.endswith("\n")
    assert said.err == ""
    assert main(edge(tiny_pair, "--max-new-tokens", "5", "--ignore-eos", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert said.out == report["text"] + "\n"
    assert set(report) == {"token_ids", "text", "finish_reason", "stats"}
    assert (len(report["token_ids"]), report["finish_reason"]) == (5, "max_new_tokens")
    stats = report["stats"]
    assert (stats["arm"], stats["draft_dtype"], stats["target_dtype"]) == ("edge", "float32", None)


def test_a_seed_is_drawn_and_reported_and_repeats_the_text(
    tiny_pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = edge(tiny_pair, "--max-new-tokens", "8", "--ignore-eos", "--temperature", "1")
    assert main(argv) == 0
    drawn = capsys.readouterr()
    word, seed = drawn.err.split()
    assert word == "seed"
    assert main([*argv, "--seed", seed]) == 0
    again = capsys.readouterr()
    assert (again.out, again.err) == (drawn.out, "")
    assert main([*argv, "--seed", seed, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stats"]["seed"] == int(seed)


def test_a_chat_takes_the_template(tiny_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    argv = edge(tiny_pair, "--max-new-tokens", "2", "--json")
    counts = []
    for more in ([], ["--chat"]):
        assert main([*argv, *more]) == 0
        counts.append(json.loads(capsys.readouterr().out)["stats"]["prompt_tokens"])
    assert counts[0] < counts[1]


def test_another_dtype_is_said_in_red_on_a_terminal(
    tiny_pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = edge(tiny_pair, "--max-new-tokens", "2", "--json", "--set", "edge.dtype=bfloat16")
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "NOT FLOAT32: this runs in bfloat16" in said.err
    assert json.loads(said.out)["stats"]["draft_dtype"] == "bfloat16"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(argv) == 0
    assert "\x1b[31mNOT FLOAT32" in capsys.readouterr().err


def failing(error: BaseException) -> Any:
    def run(self: object, request: object) -> Iterator[Step]:
        yield Step((1,), "so far", None)
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OverloadedError("no room"), 3, "no room"),
        (InternalError("broken"), 1, "broken"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("oops"), 1, "ZeroDivisionError: oops (run with --debug for more)"),
    ],
)
def test_an_error_in_the_middle_leaves_the_text_so_far(
    error: BaseException,
    code: int,
    line: str,
    tiny_pair: Pair,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arms.Edge, "run", failing(error))
    assert main(edge(tiny_pair)) == code
    said = capsys.readouterr()
    assert said.out.startswith("so far")
    assert said.err == f"outrider-edge: {line}\n"
    assert main(edge(tiny_pair, "--json")) == code
    out = capsys.readouterr().out
    if isinstance(error, OutriderError):
        report = json.loads(out)
        assert (report["token_ids"], report["text"]) == ([1], "so far")
        assert (report["finish_reason"], report["error"]) == (None, line)


def test_debug_shows_the_traceback(
    tiny_pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms.Edge, "run", failing(InternalError("broken")))
    assert main(edge(tiny_pair, "--debug")) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1] == "outrider-edge: broken"


def test_a_summary_follows_on_a_terminal(
    tiny_pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step((1, 2), "text", FinishReason.EOS)
    monkeypatch.setattr(arms.Edge, "run", lambda self, request: iter([step]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(edge(tiny_pair)) == 0
    assert capsys.readouterr().err.startswith("2 tokens, ")


def test_check_passes_a_float32_model(tiny_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--draft", str(tiny_pair.draft)]) == 0
    said = capsys.readouterr()
    assert "x float32" in said.out
    assert "PASSED" in said.out
    assert said.err == ""


def test_check_fails_a_model_with_another_dtype_inside(
    tiny_pair: Pair, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from common.lm.runner import LanguageModel

    forward_in = LanguageModel.forward_in

    def leaking(self: LanguageModel, cache: Any, segments: Any) -> Any:
        return forward_in(self, cache, segments).half().float()

    monkeypatch.setattr(LanguageModel, "forward_in", leaking)
    assert main(["check", "--draft", str(tiny_pair.draft)]) == 2
    said = capsys.readouterr()
    assert "float16" in said.out
    assert "does not run in float32 throughout" in said.err.splitlines()[-1]


def test_a_reader_that_goes_away_is_one_line(tiny_pair: Pair) -> None:
    argv = edge(tiny_pair, "--max-new-tokens", "30", "--ignore-eos")
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "edge_client", *argv],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "outrider-edge: whoever read the output went away\n"


def test_ctrl_c_is_one_line_and_130(tiny_pair: Pair) -> None:
    # Interrupted by itself once the first text is out, so that nothing depends on speed. It goes on
    # until then: another thread may be the one that takes the signal, and that a moment later.
    code = (
        "import os, signal, sys\n"
        "from edge_client import arms, cli\n"
        "from edge_client.loop import Step\n"
        "def run(self, request):\n"
        "    yield Step((1,), 'so far', None)\n"
        f"    os.kill(os.getpid(), {signal.SIGINT.value})\n"
        "    while True: pass\n"
        "arms.Edge.run = run\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *edge(tiny_pair)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 130
    assert (done.stdout, done.stderr) == ("so far\n", "outrider-edge: interrupted\n")
