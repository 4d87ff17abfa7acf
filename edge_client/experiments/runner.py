"""Runs the arms over the prompts of a file, and leaves a directory that says what happened.

Everything is checked before anything runs; each record is written whole as soon
as it exists; summary and report are written however the run ends.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from common.errors import PromptError, UsageError
from common.types import SamplingParams, StopParams
from edge_client.arms import Arm
from edge_client.experiments.comparison import LogitGap
from edge_client.experiments.execution import Execution, Place, whole
from edge_client.experiments.exports import arms_csv, as_markdown, generations_csv
from edge_client.experiments.figures import ASSISTED, SPLIT
from edge_client.experiments.idle import COUNT_BETWEEN, Echo, IdleLink, quarters
from edge_client.experiments.machine_watch import MachineWatch, Reading, read_machine
from edge_client.experiments.manifest import Manifest, read_manifest
from edge_client.experiments.outcome import exit_code_of, problems_of
from edge_client.experiments.progress import Progress
from edge_client.experiments.prompts import Prompt, PromptEncoder, read_prompts
from edge_client.experiments.quality import QualityMetrics, load_metrics
from edge_client.experiments.records import Record
from edge_client.experiments.report import render_report
from edge_client.experiments.resources import ReadUsage
from edge_client.experiments.run_directory import RECORDS, RunDirectory, check_usable
from edge_client.experiments.scoring import TextNats, score
from edge_client.experiments.stored import read_conditions, read_records
from edge_client.experiments.summary import summarize
from edge_client.experiments.table import render_table
from edge_client.experiments.token_view import AskOpinions, Pieces
from edge_client.experiments.trace import trace_events
from edge_client.rule import EXACT, Rule


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """States what a bench runs.

    `out` None means runs/ and the time of day in UTC; `limit` None every prompt of
    the file. `sampling.seed` also draws the order of the arms and the bootstrap.
    `rule` is that of `speculative`; `trace` asks for a trace of the first repeat as well;
    `resume` names the directory of a run to be taken up, and `out` is then unused; `command`
    is what was typed, for the report; `ended` says of arms why they are not run any more.
    """

    prompts: Path
    sampling: SamplingParams
    stop: StopParams
    out: Path | None = None
    limit: int | None = None
    repeats: int = 1
    rule: Rule = EXACT
    trace: bool = False
    resume: Path | None = None
    command: str | None = None
    ended: Mapping[str, str] = field(default_factory=dict)


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
    draft_engine: str | None = None,
    target_engine: str | None = None,
    server_draft_engine: str | None = None,
    echo: Echo | None = None,
    logit_gap: LogitGap | None = None,
    text_nats: TextNats | None = None,
    metrics: Callable[[], QualityMetrics | None] = load_metrics,
    machine: Callable[[], Reading] = read_machine,
    usage: ReadUsage | None = None,
    observe: Callable[[Record], None] = lambda _: None,
    pieces: Pieces | None = None,
    opinions: AskOpinions | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    clock: Callable[[], int] = time.monotonic_ns,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    stderr: TextIO | None = None,
    color: bool | None = None,
) -> BenchResult:
    """Runs every arm on every prompt, turn and repeat.

    `context_length` is the smaller of the models'; `environment` comes from
    describe_environment; `echo` makes a round trip on the idle link; `text_nats`
    None leaves texts unscored; `metrics` loads what compares texts; `machine` reads the
    machine's state and `usage` what both processes have used; `clock` returns
    nanoseconds of one monotonic clock; `color` None means on a terminal;
    `observe` hears of each record; `pieces` and `opinions` (see token_view.py) serve the report.
    `interrupted` says that Ctrl-C came where its exception was lost (a finalizer, a
    library's callback). Ctrl-C ends the run early: what is there is summarised
    and marked as interrupted, unscored. A run that is taken up runs what is not whole there
    and no more. Raises PromptError or UsageError before anything is written, and whatever an
    arm raises while it warms up.
    """
    started = now()
    stamp = started.strftime("%Y%m%dT%H%M%SZ")
    directory = plan.resume or plan.out or Path("runs") / stamp
    prompts = _check(plan, arms, encoder, context_length)
    manifest = Manifest(
        run_id=f"{stamp}-{secrets.token_hex(3)}",
        started_at=started.isoformat(timespec="seconds"),
        seed=plan.sampling.seed,
        plan=_described(plan, arms, prompts),
        environment=environment,
    )
    done: dict[Place, Record] | None = None
    if plan.resume is None:
        check_usable(directory)
    else:
        manifest = read_manifest(directory).taken_up(manifest, directory)
        done = whole(read_records(directory / RECORDS)) if (directory / RECORDS).exists() else {}
    records = list((done or {}).values())
    told_before: Mapping[str, Any] = {}
    execution = Execution(
        run_id=manifest.run_id,
        arms={arm.name: arm for arm in arms},
        prompts=prompts,
        encoder=encoder,
        sampling=plan.sampling,
        stop=plan.stop,
        repeats=plan.repeats,
        draft_dtype=draft_dtype,
        target_dtype=target_dtype,
        draft_engine=draft_engine,
        target_engine=target_engine,
        server_draft_engine=server_draft_engine,
        clock=clock,
        rules={SPLIT: plan.rule, ASSISTED: EXACT},
        metrics=metrics(),
        usage=usage,
        ended=plan.ended,
    )
    planned = execution.planned_records
    idle, watch = IdleLink(echo, clock), MachineWatch(machine, clock)
    watch.sample("before")
    if len(records) < planned:
        execution.warm_up(idle.note)
        idle.measure("before")
    else:
        told_before = read_conditions(directory)
    pauses = quarters(planned)
    stream = stderr or sys.stderr

    complete = False
    kept = None if done is None else [record.to_json() for record in records]
    with RunDirectory(directory, manifest, kept) as files:
        try:
            with Progress(planned, stream, clock, done=len(records)) as progress:

                def begin(what: str) -> None:
                    files.note_running(what.partition(" ")[0])
                    progress.begin(what)

                for record in execution.records(begin, done):
                    files.append(record.to_json())
                    records.append(record)
                    observe(record)
                    progress.advance()
                    if interrupted():
                        raise KeyboardInterrupt
                    idle.note(record.steps)
                    if len(records) in pauses:
                        idle.measure("between", COUNT_BETWEEN)
                        watch.sample("between")
            idle.measure("after")
            watch.sample("after")
            records.sort(key=lambda record: record.order)
            if text_nats:
                with Progress(len(records), stream, clock, "texts scored") as progress:
                    records = score(records, text_nats, progress.advance)
                files.replace_records(record.to_json() for record in records)
            complete = True
        except KeyboardInterrupt:
            pass
        finally:  # whatever ends the run, what was measured is summarised
            records.sort(key=lambda record: record.order)
            summary = summarize(
                records,
                list(execution.arms),
                run_id=execution.run_id,
                interrupted=not complete,
                planned_records=planned,
                seed=plan.sampling.seed,
                environment=dict(environment)
                | {
                    "started_at": manifest.started_at,
                    "resumed_at": list(manifest.resumed_at),
                    "idle_rtt_ms": idle.told(),
                    "machine": watch.told(),
                    **told_before,
                },
                logit_gap=logit_gap if complete else None,
                metrics=execution.metrics,
                references=any(any(prompt.references) for prompt in prompts),
            )
            files.write_summary(summary)
            trace = files.write_trace(trace_events(records)) if plan.trace else None
            files.write_exports(as_markdown(summary), arms_csv(summary), generations_csv(records))
            page = render_report(
                summary,
                records,
                prompts,
                command=plan.command,
                pieces=pieces,
                opinions=opinions if complete else None,
            )
            report = files.write_report(page)
    return BenchResult(
        directory=directory,
        summary=summary,
        table=render_table(summary, color=sys.stdout.isatty() if color is None else color),
        report=report,
        trace=trace,
        problems=problems_of(records, summary),
        exit_code=exit_code_of(records, summary),
    )


def check_plan(plan: BenchPlan) -> tuple[Prompt, ...]:
    """Returns the prompts, after making sure of all that can be told without a model.

    Raises PromptError or UsageError.
    """
    if plan.repeats < 1:
        raise UsageError(f"--repeats {plan.repeats}: give at least 1")
    if plan.limit is not None and plan.limit < 1:
        raise UsageError(f"--limit {plan.limit}: give at least 1")
    if plan.resume is None and plan.out is not None:
        check_usable(plan.out)
    return read_prompts(plan.prompts, plan.limit)


def _check(
    plan: BenchPlan, arms: Sequence[Arm], encoder: PromptEncoder, context_length: int
) -> tuple[Prompt, ...]:
    """Returns the prompts, after making sure that none of them can fail for its own sake."""
    if not arms:
        raise UsageError("no arm to run; name at least one with --arms")
    prompts = check_plan(plan)
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


def _described(
    plan: BenchPlan, arms: Sequence[Arm], prompts: Sequence[Prompt]
) -> Mapping[str, Any]:
    """Says what is run, whatever the files are called, so that two runs can be held together."""
    asked = [(p.prompt_id, p.kind, p.turns, p.history, p.references) for p in prompts]
    text = json.dumps(asked, default=dict, ensure_ascii=False, separators=(",", ":"))
    return {
        "prompts": len(prompts),
        "prompts_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "arms": [arm.name for arm in arms],
        "repeats": plan.repeats,
        "sampling": asdict(plan.sampling),
        "stop": asdict(plan.stop),
        "rule": asdict(plan.rule),
    }
