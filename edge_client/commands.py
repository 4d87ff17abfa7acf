"""From what was typed to the commands: each takes its options out of the parsed line.

torch takes seconds to import, so each command brings in what it needs itself.
"""

from __future__ import annotations

import argparse

from common.config import Config


def generate_command(options: argparse.Namespace, config: Config) -> int:
    """Writes on from a prompt."""
    from edge_client.generate import GenerateOptions, generate

    return generate(
        GenerateOptions(
            draft=options.draft,
            servers=options.server,
            prompt=options.prompt,
            arm=options.arm,
            chat=options.chat,
            as_json=options.json,
        ),
        config,
    )


def bench_command(options: argparse.Namespace, config: Config) -> int:
    """Runs the arms over a file of prompts."""
    from edge_client.bench import BenchOptions, bench

    return bench(
        BenchOptions(
            draft=options.draft,
            servers=options.server,
            prompts=options.prompts,
            arms=options.arms,
            limit=options.limit,
            repeats=options.repeats,
            out=options.out,
            score=options.score,
            link=options.link,
            trace=options.trace,
            resume=options.resume,
            again=options.self_check,
            ended=options.ended,
        ),
        config,
    )


def load_command(options: argparse.Namespace, config: Config) -> int:
    """Puts a server under load."""
    from edge_client.load import LoadOptions, load

    return load(
        LoadOptions(
            draft=options.draft,
            servers=options.server,
            prompts=options.prompts,
            arm=options.arm,
            requests=options.requests,
            clients=options.clients,
            rate=options.rate,
            out=options.out,
            as_json=options.json,
        ),
        config,
    )


def ping_command(options: argparse.Namespace, config: Config) -> int:
    """Measures idle round trips."""
    from edge_client.ping import ping

    return ping(
        config,
        servers=options.server,
        count=options.count,
        payload=options.payload_bytes,
        as_json=options.json,
    )


def plan_command(options: argparse.Namespace, config: Config) -> int:
    """Predicts the arms' speeds."""
    from edge_client.plan import PlanOptions, plan

    return plan(
        PlanOptions(
            records=options.records,
            draft_ms=options.draft_ms,
            target_ms=options.target_ms,
            target_token_ms=options.target_token_ms,
            acceptance=options.acceptance,
            rtt_ms=options.rtt_ms,
            lengths=options.lengths,
            tokens=options.tokens,
            as_json=options.json,
            out=options.out,
        ),
        config,
    )


def compare_command(options: argparse.Namespace, config: Config) -> int:
    """Sets runs side by side."""
    from edge_client.compare import compare

    return compare(options.runs, as_json=options.json)


def check_command(options: argparse.Namespace, config: Config) -> int:
    """Runs one audited forward."""
    from edge_client.check import check

    return check(config, draft=options.draft)
