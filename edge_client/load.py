"""The command `load`."""

from __future__ import annotations

import json
import math
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.config import Config
from common.errors import UsageError
from common.lm.precision import dtype_name
from edge_client.app import Assembly, assemble, sampling_params, stop_params
from edge_client.bench import observing
from edge_client.engines import server_engines
from edge_client.experiments.environment import describe_bench
from edge_client.experiments.execution import Execution
from edge_client.experiments.figures import ASSISTED, SPLIT
from edge_client.experiments.load import Load, poisson_arrivals, requests
from edge_client.experiments.load_table import load_summary, render_load
from edge_client.experiments.outcome import EXIT_INTERRUPTED, EXIT_SERVER
from edge_client.experiments.progress import Progress
from edge_client.experiments.prompts import read_prompts
from edge_client.experiments.records import Record
from edge_client.experiments.run_directory import RECORDS, check_usable, write_whole
from edge_client.rule import EXACT, rule_of
from edge_client.terminal import note, warn_of_losses

SUMMARY = "load.json"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Is what the command line asks for; `rate` None is a closed loop, `requests` None all."""

    draft: str
    servers: Sequence[str]
    prompts: Path
    arm: str
    requests: int | None
    clients: int
    rate: float | None
    out: Path | None
    as_json: bool


def load(options: LoadOptions, config: Config) -> int:
    """Runs the command: a table or JSON on stdout, records and load.json in the directory."""
    if options.rate is not None and not (math.isfinite(options.rate) and options.rate > 0):
        raise UsageError(f"--rate {options.rate}: give a number above 0")
    prompts = read_prompts(options.prompts)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    directory = options.out or Path("runs") / stamp
    check_usable(directory)
    sampling, rule = sampling_params(config.decoding), rule_of(config)
    if options.arm == SPLIT:
        warn_of_losses(rule)
    count = options.requests or len(prompts)
    arrivals = None
    if options.rate is not None:
        arrivals = poisson_arrivals(options.rate, count, sampling.seed)
    run_id = f"{stamp}-{secrets.token_hex(3)}"
    with ExitStack() as stack:
        made: list[Assembly] = [
            stack.enter_context(
                assemble(config, draft=options.draft, servers=options.servers, arms=[options.arm])
            )
            for _ in range(options.clients)
        ]
        observe = stack.enter_context(observing(config.edge.metrics_listen))
        engines = server_engines(made[0])
        clients = [
            Execution(
                run_id=run_id,
                arms=parts.arms,
                prompts=prompts,
                encoder=parts.encoder,
                sampling=sampling,
                stop=stop_params(config.decoding),
                repeats=1,
                draft_dtype=dtype_name(parts.model.dtype),
                target_dtype=None if parts.server is None else parts.server.dtype,
                draft_engine=parts.model.execution.path,
                target_engine=engines.target,
                server_draft_engine=engines.draft,
                clock=time.monotonic_ns,
                rules={SPLIT: rule, ASSISTED: EXACT},
            )
            for parts in made
        ]
        for client in clients:
            client.warm_up(lambda _: None)
        planned = sum(len(prompts[index % len(prompts)].turns) for index in range(count))
        directory.mkdir(parents=True, exist_ok=True)
        records: list[Record] = []
        interrupted, began = False, time.monotonic_ns()
        with (
            (directory / RECORDS).open("w", encoding="utf-8") as file,
            Progress(planned, sys.stderr, time.monotonic_ns) as progress,
        ):

            def tell(record: Record) -> None:
                file.write(record.to_json() + "\n")
                file.flush()
                records.append(record)
                observe(record)
                progress.advance()

            waiting = requests(prompts, count, arrivals)
            running = Load(clients, options.arm, waiting, time.monotonic_ns, tell)
            try:
                running.run()
            except KeyboardInterrupt:
                interrupted = True
        summary = load_summary(
            running,
            records,
            time.monotonic_ns() - began,
            run_id=run_id,
            planned=count,
            rate=options.rate,
            seed=sampling.seed,
            interrupted=interrupted,
            environment=describe_bench(config, made[0].model, made[0].server),
        )
    text = json.dumps(summary, indent=2, allow_nan=False)
    write_whole(directory / SUMMARY, text + "\n")
    print(text if options.as_json else render_load(summary))
    note(f"{directory / SUMMARY}")
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_SERVER if records and summary["errors"] == len(records) else 0
