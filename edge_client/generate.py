"""`outrider-edge generate`: one prompt, its text as it is confirmed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from common.config import Config
from common.errors import OutriderError
from edge_client.app import Assembly, assemble, sampling_params, stop_params
from edge_client.arms import GenerationRequest, Step
from edge_client.rule import EXACT, Rule, rule_of
from edge_client.stats import Conditions, one_line, summarise
from edge_client.terminal import note, warn_of_dtypes, warn_of_losses


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Is what the command line asks for; `chat` applies the tokenizer's chat template."""

    draft: str
    servers: Sequence[str]
    prompt: str
    arm: str
    chat: bool
    as_json: bool


@dataclass(slots=True)
class _Output:
    """Collects the steps of a generation and the moment each arrived."""

    started_ns: int = field(default_factory=time.monotonic_ns)
    steps: list[Step] = field(default_factory=list)
    arrivals_ns: list[int] = field(default_factory=list)

    def add(self, step: Step) -> None:
        self.arrivals_ns.append(time.monotonic_ns() - self.started_ns)
        self.steps.append(step)


def generate(options: GenerateOptions, config: Config) -> int:
    """Runs the command: text to stdout as it comes, or one JSON object at the end.

    An error in the middle leaves the text so far where it is, and the JSON object
    says what it was in `error`; it is raised in both cases.
    """
    with assemble(
        config, draft=options.draft, servers=options.servers, arms=[options.arm]
    ) as parts:
        conditions = _conditions(options.arm, config, parts)
        warn_of_dtypes(conditions.draft_dtype, conditions.target_dtype)
        if conditions.verification is not None:
            warn_of_losses(conditions.verification)
        request = GenerationRequest(
            _encode(options, parts), conditions.sampling, stop_params(config.decoding)
        )
        if config.decoding.seed is None and request.sampling.temperature and not options.as_json:
            note(f"seed {request.sampling.seed}")
        output = _Output()
        try:
            for step in parts.arms[options.arm].run(request):
                output.add(step)
                if not options.as_json:
                    print(step.text, end="", flush=True)
        except (OutriderError, KeyboardInterrupt) as error:
            _conclude(options, conditions, request, output, error)
            raise
        _conclude(options, conditions, request, output, None)
    return 0


def _conclude(
    options: GenerateOptions,
    conditions: Conditions,
    request: GenerationRequest,
    output: _Output,
    failure: BaseException | None,
) -> None:
    stats = None
    if output.steps:
        stats = summarise(conditions, request.prompt_token_ids, output.steps, output.arrivals_ns)
    if options.as_json:
        print(json.dumps(_report(output, stats, failure)))
        return
    if output.steps:
        print(flush=True)
    if stats is not None and failure is None and sys.stderr.isatty():
        note(one_line(stats))


def _report(
    output: _Output, stats: dict[str, Any] | None, failure: BaseException | None
) -> dict[str, Any]:
    reason = output.steps[-1].finish_reason if output.steps else None
    report: dict[str, Any] = {
        "token_ids": [token_id for step in output.steps for token_id in step.token_ids],
        "text": "".join(step.text for step in output.steps),
        "finish_reason": None if reason is None else reason.value,
        "stats": stats,
    }
    if failure is not None:
        report["error"] = str(failure) or "interrupted"
    return report


def _encode(options: GenerateOptions, parts: Assembly) -> tuple[int, ...]:
    if options.chat:
        return parts.encoder.encode_chat([{"role": "user", "content": options.prompt}])
    return parts.encoder.encode(options.prompt)


def _conditions(arm: str, config: Config, parts: Assembly) -> Conditions:
    drafts = arm in ("edge", "speculative")
    target_dtype = parts.server.dtype if arm != "edge" and parts.server is not None else None
    # The server's draft model has the precision of its target.
    beside = target_dtype if arm == "cloud_assisted" else None
    return Conditions(
        arm=arm,
        sampling=sampling_params(config.decoding),
        draft_dtype=parts.model.peer.dtype if drafts else beside,
        target_dtype=target_dtype,
        verification=_rule(arm, config),
    )


def _rule(arm: str, config: Config) -> Rule | None:
    if arm == "cloud_assisted":
        return EXACT  # the server knows no other for its own drafts
    return rule_of(config) if arm == "speculative" else None
