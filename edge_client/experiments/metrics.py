"""Prometheus metrics of the client, for as long as `bench` or `load` runs: raw counts, by arm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import ConfigError
from edge_client.experiments import readings
from edge_client.experiments.records import Record

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
except ImportError:  # it comes with the extra `cloud`
    raise ConfigError(
        "edge.metrics_listen needs the package prometheus-client; "
        "install it: pip install 'outrider[cloud]'"
    ) from None

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_MS_PER_S = 1e3


class ClientMetrics:
    """Holds the counters of one client in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ("arm",)) -> Counter:
            return Counter(f"outrider_edge_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            name = f"outrider_edge_{name}_seconds"
            return Histogram(name, text, ("arm",), buckets=_SECONDS, registry=registry)

        self.generations = counter("generations", "Generations that ended well")
        self.errors = counter("generation_errors", "Generations that failed", ("arm", "reason"))
        self.output_tokens = counter("output_tokens", "Output tokens")
        self.rounds = counter("rounds", "Verify requests answered")
        self.draft_tokens = counter("draft_tokens", "Tokens drafted and judged")
        self.accepted_tokens = counter("accepted_tokens", "Of those, tokens accepted")
        self.wasted_tokens = counter("wasted_tokens", "Tokens the draft model made in vain")
        self.reconnects = counter("reconnects", "Streams that were lost and replaced")
        self.ttft = histogram("time_to_first_token", "From the request to the first token")
        self.tpot = histogram("time_per_output_token", "Time per output token after the first")
        self.e2e = histogram("generation", "From the request to the last token")
        self.round_trip = histogram("round_trip", "A draft sent to its verdict read")

    def observe(self, record: Record) -> None:
        """Counts one generation."""
        arm = record.arm
        if record.error is not None:
            self.errors.labels(arm, record.error.partition(":")[0]).inc()
            return
        self.generations.labels(arm).inc()
        for metric, count in (
            (self.output_tokens, record.num_output_tokens),
            (self.rounds, record.rounds),
            (self.draft_tokens, record.num_draft_tokens),
            (self.accepted_tokens, record.num_accepted_tokens),
            (self.wasted_tokens, record.num_wasted_tokens),
            (self.reconnects, record.reconnects),
        ):
            metric.labels(arm).inc(count or 0)
        for histogram, seconds in (
            (self.ttft, record.ttft_s),
            (self.tpot, record.tpot_s),
            (self.e2e, record.e2e_s),
        ):
            if seconds is not None:
                histogram.labels(arm).observe(seconds)
        for milliseconds in readings.round_trips(record):
            self.round_trip.labels(arm).observe(milliseconds / _MS_PER_S)


@contextmanager
def serving_metrics(address: str) -> Iterator[ClientMetrics]:
    """Serves a client's metrics at HOST:PORT; raises ConfigError where that cannot be."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"edge.metrics_listen = {address!r}: write it as HOST:PORT")
    metrics = ClientMetrics()
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry=metrics.registry)
    except OSError as error:
        raise ConfigError(
            f"edge.metrics_listen = {address!r}: cannot listen there ({error.strerror}); choose "
            f"another address"
        ) from None
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
