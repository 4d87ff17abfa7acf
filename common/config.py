"""Frozen, validated configuration: defaults, YAML files, and section.key=value overrides.

Later wins: defaults, then the file, then the overrides in order. An unknown key
is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from common.errors import ConfigError
from common.types import LEAST_PENALTY, MAX_CANDIDATES

Dtype = Literal["float32", "bfloat16", "float16"]
Count = Annotated[int, Field(ge=1)]
WireCount = Annotated[int, Field(ge=1, lt=2**32)]  # what the wire can carry
Seconds = Annotated[float, Field(gt=0)]
BatchWindow = Annotated[float, Field(ge=0, le=100)]  # longer ones are felt by a reader
LEAST_SHARE = 1e-6  # smaller ones mean 0 to float32, or nothing to a person
Share = Annotated[float, Field(ge=0, le=1)]
FileName = Annotated[str, Field(min_length=1)]


def _yaml_switch(value: object) -> object:
    """Undoes what YAML 1.1 makes of a bare `on` or `off`."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _no_is_none(value: object) -> object:
    """Takes `false`, which older files say, as 0."""
    return 0 if value is False else value


RunAhead = Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(_no_is_none)]


class Section(BaseModel):
    """Is the base of all sections: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class CloudSection(Section):
    """Configures the server."""

    dtype: Dtype = "float32"
    device: str = "auto"
    listen: str = "127.0.0.1:50051"
    metrics_listen: str = "127.0.0.1:9464"
    threads: Count | None = None  # None: see common/lm/threads.py
    token_budget: Count = 2048  # tokens one forward takes at most, over all sessions
    prefill_chunk: Count = 512  # tokens of one prompt that one forward takes at most
    batch_window_ms: BatchWindow = 0.0  # how long a step waits for other sessions; 0: not at all
    cache_tokens: Count = 65536  # tokens whose keys and values are held at once
    max_sessions: Count = 64
    max_client_sessions: Count | None = None  # of one client; None: as many as of all
    max_waiting_tokens: Count = 262144  # prompts and drafts that wait for the target
    max_client_tokens: Count | None = None  # of one client; None: as many as of all
    max_prompt_tokens: Count | None = None  # None: what the model's context holds
    max_new_tokens: Count | None = None  # None: what the model's context holds
    max_draft_tokens: Annotated[int, Field(ge=0, le=1024)] = 32
    max_run_ahead: Annotated[int, Field(ge=0)] = 256  # tokens a session may ask for; 0: none
    max_message_bytes: Count = 4 * 1024 * 1024
    idle_session_seconds: Seconds = 300.0  # a session unused or unread for so long is ended
    watchdog_seconds: Seconds = 120.0  # one step that takes longer makes the server unhealthy
    drain_seconds: Seconds = 30.0  # how long SIGTERM waits for work in hand
    redirect: str | None = None  # HOST:PORT of the server that takes over when this one drains
    trust_remote_code: bool = False  # run Python code that lies beside the weights
    allow_pickle: bool = False  # load pytorch_model.bin where there are no safetensors


class EdgeSection(Section):
    """Configures the client."""

    dtype: Dtype = "float32"
    threads: Count | None = None
    metrics_listen: str | None = None  # HOST:PORT of bench's and load's metrics; None: nowhere
    trust_remote_code: bool = False  # as in cloud
    allow_pickle: bool = False


class EngineSection(Section):
    """Configures how a forward is executed, on both ends (see common/lm/execution.py)."""

    compile: Annotated[Literal["auto", "off", "on"], BeforeValidator(_yaml_switch)] = "auto"


class DecodingSection(Section):
    """Configures what is generated, in every arm alike."""

    max_new_tokens: WireCount = 128
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Field(ge=LEAST_SHARE, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**32)] = 0
    min_p: Share = 0.0
    repetition_penalty: Annotated[float, Field(ge=LEAST_PENALTY, le=100)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-100, le=100)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-100, le=100)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None  # None: drawn and reported
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), strict=False)
    ignore_eos: bool = False


class DraftingSection(Section):
    """Configures how many tokens are drafted a round (the draft length)."""

    length: Annotated[int, Field(ge=0, le=1024)] | Literal["adaptive"] = "adaptive"
    stop: Literal["none", "confidence"] = "none"
    confidence_threshold: Share = 0.4  # a guess less probable than this ends the draft
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = 32  # of a guess, in rejection


class VerificationSection(Section):
    """Configures the rule by which a drafted token is accepted."""

    mode: Literal["coupled", "rejection", "rank", "typical"] = "coupled"
    rank_threshold: WireCount = 20
    typical_threshold: Annotated[float, Field(ge=LEAST_SHARE, le=1)] = 0.09
    typical_alpha: Annotated[float, Field(ge=LEAST_SHARE, le=100)] = 0.3


class GateSection(Section):
    """Configures when the edge asks the cloud at all; any kind but none is lossy."""

    kind: Literal["none", "entropy", "margin", "logprob"] = "none"
    threshold: float | None = None  # nats at most; probability at least; nats at least


class NetworkSection(Section):
    """Configures the way between the two ends; one timeout a phase."""

    pipeline: Annotated[int, Field(ge=0, le=32)] | Literal["auto"] = "auto"  # drafts sent ahead
    run_ahead: RunAhead = 0  # tokens the target writes alone while it waits for drafts; 0: off
    connect_timeout_s: Seconds = 10.0  # to reach a server
    round_timeout_s: Seconds = 60.0  # for one answer
    reconnect_s: Annotated[float, Field(ge=0)] = 30.0  # how long a lost server is asked again
    deadline_s: Seconds | None = None  # for one whole text; None: as long as it takes


class SideLimits(Section):
    """States what one end may use; None: whatever the machine grants."""

    cpu_cores: Annotated[float, Field(gt=0)] | None = None
    memory_gb: Annotated[float, Field(ge=0.5)] | None = None  # the libraries alone need most of it


class LimitsSection(Section):
    """States what each end may use."""

    edge: SideLimits = SideLimits()
    cloud: SideLimits = SideLimits()


class SecuritySection(Section):
    """Names the PEM files and the token file of this process (see docs/security.md)."""

    tls_cert: FileName | None = None  # own certificate: the server's, or a client's for mutual TLS
    tls_key: FileName | None = None  # and its key
    tls_client_ca: FileName | None = None  # server: who must have signed a client's certificate
    tls_ca: FileName | None = None  # client: whom to trust; `system`: gRPC's own list
    token_file: FileName | None = None  # server: who may come; client: the first is its own
    insecure: bool = False  # says aloud that prompts and tokens may cross a network in clear


ArmName = Literal["edge", "cloud", "cloud_optimized", "speculative", "cloud_assisted"]


class ExperimentSection(Section):
    """Names what `bench` compares, so that one file is a whole experiment; flags win over it."""

    arms: tuple[ArmName, ...] | None = Field(default=None, strict=False)  # None: all but the last
    prompts: FileName | None = None
    limit: Count | None = None
    repeats: Count = 1
    draft: FileName | None = None  # a path or hub id
    target: FileName | None = None  # read by demo/run.py, which starts the server too


class Config(Section):
    """Is the whole configuration of both ends; each reads the sections it needs."""

    cloud: CloudSection = CloudSection()
    edge: EdgeSection = EdgeSection()
    engine: EngineSection = EngineSection()
    decoding: DecodingSection = DecodingSection()
    drafting: DraftingSection = DraftingSection()
    verification: VerificationSection = VerificationSection()
    gate: GateSection = GateSection()
    network: NetworkSection = NetworkSection()
    limits: LimitsSection = LimitsSection()
    security: SecuritySection = SecuritySection()
    experiment: ExperimentSection = ExperimentSection()


# Keys whose meaning is promised but whose other values are not built yet. They
# are refused by name, so that nobody measures something else than they asked for.
_BUILT: Mapping[str, tuple[object, ...]] = {}


def load(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Builds the configuration from defaults, an optional YAML file and overrides.

    Raises ConfigError naming the key, the value and the nearest known key.
    """
    values: dict[str, Any] = {} if file is None else _read(Path(file))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"--set {override!r}: write it as section.key=value")
        try:
            _place(values, key.strip(), yaml.safe_load(text))
        except yaml.YAMLError:
            raise ConfigError(f"--set {override!r}: {text!r} is not a YAML value") from None
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    _refuse_unbuilt(config)
    _refuse_half_an_identity(config.security)
    _refuse_half_a_gate(config)
    _refuse_idle_run_ahead(config)
    return config


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {file} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"configuration file {file}: expected sections, found {values!r}")
    return values


