"""What a person reads: the table, the page, and the sentence that answers the question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import pytest

from common.types import FinishReason
from edge_client.experiments import charts
from edge_client.experiments.figures import answer, identity_line, number
from edge_client.experiments.prompts import Prompt
from edge_client.experiments.records import Record, error_record, record_from_steps
from edge_client.experiments.report import render_report
from edge_client.experiments.rows import arm_rows
from edge_client.experiments.summary import summarize
from edge_client.experiments.table import render_table
from edge_client.steps import Step
from tests.unit.experiments.fakes import MS, piece, streamed, unit, verified

ARMS = ("edge", "cloud", "cloud_optimized", "speculative")
END = FinishReason.MAX_NEW_TOKENS
HOSTILE = "<script>alert('x')</script>&\"<img src=x onerror=alert(1)>"


def made(arm: str, prompt_id: str, milliseconds: float, *tokens: int, **where: object) -> Record:
    step: Step
    if arm == "edge":
        step = piece(*tokens, end=END)
    elif arm == "speculative":
        step = verified(*tokens, drafted=4, accepted=len(tokens) - 1, end=END)
    else:
        step = streamed(*tokens, end=END)
    arrival = round(milliseconds * MS)
    return record_from_steps(unit(arm, prompt_id, **where), (1,), [step], [arrival])


def run(
    speculative_ms: Sequence[float] = (10, 11, 12, 13, 14, 15),
    *,
    dtype: str = "float32",
    tokens: tuple[int, ...] = (1, 2, 3),
) -> list[Record]:
    records = []
    for index, milliseconds in enumerate(speculative_ms):
        prompt_id = f"p{index}"
        records += [
            made("edge", prompt_id, 5, 8, 8, 8, target_dtype=None),
            made("cloud", prompt_id, 40, 1, 2, 3, target_dtype=dtype),
            made("cloud_optimized", prompt_id, 20, 1, 2, 3, target_dtype=dtype),
            made("speculative", prompt_id, milliseconds, *tokens, target_dtype=dtype),
        ]
    return records


def summary_of(
    records: Sequence[Record], arms: Sequence[str] = ARMS, **more: Any
) -> dict[str, Any]:
    named: dict[str, Any] = {
        "run_id": "run",
        "interrupted": False,
        "planned_records": len(records),
        "seed": 1,
        "environment": {"idle_rtt_ms": {"before": None, "after": None}},
    }
    return summarize(records, arms, **(named | more))


def page_of(records: Sequence[Record], prompts: Sequence[Prompt] = (), **more: Any) -> str:
    return render_report(summary_of(records, **more), records, prompts)


def test_it_says_when_splitting_pays() -> None:
    said = answer(summary_of(run()))
    assert said.verdict == "pays"
    assert said.against == "cloud_optimized"
    assert said.sentence.startswith(
        "Splitting pays on this link: speculative wrote 1.60× the tokens a second of "
        "cloud_optimized (median of 6 paired prompts, 95 % interval 1."
    )


def test_it_says_when_splitting_does_not_pay() -> None:
    said = answer(summary_of(run((28, 29, 30, 31, 32, 33))))
    assert said.verdict == "loses"
    assert said.sentence.startswith("Splitting does not pay on this link: speculative wrote 0.6")
    assert said.sentence.endswith("so the cloud alone answers faster.")


def test_it_claims_nothing_that_the_interval_does_not_carry() -> None:
    for milliseconds in ((12, 15, 18, 21, 26, 30), (14, 16, 22, 24, 28, 32)):
        said = answer(summary_of(run(milliseconds)))
        assert said.verdict == "undecided"
        assert said.sentence.startswith("This run cannot tell whether splitting pays")


def test_it_claims_nothing_from_a_handful_of_prompts() -> None:
    said = answer(summary_of(run((10, 10, 11, 11, 12))))
    assert said.verdict == "undecided"
    assert said.sentence == (
        "Too few prompts to say whether splitting pays: speculative wrote 1.82× the tokens a "
        "second of cloud_optimized (median of 5; at least 6 are needed)."
    )
    assert answer(summary_of(run((10,)))).verdict == "undecided"


def test_it_says_what_a_token_costs_the_cloud() -> None:
    work = answer(summary_of(run())).work
    assert work is not None
    assert work == (
        "What a token cost the cloud: 1.00 ms of the target's time with speculative, 1.00 ms with "
        "cloud_optimized. So splitting did not relieve the cloud either."
    )


def test_without_both_arms_there_is_no_answer() -> None:
    records = [record for record in run() if record.arm == "edge"]
    summary = summary_of(records, ["edge"])
    assert answer(summary).verdict == "unknown"
    assert identity_line(summary) is None
    assert "Traceback" not in render_table(summary)
    assert render_report(summary, records, [])


def test_when_an_arm_has_only_failed_the_answer_is_unknown() -> None:
    records = [
        error_record(unit("speculative", r.prompt_id), None, "gone")
        if r.arm == "speculative"
        else r
        for r in run()
    ]
    summary = summary_of(records)
    assert answer(summary).verdict == "unknown"
    assert "FAILED: 6 of 24 generations ended in an error" in render_table(summary)
    assert render_report(summary, records, [])


def test_rows_of_the_table() -> None:
    rows = {row.label: row.cells for row in arm_rows(summary_of(run()))}
    assert list(rows) == [
        "tokens/s",
        "TTFT median / mean",
        "TPOT median / mean",
        "e2e median / mean",
        "acceptance pooled / by prompt",
        "mean accepted length",
        "round trip p50 / p95",
        "wasted guesses",
        "wasted target tokens",
        "network",
        "serialization",
        "bytes a token",
        "target forwards a token",
        "identical to cloud",
    ]
    assert rows["identical to cloud"] == {
        "edge": "0/6",
        "cloud": "reference",
        "cloud_optimized": "6/6",
        "speculative": "6/6",
    }
    assert rows["acceptance pooled / by prompt"]["cloud"] == "–"
    assert rows["acceptance pooled / by prompt"]["speculative"] == "0.50 / 0.50"
    assert rows["e2e median / mean"]["speculative"] == "12.5 / 12.5"
    assert rows["network"]["edge"] == "–"


def test_the_terminal_table_fits_and_lines_up() -> None:
    lines = render_table(summary_of(run())).splitlines()
    assert max(map(len, lines)) <= 100
    rule = [i for i, line in enumerate(lines) if line.startswith("─")]
    assert len({len(line) for line in lines[rule[0] + 1 : rule[1]]}) == 1
    assert "identical to cloud: 6/6" in lines


def test_texts_that_differ_are_said_per_arm() -> None:
    line = identity_line(summary_of(run(tokens=(1, 2, 9))))
    assert line == "identical to cloud: cloud_optimized 6/6, speculative 0/6"
    page = page_of(run(tokens=(1, 2, 9)))
    assert "Where texts part ways" in page
    assert "✓" not in page


def test_another_precision_is_said_in_red() -> None:
    records = run(dtype="bfloat16")
    table = render_table(summary_of(records), color=True)
    assert "\x1b[31mNOT FLOAT32: the target model ran in bfloat16\x1b[0m" in table
    assert "\x1b" not in render_table(summary_of(records))
    page = page_of(records)
    assert '<p class="alarm">NOT FLOAT32: the target model ran in bfloat16</p>' in page
    assert '<li class="badge bad">not float32</li>' in page
    assert "float32 on both ends" not in page


def test_keys_and_values_of_another_precision_are_said_too() -> None:
    environment = {"target_model": {"cache_dtype": "float16"}, "idle_rtt_ms": None}
    summary = summary_of(run(), environment=environment)
    assert summary["not_float32"] == ["the target model's keys and values were float16"]


def test_float32_is_said_too() -> None:
    page = page_of(run())
    assert "float32 on both ends" in page
    assert "NOT FLOAT32" not in page


class Elements(HTMLParser):
    """Collects elements and attributes, and checks that they nest."""

    VOID = frozenset({"meta", "link", "img", "br", "line", "rect", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID or tag in ("rect", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def hostile_page() -> str:
    steps = [Step((1,), HOSTILE, END)]
    records = [
        record_from_steps(unit("edge", HOSTILE, category=HOSTILE), (1,), steps, [MS]),
        error_record(unit("cloud", HOSTILE), None, HOSTILE),
        made("speculative", HOSTILE, 5, 1, 2, target_dtype=HOSTILE),
    ]
    prompts = [Prompt(HOSTILE, (HOSTILE,), "prompt", "file:1", category=HOSTILE)]
    return page_of(records, prompts, environment={HOSTILE: HOSTILE, "idle_rtt_ms": None})


def test_all_text_is_escaped() -> None:
    page = hostile_page()
    elements = Elements()
    elements.feed(page)
    assert elements.open == []
    assert not {"img", "iframe", "object"} & {tag for tag, _ in elements.found}
    assert [tag for tag, _ in elements.found].count("script") == 3  # data, library, drawing
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert page.count("&lt;script&gt;") >= 6


def test_charts_escape_names() -> None:
    estimate = {"value": 1.0, "ci95": [0.9, 1.1]}
    parts: dict[str, Any] = dict.fromkeys(charts.PARTS, estimate)
    for chart in (
        charts.speed_chart({HOSTILE: estimate}),
        charts.time_chart({HOSTILE: parts}, {HOSTILE: 0.0}),
        charts.ratio_chart({HOSTILE: {HOSTILE: 1.2}}, {HOSTILE: estimate}),
    ):
        assert chart is not None
        assert "<script" not in chart
        assert "&lt;script&gt;" in chart


@pytest.mark.parametrize("page", [hostile_page(), page_of(run())], ids=["hostile", "plain"])
def test_the_page_needs_nothing_from_outside(page: str) -> None:
    elements = Elements()
    elements.feed(page)
    for tag, attributes in elements.found:
        if tag == "link":
            assert attributes == {"rel": "icon", "href": "data:,"}
            continue
        assert not {"src", "href", "action", "data", "srcset"} & set(attributes), tag
    assert not re.search(r"url\(|@import|@font-face", page)
    library = resources.files("edge_client.experiments").joinpath("assets", "chart.umd.js")
    ours = page.replace(library.read_text(encoding="utf-8"), "")
    assert len(ours) < len(page)
    assert "http" not in ours.replace("http-equiv", "")


def test_the_page_is_made_for_phones_and_nights() -> None:
    page = page_of(run())
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 560px" in page


def test_the_page_shows_four_charts_and_every_text() -> None:
    records = run()
    prompts = [Prompt(f"p{i}", (f"question {i}",), "prompt", "file:1") for i in range(6)]
    page = page_of(records, prompts)
    assert page.count("<svg") == 4
    for index in range(6):
        assert f"question {index}" in page
    assert page.count("&lt;1&gt;&lt;2&gt;&lt;3&gt;") == 18
    assert page.count("its own text") == 6


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.012")],
)
def test_numbers_show_about_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown
