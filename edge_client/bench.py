"""`outrider-edge bench`: hands the parts to the experiment."""

from __future__ import annotations

import math
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

from common.config import Config
from common.detokenizer import Detokenizer
from common.errors import OutriderError, UsageError
from common.lm.precision import dtype_name
from common.machine.limits import is_out_of_memory
from common.machine.usage import BOOT, Usage, boot, read_usage
from common.types import Opinion
from edge_client.app import Assembly, assemble, connect, sampling_params, stop_params
from edge_client.arms import DEFAULT_ARMS
from edge_client.credentials import refuse_clear_token
from edge_client.engines import compile_draft, server_engines
from edge_client.experiments.again import Again
from edge_client.experiments.environment import describe_bench
from edge_client.experiments.figures import SPLIT
from edge_client.experiments.machine_watch import read_machine
from edge_client.experiments.manifest import read_manifest
from edge_client.experiments.records import Record
from edge_client.experiments.runner import BenchPlan, check_plan, run_bench
from edge_client.experiments.token_view import Opinions
from edge_client.experiments.trace import GENERATIONS
from edge_client.relay.process import linked
from edge_client.resume import ResilientCloud
from edge_client.rule import Promise, rule_of
from edge_client.terminal import note, warn_of_dtypes, warn_of_losses

PROGRAM = "outrider-edge"


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Is what the command line asks for; what is None is taken from `experiment`.

    `score` has the target judge every text; `link` names the profile of a relay to the server;
    `trace` asks for trace.json; `resume` is the directory of a run to be taken up; `again`
    names arms that also run under a second name, as a check of the measurement itself; `ended`
    says of arms that ended an earlier process of this run why (see guarded.py).
    """

    draft: str | None
    servers: Sequence[str]
    prompts: Path | None
    arms: Sequence[str] | None
    limit: int | None
    repeats: int | None
    out: Path | None
    score: bool
    link: str | None
    trace: bool
    resume: Path | None
    again: Sequence[str]
    ended: Mapping[str, str]


def bench(options: BenchOptions, config: Config) -> int:
    """Runs the command: the table on stdout, records, summary and report in the directory."""
    asked = config.experiment
    arms = options.arms or asked.arms or DEFAULT_ARMS
    draft, prompts = options.draft or asked.draft, options.prompts or asked.prompts
    if draft is None:
        raise UsageError("bench: no draft model; name one with --draft, or in experiment.draft")
    if prompts is None:
        raise UsageError("bench: no prompts; name a file with --prompts, or in experiment.prompts")
    sampling = sampling_params(config.decoding)
    if options.resume is not None and config.decoding.seed is None:
        sampling = replace(sampling, seed=read_manifest(options.resume).seed)
    plan = BenchPlan(
        prompts=Path(prompts),
        sampling=sampling,
        stop=stop_params(config.decoding),
        out=options.out,
        limit=options.limit or asked.limit,
        repeats=options.repeats or asked.repeats,
        rule=rule_of(config),
        trace=options.trace,
        resume=options.resume,
        ended=options.ended,
        command=shlex.join([PROGRAM, *sys.argv[1:]]),
    )
    for name in options.again:
        if name not in arms:
            raise UsageError(f"--self-check {name}: name it with --arms too")
    check_plan(plan)  # before models are loaded and a server is asked, which takes a while
    splits = SPLIT in arms
    if splits:
        warn_of_losses(plan.rule)
    score = options.score or (
        splits and plan.rule.promise(plan.sampling.temperature) is not Promise.TOKENS
    )
    with (
        _way(options, config) as servers,
        assemble(config, draft=draft, servers=servers, arms=arms) as parts,
        _watching(parts, config, servers) as watched,
        observing(config.edge.metrics_listen) as observe,
    ):
        draft_engine, engines = compile_draft(parts), server_engines(parts)
        draft_dtype = dtype_name(parts.model.dtype)
        target_dtype = None if parts.server is None else parts.server.dtype
        warn_of_dtypes(draft_dtype, target_dtype)
        result = run_bench(
            plan,
            [*parts.arms.values(), *(Again(parts.arms[name]) for name in options.again)],
            parts.encoder,
            context_length=parts.context_length,
            draft_dtype=draft_dtype,
            target_dtype=target_dtype,
            draft_engine=draft_engine,
            target_engine=engines.target,
            server_draft_engine=engines.draft,
            environment=describe_bench(config, parts.model, parts.server, options.link),
            echo=None if parts.cloud is None else parts.cloud.echo,
            machine=lambda: read_machine(lambda: _server_cpu_s(watched)),
            usage=lambda: (read_usage(), _server_usage(watched)),
            observe=observe,
            pieces=partial(_pieces, parts),
            opinions=partial(_opinions, parts),
            interrupted=_heed_ends(),
            logit_gap=None if parts.cloud is None else partial(_logit_gap, parts.cloud),
            text_nats=(
                partial(text_nats, parts.cloud, parts.server.context_length)
                if score and parts.cloud is not None and parts.server is not None
                else None
            ),
        )
    print(result.table)
    if result.trace is not None:
        print(f"{result.trace} (first repeat, at most {GENERATIONS} generations; ui.perfetto.dev)")
    print(result.report)
    for problem in result.problems:
        note(f"outrider-edge: {problem}")
    return result.exit_code


@contextmanager
def observing(address: str | None) -> Iterator[Callable[[Record], None]]:
    """Yields what hears of every record: the client's metrics where an address is given."""
    if address is None:
        yield lambda _: None
        return
    from edge_client.experiments.metrics import serving_metrics

    with serving_metrics(address) as metrics:
        yield metrics.observe


