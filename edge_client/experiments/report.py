"""The page a run leaves: one file, nothing from outside, readable on a phone and at night.

What matters is drawn without a script; the further plots are Chart.js, which is in the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edge_client.experiments import charts
from edge_client.experiments.comparison import paired_ratios
from edge_client.experiments.differences import flatten
from edge_client.experiments.figures import (
    SPLIT,
    all_identical,
    answer,
    identity,
    identity_line,
    idle_line,
    promise_of,
    self_check_line,
)
from edge_client.experiments.plots import as_script, plots
from edge_client.experiments.prompts import Prompt
from edge_client.experiments.records import Record
from edge_client.experiments.rows import arm_rows
from edge_client.experiments.table import warnings
from edge_client.experiments.token_view import KINDS, AskOpinions, Pieces, views
from edge_client.rule import Promise


@dataclass(frozen=True, slots=True)
class Reply:
    """Is what one arm wrote.

    `identical` compares it with the reference arm, None if unknown; `promised` says
    whether the arm promises the reference's tokens.
    """

    arm: str
    css: str
    text: str
    tokens: int | None
    finish_reason: str | None
    error: str | None
    identical: bool | None
    promised: bool


@dataclass(frozen=True, slots=True)
class Exchange:
    """Is one turn of a prompt with the replies of all arms side by side."""

    prompt_id: str
    category: str | None
    question: str
    replies: tuple[Reply, ...]


def render_report(
    summary: Mapping[str, Any],
    records: Sequence[Record],
    prompts: Sequence[Prompt],
    *,
    command: str | None = None,
    pieces: Pieces | None = None,
    opinions: AskOpinions | None = None,
) -> str:
    """Returns the page as HTML; every text in it is escaped.

    `command` repeats the run; `pieces` None leaves out the view token by token, and `opinions`
    None what the models think of each token in it.
    """
    drawn = plots(summary, records)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    arms = list(summary["arms"])
    template = resources.files(__package__).joinpath("report_template.html")
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        summary=summary,
        answer=answer(summary),
        all_identical=all_identical(summary),
        identity_line=identity_line(summary),
        counted=bool(identity(summary)),
        warnings=warnings(summary),
        arms=[(arm, charts.arm_class(arm)) for arm in arms],
        rows=arm_rows(summary),
        charts=_charts(summary, records),
        plots=drawn,
        plots_json=as_script(drawn),
        library=Markup(_asset("chart.umd.js")),  # ours, and a library's: no text of a run
        drawing=Markup(_asset("report.js")),
        views=views(records, pieces, opinions),
        kinds=KINDS,
        matches=list(_matches(summary)),
        categories=summary["categories"],
        checks=[self_check_line(check) for check in summary["self_checks"]],
        command=command,
        unmeasured=list(_unmeasured(summary)),
        parts=[(part, part.replace("_", " ")) for part in charts.PARTS],
        mismatches=list(_mismatches(summary)),
        exchanges=list(exchanges(summary, records, prompts)),
        idle_line=idle_line(summary),
        idle_samples=(summary["environment"].get("idle_rtt_ms") or {}).get("samples", []),
        environment=list(flatten(_without_idle(summary["environment"]))),
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _matches(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, int, int, bool]]:
    """Yields both arms, prompts equal and compared, and whether equality was promised."""
    for row in summary["exact_match"]:
        promised = all(promise_of(summary, arm) is Promise.TOKENS for arm in row["arms"])
        yield (*row["arms"], row["prompts_equal"], row["prompts_compared"], promised)


def _unmeasured(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yields what this run does not know, in words."""
    known = summary["resources"]
    for what, keys in _RESOURCES.items():
        if all(known[key] is None for key in keys):
            yield what
    environment = summary["environment"]
    if environment.get("idle_rtt_ms") is None:
        yield "the idle link’s round trip (there was no server)"
    machine = (environment.get("machine") or {}).get("samples", [])
    for what, key in (
        ("the processor’s clock", "clock_mhz"),
        ("throttling by heat", "heat_events"),
    ):
        if all(reading[key] is None for reading in machine):
            yield what


_READINGS = (("the processor’s clock", "clock_mhz"), ("throttling by heat", "heat_events"))
_RESOURCES = {
    "processor time and memory": ("edge_cpu_s", "edge_peak_rss_mib"),
    "energy of processors (no RAPL)": ("edge_energy_j", "cloud_energy_j"),
    "memory, utilisation and energy of a GPU (none, or no NVML)": (
        *("gpu_peak_memory_mib", "gpu_utilization", "gpu_energy_j"),
    ),
}


def exchanges(
    summary: Mapping[str, Any], records: Sequence[Record], prompts: Sequence[Prompt]
) -> Iterator[Exchange]:
    """Yields the turns of the first repeat, in the order of the prompts."""
    first = {(r.prompt_id, r.turn, r.arm): r for r in records if r.repeat == 0}
    for prompt in prompts:
        for turn, question in enumerate(prompt.turns):
            found = [
                record
                for arm in summary["arms"]
                if (record := first.get((prompt.prompt_id, turn, arm))) is not None
            ]
            reference = first.get((prompt.prompt_id, turn, str(summary["reference"])))
            if found:
                replies = tuple(_reply(record, reference) for record in found)
                yield Exchange(prompt.prompt_id, prompt.category, question, replies)


def _reply(record: Record, reference: Record | None) -> Reply:
    known = reference is not None and reference.error is None and record.error is None
    is_reference = reference is not None and record.arm == reference.arm
    identical = None
    if known and reference is not None and not is_reference:
        identical = record.output_token_ids == reference.output_token_ids
    return Reply(
        arm=record.arm,
        css=charts.arm_class(record.arm),
        text=record.text or "",
        tokens=record.num_output_tokens,
        finish_reason=record.finish_reason,
        error=record.error,
        identical=identical,
        promised=record.promise is Promise.TOKENS,
    )


def _charts(summary: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    arms = summary["arms"]
    split = [record for record in records if record.arm == SPLIT]
    ratios, medians = {}, {}
    for arm in arms:
        if split and arm != SPLIT:
            ratios[arm] = paired_ratios(split, [r for r in records if r.arm == arm])
            compared = summary["ratios"][SPLIT][arm]["tokens_per_s"]
            medians[arm] = None if compared is None else compared["median"]
    by_position = arms[SPLIT]["acceptance_by_position"] if SPLIT in arms else None
    return {
        "speed": charts.speed_chart({arm: n["tokens_per_s"] for arm, n in arms.items()}),
        "ratios": charts.ratio_chart(ratios, medians),
        "time": charts.time_chart(
            {arm: n["ms_per_token"] for arm, n in arms.items()},
            {arm: _value(n["overlap_ms_per_token"]) for arm, n in arms.items()},
        ),
        "acceptance": charts.acceptance_chart(by_position or []),
    }


def _without_idle(environment: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environment.items() if name != "idle_rtt_ms"}


def _value(estimate: Mapping[str, Any] | None) -> float:
    return 0.0 if estimate is None else float(estimate["value"])


def _mismatches(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields where two arms that promise the same text part ways."""
    for row in summary["exact_match"]:
        if all(promise_of(summary, arm) is Promise.TOKENS for arm in row["arms"]):
            for mismatch in row["mismatches"]:
                yield {"arms": row["arms"], **mismatch}
