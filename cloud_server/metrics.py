"""Prometheus metrics: raw counts, named as vLLM names them where the meaning is the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info

from cloud_server.jobs import StepReport
from common.errors import OutriderError, leaves
from common.types import Draft, Outcome, ServerInfo, Verdict, VerificationMode, VerificationParams

PHASES = ("loading", "serving", "draining")
_TOKENS_PER_STEP = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_SESSIONS_PER_STEP = (1, 2, 4, 8, 16, 32, 64)
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Holds the counters of one server in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"outrider_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"outrider_{name}", text, buckets=buckets, registry=registry)

        self.drafts = counter("spec_decode_num_drafts", "Verified rounds with at least one guess")
        self.draft_tokens = counter("spec_decode_num_draft_tokens", "Guesses received")
        self.accepted_tokens = counter("spec_decode_num_accepted_tokens", "Guesses accepted")
        self.accepted_per_pos = counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Guesses accepted, by their place in the draft",
            ("position",),
        )
        self.opened = counter(
            "sessions_opened",
            "Sessions, by rule; only coupled and rejection, not gated, are lossless",
            ("verification", "gated"),
        )
        self.unverified_tokens = counter(
            "unverified_tokens", "Tokens a gated client committed that no target judged"
        )
        self.run_ahead_tokens = counter(
            "run_ahead_tokens", "Output tokens the target wrote alone while a session had no drafts"
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of opened prompts")
        self.generation_tokens = counter("generation_tokens", "Output tokens")
        self.errors = counter("request_errors", "Requests that failed, by reason", ("reason",))
        self.sessions = Gauge(
            "outrider_num_requests_running",
            "Sessions and generations now open",
            registry=registry,
        )
        # What has not happened yet reads 0, or the first time would be no increase.
        for error in leaves(OutriderError):
            self.errors.labels(error.reason)
        for mode, gated in product(VerificationMode, ("false", "true")):
            self.opened.labels(mode.value, gated)
        self.phase = Enum(
            "outrider_phase", "What the server is doing", states=PHASES, registry=registry
        )
        self.step_tokens = histogram("iteration_tokens", "Tokens in one forward", _TOKENS_PER_STEP)
        self.step_sessions = histogram(
            "iteration_sessions", "Sessions in one forward", _SESSIONS_PER_STEP
        )
        self.step_seconds = histogram(
            "iteration_seconds", "Duration of one forward and its sampling", _SECONDS
        )
        self.draft_step_tokens = histogram(
            "draft_iteration_tokens",
            "Tokens in one forward of the draft model beside the target",
            _TOKENS_PER_STEP,
        )
        self.draft_step_sessions = histogram(
            "draft_iteration_sessions", "Sessions in one forward of it", _SESSIONS_PER_STEP
        )
        self.draft_step_seconds = histogram(
            "draft_iteration_seconds", "Duration of one forward of it and its sampling", _SECONDS
        )
        self.queue_seconds = histogram(
            "request_queue_time_seconds", "A verify request's wait before its forward", _SECONDS
        )

    def describe(
        self,
        info: ServerInfo,
        cache_tokens: Callable[[], int],
        draft_cache_tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        """Says what is served, and how much of its caches is in use whenever that is asked."""
        Info("outrider_build", "What is served, and by what", registry=self.registry).info(
            {
                "version": info.server_version,
                "protocol": info.protocol_version,
                "model": info.model_name,
                "model_fingerprint": info.model_fingerprint,
                "dtype": info.dtype,
                "device": info.device,
                **{n: info.environment.get(n, "") for n in ("torch", "transformers", "grpcio")},
            }
        )
        for name, text, value in (
            ("kv_cache_capacity_tokens", "Tokens there is room for", info.cache_tokens),
            ("max_requests", "Sessions and generations that may be open", info.max_sessions),
        ):
            Gauge(f"outrider_{name}", text, registry=self.registry).set(value)
        Gauge(
            "outrider_kv_cache_used_tokens",
            "Tokens whose keys and values have room reserved",
            registry=self.registry,
        ).set_function(cache_tokens)
        Gauge(
            "outrider_draft_kv_cache_used_tokens",
            "The same of the draft model beside the target; 0 without one",
            registry=self.registry,
        ).set_function(draft_cache_tokens)

    def observe_opening(self, verification: VerificationParams) -> None:
        """Counts one session under its rule."""
        self.opened.labels(verification.mode.value, str(verification.gated).lower()).inc()

    def observe_step(self, report: StepReport) -> None:
        """Counts one forward."""
        self.step_tokens.observe(report.tokens)
        self.step_sessions.observe(report.sessions)
        self.step_seconds.observe(report.computed_ns / 1e9)

    def observe_draft_step(self, report: StepReport) -> None:
        """Counts one forward of the draft model beside the target."""
        self.draft_step_tokens.observe(report.tokens)
        self.draft_step_sessions.observe(report.sessions)
        self.draft_step_seconds.observe(report.computed_ns / 1e9)

    def observe_run_ahead(self, tokens: int) -> None:
        """Counts tokens that the target wrote alone."""
        self.run_ahead_tokens.inc(tokens)
        self.generation_tokens.inc(tokens)

    def observe_verdict(self, draft: Draft, verdict: Verdict, gated: bool, known: int = 0) -> None:
        """Counts one verified round; `gated` clients send confirmed tokens nobody judged.

        The first `known` of its tokens, or all, are counted already: the target wrote them alone.
        """
        if verdict.outcome is not Outcome.VERIFIED:
            return
        if gated:
            self.unverified_tokens.inc(len(draft.confirmed_token_ids))
        tokens = verdict.accepted + (verdict.next_token_id is not None)
        self.generation_tokens.inc(max(0, tokens - known))
        self.queue_seconds.observe(verdict.timing.queued_ns / 1e9)
        self.observe_draft(len(draft.token_ids), verdict.accepted)

    def observe_draft(self, drafted: int, accepted: int) -> None:
        """Counts the guesses of one verified round, whoever made them; a round may have none."""
        if drafted:
            self.drafts.inc()
            self.draft_tokens.inc(drafted)
            self.accepted_tokens.inc(accepted)
            for position in range(accepted):
                self.accepted_per_pos.labels(str(position)).inc()
