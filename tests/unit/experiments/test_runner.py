"""A whole bench with arms that play scripts and a clock that stands still."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.errors import HandshakeError, PromptError, UnavailableError, UsageError
from common.types import FinishReason, SamplingParams, StopParams
from edge_client.arms import GenerationRequest
from edge_client.experiments.machine_watch import Reading
from edge_client.experiments.runner import BenchPlan, BenchResult, run_bench
from edge_client.steps import Step
from tests.unit.experiments.fakes import FakeArm, FakeClock, FakeEncoder, piece, streamed, verified

END = FinishReason.MAX_NEW_TOKENS
NAMES = ("edge", "cloud", "cloud_optimized", "speculative")
PROMPTS = [{"id": f"p{i}", "prompt": f"tell me {'x' * i}"} for i in range(1, 5)]

Scripts = dict[str, Callable[[GenerationRequest], Sequence[tuple[float, Step]]]]

SCRIPTS: Scripts = {
    "edge": lambda _: [(2, piece(9)), (2, piece(9, end=END))],
    "cloud": lambda _: [(10, streamed(1)), (10, streamed(2, end=END))],
    "cloud_optimized": lambda _: [(8, streamed(1)), (8, streamed(2, end=END))],
    "speculative": lambda _: [(14, verified(1, 2, drafted=4, accepted=1, end=END))],
}


class Bench:
    """Is one bench in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.clock = FakeClock()
        self.log: list[str] = []
        self.stderr = io.StringIO()
        self.arms: dict[str, FakeArm] = {}

    def run(
        self,
        lines: Sequence[object] = PROMPTS,
        scripts: Scripts | None = None,
        *,
        context_length: int = 100,
        limit: int | None = None,
        repeats: int = 1,
        out: Path | None = None,
        trace: bool = False,
        resume: Path | None = None,
        ended: dict[str, str] | None = None,
        **more: Any,
    ) -> BenchResult:
        file = self.folder / "prompts.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
        played = SCRIPTS | (scripts or {})
        self.arms = {n: FakeArm(n, self.clock, played[n], log=self.log) for n in played}
        named: dict[str, Any] = {"environment": {"device": "cpu"}, "machine": lambda: Reading(2)}
        named |= {"draft_dtype": "float32"}
        named |= more
        return run_bench(
            BenchPlan(
                prompts=file,
                sampling=SamplingParams(seed=3),
                stop=StopParams(max_new_tokens=2),
                out=out or self.out,
                limit=limit,
                repeats=repeats,
                trace=trace,
                resume=resume,
                ended=ended or {},
            ),
            list(self.arms.values()),
            FakeEncoder(),
            context_length=context_length,
            target_dtype="float32",
            clock=self.clock,
            stderr=self.stderr,
            **named,
        )

    @property
    def records(self) -> list[dict[str, Any]]:
        text = (self.out / "records.jsonl").read_text(encoding="utf-8")
        assert text == "" or text.endswith("\n")
        return [json.loads(line) for line in text.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.out / "summary.json").read_text("utf-8"))
        return summary


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_arm_answers_every_prompt_and_repeat(bench: Bench) -> None:
    result = bench.run(repeats=2)
    assert result.exit_code == 0
    assert result.problems == ()
    seen = Counter((r["prompt_id"], r["arm"], r["repeat"]) for r in bench.records)
    assert len(seen) == 4 * 4 * 2
    assert set(seen.values()) == {1}
    assert [r["order"] for r in bench.records] == list(range(32))
    assert {r["run_id"] for r in bench.records} == {bench.summary["run_id"]}
    assert sorted(p.name for p in bench.out.iterdir()) == [
        "arms.csv",
        "generations.csv",
        "records.jsonl",
        "report.html",
        "report.md",
        "run.json",
        "summary.json",
    ]


def test_records_say_of_which_end_the_draft_model_was(bench: Bench) -> None:
    bench.run(
        limit=1,
        scripts={"cloud_assisted": SCRIPTS["cloud_optimized"]},
        draft_dtype="bfloat16",
        draft_engine="compiled",
        target_engine="kernels",
        server_draft_engine="eager",
    )
    said = {
        r["arm"]: (r["draft_dtype"], r["draft_engine"], r["target_dtype"], r["target_engine"])
        for r in bench.records
    }
    assert said == {
        "edge": ("bfloat16", "compiled", None, None),
        "cloud": (None, None, "float32", "stock"),
        "cloud_optimized": (None, None, "float32", "kernels"),
        "speculative": ("bfloat16", "compiled", "float32", "kernels"),
        "cloud_assisted": ("float32", "eager", "float32", "kernels"),
    }