def _place(values: dict[str, Any], key: str, value: object) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {key}: {section!r} is a value, not a section")
        values = inner
    values[leaf] = value


def known_keys(section: Section | None = None, prefix: str = "") -> Iterator[str]:
    """Yields every key as section.key, in order of declaration."""
    for name, value in section or Config():
        if isinstance(value, Section):
            yield from known_keys(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"] if part in _names())
        if problem["type"] == "extra_forbidden":
            key = ".".join(map(str, problem["loc"]))
            candidates = [*known_keys(), *Config.model_fields]
            near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.0)
            lines.append(f"unknown configuration key {key!r}; the nearest known one is {near[0]!r}")
        else:
            lines.append(f"configuration key {key!r} = {problem['input']!r}: {problem['msg']}")
    return "; ".join(dict.fromkeys(lines))


def _names() -> set[str]:
    return {part for key in known_keys() for part in key.split(".")}


def _refuse_unbuilt(config: Config) -> None:
    for key, built in _BUILT.items():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if value not in built:
            choices = " or ".join(repr(v) for v in built)
            raise ConfigError(
                f"configuration key {key!r} = {value!r} is not available in this version; "
                f"use {choices}"
            )


def _refuse_half_a_gate(config: Config) -> None:
    gate, pipeline = config.gate, config.network.pipeline
    if gate.kind == "none":
        return
    if gate.threshold is None:
        raise ConfigError(f"gate.kind = {gate.kind!r} needs gate.threshold; set it to a number")
    if pipeline != "auto" and pipeline:
        raise ConfigError(
            f"network.pipeline = {pipeline} sends drafts ahead, and gate.kind = {gate.kind!r} "
            "decides of each whether it is sent at all; set network.pipeline to 0 or auto"
        )


def _refuse_idle_run_ahead(config: Config) -> None:
    run_ahead, mode, gate = config.network.run_ahead, config.verification.mode, config.gate.kind
    if not run_ahead or (mode == "coupled" and gate == "none"):
        return
    other = f"gate.kind = {gate!r}" if mode == "coupled" else f"verification.mode = {mode!r}"
    raise ConfigError(
        f"network.run_ahead = {run_ahead} needs tokens that are the target's own choice, and "
        f"{other} takes others; set network.run_ahead to 0, or verification.mode to coupled "
        "and gate.kind to none"
    )


def _refuse_half_an_identity(security: SecuritySection) -> None:
    for key, needed in (
        ("tls_cert", "tls_key"),
        ("tls_key", "tls_cert"),
        ("tls_client_ca", "tls_cert"),
    ):
        value = getattr(security, key)
        if value is not None and getattr(security, needed) is None:
            raise ConfigError(
                f"security.{key} = {value!r} needs security.{needed} beside it; set both"
            )
