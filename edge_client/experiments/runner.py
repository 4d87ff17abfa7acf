"""Runs the arms over the prompts of a file, and leaves a directory that says what happened.

Everything is checked before anything runs; each record is written whole as soon
as it exists; summary and report are written however the run ends.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from common.errors import PromptError, UnavailableError, UsageError
from common.types import SamplingParams, StopParams
from edge_client.arms import Arm
from edge_client.experiments.comparison import LogitGap
from edge_client.experiments.execution import NOT_RUN, Execution
from edge_client.experiments.figures import ASSISTED, SPLIT
from edge_client.experiments.idle import COUNT_BETWEEN, Echo, IdleLink, quarters
from edge_client.experiments.progress import Progress
from edge_client.experiments.prompts import Prompt, PromptEncoder, read_prompts
from edge_client.experiments.quality import QualityMetrics, load_metrics
from edge_client.experiments.records import Record
from edge_client.experiments.report import render_report
from edge_client.experiments.run_directory import RunDirectory, check_usable
from edge_client.experiments.scoring import TextNats, score
from edge_client.experiments.summary import summarize
from edge_client.experiments.table import render_table
from edge_client.experiments.trace import trace_events
from edge_client.rule import EXACT, Rule

EXIT_SERVER = 3
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """States what a bench runs.

    `out` None means runs/ and the time of day in UTC; `limit` None every prompt of
    the file. `sampling.seed` also draws the order of the arms and the bootstrap.
    `rule` is that of `speculative`; `trace` asks for a trace of the first repeat as well.
    """

    prompts: Path
    sampling: SamplingParams
    stop: StopParams
    out: Path | None = None
    limit: int | None = None
    repeats: int = 1
    rule: Rule = EXACT
    trace: bool = False


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Says what came of a bench: `table` is for stdout, `problems` are lines for stderr.

    `trace` is None where none was asked for.
    """

    directory: Path
    summary: Mapping[str, Any]
    table: str
    report: Path
    trace: Path | None
    problems: tuple[str, ...]
    exit_code: int


def run_bench(
    plan: BenchPlan,
    arms: Sequence[Arm],
    encoder: PromptEncoder,
    *,
    context_length: int,
    draft_dtype: str | None,
    target_dtype: str | None,
    environment: Mapping[str, Any],
    echo: Echo | None = None,
    logit_gap: LogitGap | None = None,
    text_nats: TextNats | None = None,
    metrics: Callable[[], QualityMetrics | None] = load_metrics,
    interrupted: Callable[[], bool] = lambda: False,
    clock: Callable[[], int] = time.monotonic_ns,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    stderr: TextIO | None = None,
    color: bool | None = None,
) -> BenchResult:
    """Runs every arm on every prompt, turn and repeat.

    `context_length` is the smaller of the models'; `environment` comes from
    describe_environment; `echo` makes a round trip on the idle link; `text_nats`
    None leaves texts unscored; `metrics` loads what compares texts; `clock` returns
    nanoseconds of one monotonic clock; `color` None means on a terminal.
    `interrupted` says that Ctrl-C came where its exception was lost (a finalizer, a
    library's callback). Ctrl-C ends the run early: what is there is summarised and marked as
    interrupted, unscored. Raises PromptError or UsageError
    before anything is written, and whatever an arm raises while it warms up.
    """
    started = now()
    stamp = started.strftime("%Y%m%dT%H%M%SZ")
    directory = plan.out or Path("runs") / stamp
    execution = Execution(
        run_id=f"{stamp}-{secrets.token_hex(3)}",
        arms={arm.name: arm for arm in arms},
        prompts=_check(plan, arms, encoder, context_length),
        encoder=encoder,
        sampling=plan.sampling,
        stop=plan.stop,
        repeats=plan.repeats,
        draft_dtype=draft_dtype,
        target_dtype=target_dtype,
        clock=clock,
        rules={SPLIT: plan.rule, ASSISTED: EXACT},
        metrics=metrics(),
    )
    check_usable(directory)
    idle = IdleLink(echo, clock)
    execution.warm_up(idle.note)
    idle.measure("before")
    pauses = quarters(execution.planned_records)

    records: list[Record] = []
    whole = False
    with RunDirectory(directory) as files:
        try:
            with Progress(execution.planned_records, stderr or sys.stderr, clock) as progress:
                for record in execution.records(progress.begin):
                    files.append(record.to_json())
                    records.append(record)
                    progress.advance()
                    if interrupted():
                        raise KeyboardInterrupt
                    idle.note(record.steps)
                    if len(records) in pauses:
                        idle.measure("between", COUNT_BETWEEN)
            idle.measure("after")
            if text_nats:
                with Progress(
                    len(records), stderr or sys.stderr, clock, "texts scored"
                ) as progress:
                    records = score(records, text_nats, progress.advance)
                files.replace_records(record.to_json() for record in records)
            whole = True
        except KeyboardInterrupt:
            pass
        finally:  # whatever ends the run, what was measured is summarised
            summary = summarize(
                records,
                list(execution.arms),
                run_id=execution.run_id,
                interrupted=not whole,
                planned_records=execution.planned_records,
                seed=plan.sampling.seed,
                environment=dict(environment)
                | {"started_at": started.isoformat(timespec="seconds"), "idle_rtt_ms": idle.told()},
                logit_gap=logit_gap if whole else None,
                metrics=execution.metrics,
                references=any(any(prompt.references) for prompt in execution.prompts),
            )
            files.write_summary(summary)
            trace = files.write_trace(trace_events(records)) if plan.trace else None
            report = files.write_report(render_report(summary, records, execution.prompts))
    return BenchResult(
        directory=directory,
        summary=summary,
        table=render_table(summary, color=sys.stdout.isatty() if color is None else color),
        report=report,
        trace=trace,
        problems=_problems(records, summary),
        exit_code=_exit_code(records, summary),
    )


def _check(
    plan: BenchPlan, arms: Sequence[Arm], encoder: PromptEncoder, context_length: int
) -> tuple[Prompt, ...]:
    """Returns the prompts, after making sure that none of them can fail for its own sake."""
    if not arms:
        raise UsageError("no arm to run; name at least one with --arms")
    if plan.repeats < 1:
        raise UsageError(f"--repeats {plan.repeats}: give at least 1")
    if plan.limit is not None and plan.limit < 1:
        raise UsageError(f"--limit {plan.limit}: give at least 1")
    prompts = read_prompts(plan.prompts, plan.limit)
    for prompt in prompts:
        for turn in range(len(prompt.turns)):
            # Later turns also hold the answers, which only the run can tell: this is the least.
            length = len(prompt.encode(encoder, [""] * turn))
            if length >= context_length:
                raise PromptError(
                    f"{prompt.where}: prompt {prompt.prompt_id!r} has {length} tokens at turn "
                    f"{turn}, and the models' context holds {context_length}; shorten it to at "
                    f"most {context_length - 1}"
                )
    return prompts


def _problems(records: Sequence[Record], summary: Mapping[str, Any]) -> tuple[str, ...]:
    problems = []
    if summary["interrupted"]:
        problems.append(
            f"interrupted after {summary['records']} of {summary['planned_records']} generations; "
            f"those are whole and summarised"
        )
    for arm, numbers in summary["arms"].items():
        failed = [record for record in records if record.arm == arm and record.error]
        if failed:
            # What was not run says nothing of why; the first turn always was.
            asked = [r for r in records if r.arm == arm and not _is(r, NOT_RUN)]
            last = next(record for record in reversed(asked) if record.error)
            problems.append(
                f"arm {arm}: {len(failed)} of {numbers['records']} generations failed; "
                f"the last with {last.error}"
            )
    if _out_of_reach(records):
        problems.append(
            "the server was still out of reach when the run ended; "
            "start it again and repeat the run in a new directory"
        )
    return tuple(problems)


def _out_of_reach(records: Sequence[Record]) -> bool:
    """Whether the last generation of some arm, of those that were run, found no server."""
    last = {record.arm: record for record in records if not _is(record, NOT_RUN)}
    return any(_is(record, UnavailableError.reason) for record in last.values())


def _is(record: Record, reason: str) -> bool:
    return (record.error or "").startswith(f"{reason}:")


def _exit_code(records: Sequence[Record], summary: Mapping[str, Any]) -> int:
    if summary["interrupted"]:
        return EXIT_INTERRUPTED
    arms = summary["arms"].values()
    lost = any(a["records"] and a["errors"] == a["records"] for a in arms)
    return EXIT_SERVER if lost or _out_of_reach(records) else 0