def test_arms_take_turns_so_that_each_stands_in_each_place_equally_often(bench: Bench) -> None:
    bench.run()
    places = Counter((r["arm"], r["order"] % 4) for r in bench.records)
    assert set(places.values()) == {1}
    assert len(places) == 16


def test_every_arm_is_warmed_once_and_that_is_not_recorded(bench: Bench) -> None:
    bench.run(limit=1)
    assert bench.log[:4] == list(NAMES)
    assert len(bench.log) == 8
    assert len(bench.records) == 4


def test_times_are_the_client_clock_s(bench: Bench) -> None:
    bench.run(limit=1)
    by_arm = {r["arm"]: r for r in bench.records}
    assert by_arm["cloud"]["ttft_s"] == pytest.approx(0.010)
    assert by_arm["cloud"]["e2e_s"] == pytest.approx(0.020)
    assert by_arm["speculative"]["e2e_s"] == pytest.approx(0.014)
    assert by_arm["edge"]["target_dtype"] is None
    assert by_arm["cloud"]["draft_dtype"] is None
    assert by_arm["speculative"]["draft_dtype"] == "float32"


def test_all_arms_get_the_same_request(bench: Bench) -> None:
    bench.run(limit=1)
    first, *others = (arm.requests for arm in bench.arms.values())
    assert all(requests == first for requests in others)


def test_turns_are_answered_in_order_each_arm_with_its_own_answers(bench: Bench) -> None:
    bench.run([{"id": "t", "turns": ["a", "bb", "ccc"]}], repeats=2)
    assert len(bench.records) == 3 * 4 * 2
    turns = [r["turn"] for r in bench.records if r["arm"] == "cloud"]
    assert turns == [0, 1, 2, 0, 1, 2]
    assert [r["order"] for r in bench.records] == list(range(24))
    # Words: "a"; then "a", the answer <1><2>, "bb"; ... as FakeEncoder counts letters.
    assert [r.prompt_token_ids for r in bench.arms["cloud"].requests[1:4]] == [
        (1,),
        (1, 6, 2),
        (1, 6, 2, 6, 3),
    ]


def test_the_turns_of_a_conversation_bear_its_name_and_no_other_does(bench: Bench) -> None:
    bench.run([{"id": "t", "turns": ["a", "bb", "ccc"]}, {"turns": ["d"]}], repeats=2)
    for arm in bench.arms.values():
        requests = arm.requests[1:]  # the first is the warm-up
        talks = {request.conversation for request in requests if len(request.conversation)}
        assert len(talks) == 2  # one a repeat
        for talk in talks:
            turns = [request.continues for request in requests if request.conversation == talk]
            assert turns == [False, True, True]
        alone = [request.continues for request in requests if not request.conversation]
        assert alone == [False, False]