def _watching(
    parts: Assembly, config: Config, servers: Sequence[str]
) -> AbstractContextManager[ResilientCloud | None]:
    """Makes a way of its own to ask what a server has used: it changes nothing for the arms."""
    return nullcontext() if parts.cloud is None else connect(config, servers)


def _server_usage(cloud: ResilientCloud | None) -> Usage | None:
    """Asks what the server has used; None without one, or when it does not answer."""
    try:
        return None if cloud is None else Usage.from_texts(cloud.info().environment)
    except OutriderError:
        return None


def _server_cpu_s(cloud: ResilientCloud | None) -> float | None:
    """Returns the processor time of a server on this machine: 0 elsewhere, None if not known."""
    if cloud is None:
        return 0.0
    try:
        told = cloud.info().environment
    except OutriderError:
        return None
    here = boot()
    if BOOT not in told or here is None:
        return None
    return Usage.from_texts(told).cpu_s if told[BOOT] == here else 0.0


def _pieces(parts: Assembly, token_ids: Sequence[int]) -> list[str]:
    """Returns the text that each token made certain."""
    detokenize = Detokenizer(parts.model.loaded.tokenizer)
    return [detokenize(token_id) for token_id in token_ids]


def _opinions(
    parts: Assembly, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int]
) -> Opinions:
    """Asks both models what they think of a text; who cannot say is left out."""
    tokens = len(prompt_token_ids) + len(output_token_ids)
    if tokens > parts.context_length:
        return {}
    opinions: dict[str, Opinion] = {}
    try:
        opinions["draft model"] = parts.drafter.opinion(prompt_token_ids, output_token_ids)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    with suppress(OutriderError):  # as below
        if parts.cloud is not None:
            opinions["target"] = parts.cloud.opinion(prompt_token_ids, output_token_ids)
    return opinions


def _heed_ends() -> Callable[[], bool]:
    """Returns whether Ctrl-C or SIGTERM has come by now; both raise KeyboardInterrupt as well."""
    came = threading.Event()

    def note_and_raise(number: int, frame: FrameType | None) -> None:
        came.set()
        signal.default_int_handler(number, frame)

    def hear(lost: sys.UnraisableHookArgs) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):  # that one is noted, and asked for
            sys.__unraisablehook__(lost)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note_and_raise)
    sys.unraisablehook = hear
    return came.is_set


@contextmanager
def _way(options: BenchOptions, config: Config) -> Iterator[Sequence[str]]:
    """Yields where the arms find the servers: each behind a relay when a link was asked for."""
    if options.link is None:
        yield options.servers
        return
    servers = options.servers or [config.cloud.listen]
    for server in servers:
        refuse_clear_token(config.security, server.rpartition(":")[0])  # the relay itself is near
    with ExitStack() as stack:
        yield [stack.enter_context(linked(options.link, server)) for server in servers]


def _logit_gap(
    cloud: ResilientCloud,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
    token: int,
    other: int,
) -> float | None:
    """Asks the target by how much it preferred a token; None when it cannot say."""
    try:
        ours, theirs = cloud.score([*prompt_token_ids, *output_token_ids], [token, other])
    except OutriderError:
        return None  # the server may be gone by now, and the summary is still wanted
    return ours - theirs


def text_nats(
    cloud: ResilientCloud,
    context_length: int,
    prompt_token_ids: Sequence[int],
    output_token_ids: Sequence[int],
) -> float | None:
    """Asks how unlikely the target finds a whole output, in nats; None when it cannot say."""
    if len(prompt_token_ids) + len(output_token_ids) > context_length:
        return None
    try:
        return -math.fsum(cloud.opinion(prompt_token_ids, output_token_ids).logprobs)
    except OutriderError:
        return None  # as above