def test_a_server_that_goes_away_costs_its_records_and_nothing_else(bench: Bench) -> None:
    def failing(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if len(bench.arms["cloud"].requests) == 3:
            raise UnavailableError("the server went away; start it again")
        return SCRIPTS["cloud"](request)

    result = bench.run(scripts={"cloud": failing})
    failed = [r for r in bench.records if r["error"]]
    assert len(bench.records) == 16
    assert [r["error"] for r in failed] == ["UNAVAILABLE: the server went away; start it again"]
    assert failed[0]["output_token_ids"] is None
    assert failed[0]["prompt_tokens"] is not None
    assert result.exit_code == 0
    assert result.problems == (
        "arm cloud: 1 of 4 generations failed; the last with "
        "UNAVAILABLE: the server went away; start it again",
    )
    assert bench.summary["arms"]["cloud"]["errors"] == 1


def test_a_server_that_stays_away_is_exit_code_3(bench: Bench) -> None:
    def failing(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if len(bench.arms["cloud"].requests) > 2:  # after the warm-up and the first prompt
            raise UnavailableError("no server")
        return SCRIPTS["cloud"](request)

    result = bench.run(scripts={"cloud": failing})
    assert bench.summary["arms"]["cloud"]["errors"] == 3
    assert result.exit_code == 3
    assert "still out of reach" in result.problems[-1]


def test_an_arm_with_only_errors_is_exit_code_3_and_the_server_is_named(bench: Bench) -> None:
    def failing(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if len(bench.arms["cloud"].requests) > 1:  # after the warm-up
            raise UnavailableError("no server")
        return SCRIPTS["cloud"](request)

    result = bench.run(scripts={"cloud": failing})
    assert result.exit_code == 3
    assert "arm cloud: 4 of 4 generations failed" in result.problems[0]
    assert "still out of reach" in result.problems[-1]
    assert "–" in result.table


def test_later_turns_of_a_failed_conversation_say_that_they_were_not_run(bench: Bench) -> None:
    def failing(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if len(bench.arms["cloud"].requests) > 1:
            raise UnavailableError("no server")
        return SCRIPTS["cloud"](request)

    result = bench.run([{"turns": ["a", "b"]}], {"cloud": failing})
    errors = [r["error"] for r in bench.records if r["arm"] == "cloud"]
    assert errors == ["UNAVAILABLE: no server", "NOT_RUN: turn 0 failed"]
    assert "the last with UNAVAILABLE: no server" in result.problems[0]
    assert "still out of reach" in result.problems[-1]


def test_output_without_a_reason_is_an_error_not_a_number(bench: Bench) -> None:
    def broken(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        return [(5, streamed(1))]

    bench.run(scripts={"cloud": broken}, limit=1)
    (record,) = (r for r in bench.records if r["arm"] == "cloud")
    assert record["error"].startswith("INTERNAL: ")
    assert record["e2e_s"] is None


def interrupting(bench: Bench, error: type[BaseException]) -> Scripts:
    def script(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if len(bench.arms["speculative"].requests) == 4:
            raise error
        return SCRIPTS["speculative"](request)

    return {"speculative": script}


def test_ctrl_c_leaves_whole_records_a_summary_and_a_report(bench: Bench) -> None:
    result = bench.run(scripts=interrupting(bench, KeyboardInterrupt))
    assert result.exit_code == 130
    assert bench.summary["interrupted"] is True
    assert bench.summary["records"] == len(bench.records)
    assert 8 <= len(bench.records) < 16
    assert bench.summary["planned_records"] == 16
    assert "interrupted" in (bench.out / "report.html").read_text("utf-8")
    assert result.problems[0].startswith(f"interrupted after {len(bench.records)} of 16")
    assert f"INTERRUPTED: {len(bench.records)} of 16 generations" in result.table


def test_ctrl_c_whose_exception_was_lost_ends_the_run_after_the_record_in_hand(
    bench: Bench,
) -> None:
    asked = iter([False, False, True])
    result = bench.run(interrupted=lambda: next(asked))
    assert result.exit_code == 130
    assert len(bench.records) == 3
    assert bench.summary["interrupted"] is True


def test_our_own_fault_is_raised_after_what_was_measured_is_kept(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        bench.run(scripts=interrupting(bench, ZeroDivisionError))
    assert bench.summary["interrupted"] is True
    assert bench.summary["records"] == len(bench.records) > 0


def test_each_record_is_on_disk_as_soon_as_it_exists(bench: Bench) -> None:
    seen: list[int] = []

    def looking(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        seen.append(len(bench.records) if bench.out.exists() else 0)
        return SCRIPTS["edge"](request)

    bench.run(scripts={"edge": looking})
    written = [r["order"] for r in bench.records if r["arm"] == "edge"]
    assert seen == [0, *written]


def test_a_second_run_is_not_mixed_into_the_first(bench: Bench) -> None:
    bench.run(limit=1)
    before = (bench.out / "records.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"--out .*out is not empty; .* name a new directory"):
        bench.run(limit=1)
    assert (bench.out / "records.jsonl").read_bytes() == before


def test_an_empty_directory_is_used(bench: Bench) -> None:
    bench.out.mkdir()
    assert bench.run(limit=1).exit_code == 0


def refused(bench: Bench, match: str, *arguments: Any, **named: Any) -> None:
    with pytest.raises(UsageError, match=match):
        bench.run(*arguments, **named)
    assert not bench.out.exists()
    assert bench.log == []


def test_bad_input_is_refused_before_anything_runs_or_is_written(bench: Bench) -> None:
    refused(bench, r"prompts\.jsonl:2: ", [PROMPTS[0], {"nothing": 1}])
    refused(bench, r"has 3 tokens at turn 0, and .* holds 3", [PROMPTS[0]], context_length=3)
    refused(bench, "has 2 tokens at turn 1", [{"turns": ["a", "b"]}], context_length=2)
    refused(bench, "--repeats 0", repeats=0)
    refused(bench, "--limit 0", limit=0)


def test_a_directory_that_cannot_be_written_is_refused(bench: Bench) -> None:
    (bench.folder / "file").write_text("")
    refused(bench, "cannot be written: ", out=bench.folder / "file" / "out")


def test_what_fails_in_the_warm_up_is_raised_and_nothing_is_written(bench: Bench) -> None:
    def refusing(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        raise HandshakeError("tokenizers differ")

    with pytest.raises(HandshakeError):
        bench.run(scripts={"cloud": refusing})
    assert not bench.out.exists()


def test_arms_may_find_a_later_turn_too_long(bench: Bench) -> None:
    def short(request: GenerationRequest) -> Sequence[tuple[float, Step]]:
        if len(request.prompt_token_ids) > 2:
            raise PromptError("the prompt has 3 tokens and the context 3")
        return SCRIPTS["cloud"](request)

    bench.run([{"turns": ["a", "b"]}], {"cloud": short})
    errors = [r["error"] for r in bench.records if r["arm"] == "cloud"]
    assert errors[0] is None
    assert errors[1].startswith("PROMPT: ")


def test_the_idle_round_trip_is_measured_before_between_and_after(bench: Bench) -> None:
    echoed: list[tuple[int, int]] = []

    def echo(payload: bytes) -> None:
        echoed.append((len(bench.records) if bench.out.exists() else -1, len(payload)))
        bench.clock.advance_ms(2.5 if len(bench.log) < 20 else 5)

    result = bench.run(echo=echo)
    idle = bench.summary["environment"]["idle_rtt_ms"]
    spread = {"min": 2.5, "p50": 2.5, "p95": 2.5, "p99": 2.5}
    # The warm-up takes 2 * 2 + 2 * 10 + 2 * 8 + 14 ms; the round's messages are 30 and 40 bytes.
    request = {"when": "before", "of": "request", "at_s": 0.054, "message_bytes": 30}
    assert idle["before"] == request | {"payload_bytes": 23, "count": 20} | spread
    assert [(s["when"], s["count"]) for s in idle["samples"][::2]] == [
        ("before", 20),
        ("between", 10),
        ("between", 10),
        ("between", 10),
        ("after", 20),
    ]
    assert [s["of"] for s in idle["samples"]] == ["request", "response"] * 5
    assert Counter(echoed) == {
        (-1, 23): 23,
        (-1, 33): 23,
        **{(done, size): 13 for done in (4, 8, 12) for size in (23, 33)},
        (16, 23): 23,
        (16, 33): 23,
    }
    assert idle["after"]["p50"] == 5
    assert idle["drift"] == {"request": 2, "response": 2}
    said = "first → last median: 2.50 → 5.00 ms (×2.00) at a request's 30 bytes, 2.50 → 5.00 ms"
    assert said in result.table.replace("\n", " ")
    page = (bench.out / "report.html").read_text("utf-8")
    assert "The idle link" in page
    assert page.count('<td class="plain">between</td>') == 6


def test_the_idle_round_trip_is_null_when_the_server_is_gone(bench: Bench) -> None:
    echoes: list[bytes] = []

    def echo(payload: bytes) -> None:
        echoes.append(payload)
        if len(echoes) > 46:
            raise UnavailableError("gone")

    bench.run(limit=1, echo=echo)
    idle = bench.summary["environment"]["idle_rtt_ms"]
    assert idle["before"]["count"] == 20
    assert idle["after"] is None
    assert idle["drift"] is None
    assert len(echoes) == 46 + 4  # one failure a time, not one for each size


def test_without_a_server_there_is_no_idle_round_trip(bench: Bench) -> None:
    assert "idle round trip" not in bench.run(limit=1).table
    assert bench.summary["environment"]["idle_rtt_ms"] is None


def test_the_default_directory_is_the_time_of_day(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    file = bench.folder / "p.jsonl"
    file.write_text(json.dumps(PROMPTS[0]))
    result = run_bench(
        BenchPlan(prompts=file, sampling=SamplingParams(), stop=StopParams(max_new_tokens=2)),
        [FakeArm("edge", bench.clock, SCRIPTS["edge"])],
        FakeEncoder(),
        context_length=10,
        draft_dtype="float32",
        target_dtype=None,
        environment={},
        clock=bench.clock,
        now=lambda: datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        stderr=bench.stderr,
    )
    assert result.directory == Path("runs/20260203T040506Z")
    assert result.summary["run_id"].startswith("20260203T040506Z-")
    assert result.summary["reference"] is None


def test_off_a_terminal_progress_is_a_line_now_and_then(bench: Bench) -> None:
    bench.run(scripts={"edge": lambda _: [(5_000, piece(9, end=END))]})
    *lines, last = bench.stderr.getvalue().splitlines()
    assert last == "bench: 16/16 generations, done"
    (line,) = lines
    assert re.fullmatch(r"bench: \d+/16 generations, about \d+ s left", line)


def test_equal_text_is_said(bench: Bench) -> None:
    result = bench.run()
    assert "identical to cloud: 4/4" in result.table
    assert result.summary["exact_match"][-1]["prompts_equal"] == 4


def test_texts_are_scored_when_the_run_is_over_and_the_records_rewritten(bench: Bench) -> None:
    asked: list[tuple[int, ...]] = []

    def nats(prompt: Sequence[int], output: Sequence[int]) -> float:
        assert len(bench.log) == 4 * (len(PROMPTS) + 1)  # all generations, and the warm-up
        asked.append(tuple(output))
        return 5.0

    bench.run(text_nats=nats)
    assert sorted(set(asked)) == [(1, 2), (9, 9)]
    assert len(asked) == 2 * len(PROMPTS)
    assert [record["target_nll"] for record in bench.records] == [2.5] * 16
    assert bench.summary["arms"]["cloud"]["target_nll"]["value"] == 2.5
    assert "16/16 texts scored" in bench.stderr.getvalue()


def test_texts_are_compared_with_their_references(bench: Bench) -> None:
    lines = [{"prompt": "a", "reference": "<1><2>"}, {"prompt": "b"}]
    bench.run(lines)
    by_arm = {record["arm"]: record for record in bench.records if record["prompt_id"] == "line-1"}
    assert by_arm["cloud"]["chrf"] == pytest.approx(100)
    assert by_arm["edge"]["chrf"] < 100
    assert {r["chrf"] for r in bench.records if r["prompt_id"] == "line-2"} == {None}
    assert bench.summary["arms"]["cloud"]["bleu"] is not None
    assert bench.summary["quality_off"] is None


def test_without_the_libraries_references_are_left_uncompared_and_that_is_said(
    bench: Bench,
) -> None:
    result = bench.run([{"prompt": "a", "reference": "b"}], metrics=lambda: None)
    assert {record["chrf"] for record in bench.records} == {None}
    assert "pip install 'outrider[quality]'" in bench.summary["quality_off"]
    assert "quality metrics are off" in result.table


def test_a_trace_is_written_where_one_is_asked_for(bench: Bench) -> None:
    result = bench.run(limit=1, repeats=2, trace=True)
    assert result.trace == bench.out / "trace.json"
    trace = json.loads(result.trace.read_text("utf-8"))
    assert trace["otherData"]["run_id"] == bench.summary["run_id"]
    shown = [e["name"] for e in trace["traceEvents"] if e["ph"] == "X" and e["tid"] == 100]
    assert sorted(name for name in shown if name.endswith(" p1")) == [
        f"{arm} p1" for arm in sorted(NAMES)
    ]


def test_without_asking_there_is_no_trace(bench: Bench) -> None:
    assert bench.run(limit=1).trace is None
    assert not (bench.out / "trace.json").exists()
